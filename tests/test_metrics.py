"""Metrics for Prometheus: what they say is what has happened."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import typing as t
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import Client, Live, suspend, wait_until
from flask_graceful.ask import is_alive
from service import wait_accepting
from test_extension import Hello
from test_extension import hello as hello  # a fixture

ON = """
from prometheus_client import Gauge
graceful = Graceful(app, metrics=True, idle_grace=0)
living = Gauge("living", "Of the app, of processes that live.", multiprocess_mode="liveall")
living.set(1)

@app.route("/fail")
def fail():
    raise ValueError("as asked for")
"""


def metrics(client: Client) -> dict[str, float]:
    """What is told, by name and labels."""
    code, headers, body = client.get("/metrics")
    assert code == 200 and headers["content-type"].startswith("text/plain")
    lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def requests(found: dict[str, float], method: str = "GET", status: str = "2xx") -> float:
    return found.get(f'graceful_requests_total{{method="{method}",status="{status}"}}', 0)


def test_requests_are_counted_and_timed(hello: Hello) -> None:
    hello.start(ON, "graceful.run(app, port=0)")
    with Client(hello.address) as client, Client(hello.address):
        for _ in range(3):
            client.get()
        client.get("/missing")
        client.get("/fail")
        client.send(b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n").response()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").response()
        found = metrics(client)
    assert requests(found) == requests(found, "GET", "2xx") == 3
    assert [requests(found, "GET", status) for status in ("4xx", "5xx")] == [1, 1]
    assert requests(found, "POST") == 1
    # Whatever clients send, there are few labels.
    assert requests(found, "other", "4xx") == 1
    assert "BREW" not in str(found)
    labels = 'method="GET",status="2xx"'
    assert found[f"graceful_request_seconds_count{{{labels}}}"] == 3
    assert found[f'graceful_request_seconds_bucket{{le="+Inf",{labels}}}'] == 3
    assert 0 < found[f"graceful_request_seconds_sum{{{labels}}}"] < 3
    assert found['graceful_connections{state="active"}'] == 1
    assert found["graceful_requests_in_flight"] == 0
    assert found['graceful_processes{state="running"}'] == 1
    # The app's own are there too.
    assert found["living"] == 1


@pytest.mark.parametrize(("protocol", "count"), [("h2c", 1), ("websocket", 0)])
def test_only_websockets_are_not_timed(hello: Hello, protocol: str, count: int) -> None:
    hello.start(ON, "graceful.run(app, port=0)")
    with Client(hello.address) as client:
        client.get("/", f"Connection: Upgrade\r\nUpgrade: {protocol}\r\n")
        found = metrics(client)
    # No WebSocket is to be had there.
    status = "2xx" if count else "4xx"
    assert requests(found, status=status) == 1
    name = f'graceful_request_seconds_count{{method="GET",status="{status}"}}'
    assert found.get(name, 0) == count


def test_whoever_asks_for_metrics_shuts_nobody_out(hello: Hello) -> None:
    """The supervisor hears 32 at a time, each for a second when a worker hangs."""
    hello.start(ON, "graceful.run(app, port=0, workers=2)")
    hanging = workers_of(hello.one)[0]
    # Else all may be with the one that hangs, and nobody asks.
    wait_accepting(hello.one.pid, 2)

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{hello.one.pid}/fd"))

    with ExitStack() as stack:
        clients = [stack.enter_context(Client(hello.address)) for _ in range(40)]
        few = descriptors()
        suspend(hanging)
        try:
            for client in clients:
                client.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_until(lambda: descriptors() > few, "the question")
            until = time.monotonic() + 0.8
            while time.monotonic() < until:
                # The worker that lives has one; files are looked into for a moment.
                assert descriptors() <= few + 3
        finally:
            os.kill(hanging, signal.SIGCONT)
        assert {client.response()[0] for client in clients} == {200}


def test_requests_in_flight_and_restarts(hello: Hello) -> None:
    hello.start(ON, "graceful.run(app, port=0)")
    pid = hello.pid()
    with Client(hello.address) as busy, Client(hello.address) as client:
        busy.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        hello.one.wait_for(f"^{pid} slow begins")
        found = metrics(client)
        assert found["graceful_requests_in_flight"] == 1
        assert (found["graceful_generation"], found["graceful_restarts_total"]) == (1, 0)
        (hello.directory / "go").touch()
        busy.response()
        hello.restart()
        found = metrics(client)
        assert (found["graceful_generation"], found["graceful_restarts_total"]) == (2, 1)


BOOTS = (
    ON
    + """
if os.path.exists("boots"):
    say(os.getpid(), "boots")
    while not os.path.exists("go"):
        time.sleep(0.01)
    sys.exit(3)
"""
)


def test_a_restart_counts_when_it_has_come_to_serve(hello: Hello) -> None:
    hello.start(BOOTS, "graceful.run(app, port=0, workers=1)")
    hello.one.wait_for("Generation 1 serves")

    def told() -> tuple[float, float, float]:
        with Client(hello.address) as client:
            found = metrics(client)
        return (
            found["graceful_generation"],
            found["graceful_restarts_total"],
            found.get('graceful_processes{state="booting"}', 0),
        )

    (hello.directory / "boots").touch()
    hello.signal(signal.SIGHUP)
    hello.one.wait_for(r"\d+ boots$")
    wait_until(lambda: told() == (1, 0, 1), "one that boots")
    (hello.directory / "go").touch()
    hello.one.wait_for("Reload failed: ")
    wait_until(lambda: told() == (1, 0, 0), "nothing has changed")
    (hello.directory / "boots").unlink()
    hello.signal(signal.SIGHUP)
    hello.one.wait_for("Generation 2 serves")
    wait_until(lambda: told() == (2, 1, 0), "the restart")


def test_viewers_of_the_status_page_are_no_requests(hello: Hello) -> None:
    more = ON.replace("metrics=", "status_page=True, metrics=")
    hello.start(more + "app.debug = True", "graceful.run(app, port=0)")
    with Client(hello.address) as viewer, Client(hello.address) as client:
        viewer.send(b"GET /graceful/events HTTP/1.1\r\nHost: a\r\n\r\n")
        assert viewer.response(head_only=True)[0] == 200
        assert metrics(client)["graceful_requests_in_flight"] == 0


@pytest.fixture
def shared(hello: Hello) -> Path:
    directory = hello.directory / "shared"
    directory.mkdir()
    return directory


def living(found: dict[str, float]) -> set[int]:
    """The processes whose gauges count."""
    names = (re.fullmatch(r'living\{pid="(\d+)"\}', name) for name in found)
    return {int(match[1]) for match in names if match}


def test_a_restart_does_not_set_counters_back(hello: Hello, shared: Path) -> None:
    env = {"PROMETHEUS_MULTIPROC_DIR": str(shared)}
    hello.start(ON, "graceful.run(app, port=0)", env=env)
    with Client(hello.address) as client:
        first = hello.pid()
        for _ in range(3):
            client.get()
        assert living(metrics(client)) == {first}
        second = hello.restart()
        client.get()
        found = metrics(client)
        assert requests(found) == 4
        assert living(found) == {second}


def workers_of(one: Live) -> list[int]:
    line = one.wait_for(r"Generation 1 serves with workers ([\d ]+)\.")
    return [int(pid) for pid in line[1].split()]


def test_workers_are_added_up_and_the_dead_do_not_count(hello: Hello, shared: Path) -> None:
    env = {"PROMETHEUS_MULTIPROC_DIR": str(shared)}
    hello.start(ON, "graceful.run(app, port=0, workers=2)", env=env)
    workers = workers_of(hello.one)
    clients = [Client(hello.address) for _ in range(6)]
    try:
        for client in clients:
            for _ in range(5):
                assert client.get()[0] == 200
        found = metrics(clients[0])
        assert requests(found) == 30
        states = ("new", "idle", "active")
        assert sum(found[f'graceful_connections{{state="{one}"}}'] for one in states) == 6
        assert found['graceful_processes{state="serving"}'] == 2
        assert set(workers) == living(found)
    finally:
        for client in clients:
            client.sock.close()
    # One that is killed can't say so; the one that takes its place does.
    os.kill(workers[0], signal.SIGKILL)
    hello.one.wait_for(r"Worker (\d+) serves")

    def after() -> dict[str, float]:
        with Client(hello.address) as client:
            return metrics(client)

    found = after()
    (replacement,) = living(found) - {workers[1]}
    assert replacement != workers[0]
    assert requests(found) == 30
    # Those that end by themselves say so.
    hello.signal(signal.SIGHUP)
    hello.one.wait_for("Generation 2 serves")
    for pid in (workers[1], replacement):
        wait_until(lambda pid=pid: not is_alive(pid), "the end of the old ones")
    assert len(living(after())) == 2 and not living(after()) & {workers[1], replacement}


def test_without_a_control_socket_it_is_this_worker_alone(hello: Hello) -> None:
    run = "graceful.run(app, port=0, workers=2, control_socket=None)"
    hello.start(ON, run)
    workers_of(hello.one)
    with Client(hello.address) as client:
        found = metrics(client)
    assert found['graceful_processes{state="running"}'] == 1


def test_the_supervisor_is_found_from_wherever_the_app_has_gone(hello: Hello) -> None:
    more = ON + "graceful.before_begin(lambda addr: os.chdir('/'))"
    run = "graceful.run(app, port=0, workers=2, control_socket='here.sock')"
    hello.start(more, run)
    workers_of(hello.one)
    with Client(hello.address) as client:
        assert metrics(client)['graceful_processes{state="serving"}'] == 2
    assert (hello.directory / "here.sock").is_socket()


def program(text: str) -> str:
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return done.stdout


def test_without_prometheus_client_the_remedy_is_told() -> None:
    said = program("""
import sys
sys.modules["prometheus_client"] = None
from flask import Flask
from flask_graceful import Graceful
try:
    Graceful(Flask("web"), metrics=True)
except RuntimeError as error:
    print(error)
""")
    assert said.startswith("metrics need prometheus_client, which can't be imported (")
    assert said.endswith('): pip install "flask-graceful[metrics]"\n')


def test_two_apps_of_a_process_and_another_server() -> None:
    said = program("""
from flask import Flask
from flask_graceful import Graceful
graceful = Graceful(metrics="/numbers")
for name in ("one", "two"):
    app = Flask(name)
    graceful.init_app(app)
    app.test_client().get("/")
print(app.test_client().get("/numbers").text)
""")
    assert 'graceful_requests_total{method="GET",status="4xx"} 2.0' in said
    # What the server does is not known.
    assert "graceful_generation" not in said
    assert t.cast("int", said.count("graceful_requests_total{")) == 1


def test_a_directory_that_is_none_is_named_at_once(tmp_path: Path) -> None:
    code = "from flask import Flask; from flask_graceful import Graceful; "
    for directory in ("", str(tmp_path / "none")):
        ended = subprocess.run(
            [sys.executable, "-c", code + "Graceful(Flask('web'), metrics=True)"],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": directory},
            text=True,
            capture_output=True,
            timeout=30,
        )
        assert f"PROMETHEUS_MULTIPROC_DIR is {directory!r}, which is no directory" in ended.stderr
