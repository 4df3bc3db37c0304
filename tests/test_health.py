"""`/livez` and `/readyz`, asked at each point of a process's life."""

from __future__ import annotations

import json
import os
import signal
import threading
import typing as t

import pytest
from conftest import DEADLINE, Client, wait_until
from flask import Flask, abort
from flask_graceful import Graceful, GracefulServer, State
from flask_graceful.files import FileWrapper
from program import Hosted
from test_extension import Hello
from test_extension import hello as hello  # a fixture
from test_server import Start

ON = "graceful = Graceful(app, livez=True, readyz=True, idle_grace=0)"


def asked(client: Client, path: str = "/readyz") -> tuple[int, dict[str, t.Any]]:
    code, headers, body = client.get(path)
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    return code, json.loads(body)


def test_they_are_off_until_they_are_asked_for() -> None:
    app = Flask("web")
    Graceful(app)
    client = app.test_client()
    assert [client.get(path).status_code for path in ("/livez", "/readyz")] == [404, 404]


def test_nobody_needs_to_log_in_and_no_hook_of_the_app_runs() -> None:
    app = Flask("web")
    Graceful(app, livez="/alive", readyz=True)
    app.config["SERVER_NAME"] = "web.test"

    @app.before_request
    def log_in() -> None:
        abort(401)

    client = app.test_client()
    assert client.get("/").status_code == 401
    answer = client.get("/alive", base_url="http://10.0.0.1:8000")
    assert answer.status_code == 200
    # Under a server that tells nothing.
    assert answer.json == {
        "status": "alive",
        "state": "running",
        "pid": os.getpid(),
        "generation": None,
        "requests": None,
    }
    head = client.head("/readyz")
    assert (head.status_code, head.data, int(head.headers["Content-Length"]) > 0) == (
        200,
        b"",
        True,
    )
    post = client.post("/readyz")
    assert (post.status_code, post.headers["Allow"]) == (405, "GET, HEAD")


def test_a_server_that_has_not_begun_is_not_ready() -> None:
    app = Flask("web")
    Graceful(app, readyz=True)
    environ = {"flask_graceful.server": GracefulServer(":0", app)}
    answer = app.test_client().get("/readyz", environ_overrides=environ)
    assert (answer.status_code, answer.json["state"]) == (503, "init")  # type: ignore[index]


def test_requests_in_flight_are_those_of_others(running: Start) -> None:
    app = Flask("web")
    Graceful(app, readyz=True)
    inside, leave = threading.Event(), threading.Event()

    @app.get("/")
    def index() -> str:
        inside.set()
        assert leave.wait(DEADLINE)
        return ""

    one = running(app)
    with one.connect() as busy, one.connect() as probe:
        assert asked(probe)[1]["requests"] == 0
        busy.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert inside.wait(DEADLINE)
        assert asked(probe)[1]["requests"] == 1
        leave.set()
        busy.response()
        wait_until(lambda: asked(probe)[1]["requests"] == 0, "no request")


@pytest.mark.parametrize("during_delay", [False, True])
def test_readiness_through_a_stop(running: Start, during_delay: bool) -> None:
    app = Flask("web")
    Graceful(app, livez=True, readyz=True, readyz_during_delay=during_delay)
    one = t.cast("Hosted", running(app, kind=Hosted, shutdown_delay=60, idle_grace=60))
    assert one.server.generation == 1
    with one.connect() as probe:
        assert asked(probe) == (
            200,
            {
                "status": "ready",
                "state": "running",
                "pid": os.getpid(),
                "generation": 1,
                "requests": 0,
            },
        )
        one.server.stop()
        wait_until(lambda: one.server.state is State.DELAYING, "the delay")
        code, said = asked(probe)
        assert (code, said["state"]) == (200 if during_delay else 503, "delaying")
        assert said["status"] == ("ready" if during_delay else "not ready")
        assert asked(probe, "/livez")[1]["status"] == "alive"
        one.server.stop()
        wait_until(lambda: one.server.state is State.SHUTTING_DOWN, "the stop")
        # The connection is kept for `idle_grace`, and this is its last answer.
        code, said = asked(probe)
        assert (code, said["status"], said["state"]) == (503, "not ready", "shutting_down")
        assert probe.is_closed()


def test_no_probe_fails_through_a_restart_and_generations_are_told(hello: Hello) -> None:
    hello.start(ON, "graceful.run(app, port=0)")
    answers: list[tuple[int, int]] = []
    over = threading.Event()

    def probe() -> None:
        while not over.is_set():
            with Client(hello.address) as client:
                code, said = asked(client)
                answers.append((code, said["generation"]))

    hello.pid()
    prober = threading.Thread(target=probe)
    prober.start()
    try:
        for generation in (1, 2, 3):
            wait_until(lambda g=generation: (200, g) in answers, "an answer of each")
            if generation < 3:
                hello.restart(generation + 1)
    finally:
        over.set()
        prober.join()
    # Both may accept for a moment, but all are ready.
    assert {code for code, _ in answers} == {200}


def test_a_process_that_gives_way_is_ready(hello: Hello) -> None:
    """The service is: a balancer is not to send clients elsewhere. Its connection stays while its
    request runs."""
    more = (
        ON
        + """

@app.route("/late")
def late():
    say(os.getpid(), "late begins")
    while not graceful.shutting_down:
        time.sleep(0.01)
    answer = app.test_client().get("/readyz", environ_overrides={
        "flask_graceful.server": request.environ["flask_graceful.server"]})
    return answer.json | {"code": answer.status_code}
"""
    )
    hello.start(more, "graceful.run(app, port=0)")
    pid = hello.pid()
    with Client(hello.address) as client:
        client.send(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n")
        hello.one.wait_for(f"^{pid} late begins")
        hello.signal(signal.SIGHUP)
        said = json.loads(client.response()[2])
    assert (said["code"], said["state"], said["generation"]) == (200, "relieved", 1)


def test_a_worker_that_gives_way_is_not_ready_when_the_service_ends(hello: Hello) -> None:
    more = (
        ON
        + """

@app.route("/late")
def late():
    say(os.getpid(), "late begins")
    environ = {"flask_graceful.server": request.environ["flask_graceful.server"]}
    codes = []
    while 503 not in codes and len(codes) < 4000:
        time.sleep(0.01)
        answer = app.test_client().get("/readyz", environ_overrides=environ)
        codes += [answer.status_code]
    return answer.json | {"codes": sorted(set(codes))}
"""
    )
    hello.start(more, "graceful.run(app, port=0, workers=1, shutdown_delay=60)")
    hello.one.wait_for("Generation 1 serves")
    supervisor = hello.pid()
    with Client(hello.address) as client:
        client.send(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n")
        hello.one.wait_for(r"^\d+ late begins")
        os.kill(supervisor, signal.SIGHUP)
        hello.one.wait_for("Generation 2 serves")
        os.kill(supervisor, signal.SIGTERM)
        said = json.loads(client.response()[2])
        assert (said["codes"], said["state"]) == ([200, 503], "relieved")
        # Do not wait.
        os.kill(supervisor, signal.SIGTERM)
    assert hello.wait_over() == 0


def test_with_workers_each_tells_its_generation(hello: Hello) -> None:
    hello.start(ON, "graceful.run(app, port=0, workers=2, shutdown_delay=0.5)")
    supervisor = hello.pid()

    def generation() -> int:
        with Client(hello.address) as probe:
            code, said = asked(probe)
            assert code == 200 and said["pid"] != supervisor
            return t.cast("int", said["generation"])

    hello.one.wait_for("Generation 1 serves")
    assert generation() == 1
    os.kill(supervisor, signal.SIGHUP)
    hello.one.wait_for("Generation 2 serves")
    wait_until(lambda: generation() == 2, "the next one")
    with Client(hello.address) as probe:
        asked(probe)
        os.kill(supervisor, signal.SIGTERM)
        wait_until(lambda: asked(probe)[0] == 503, "a word of the stop")
    assert hello.wait_over() == 0


def test_files_are_sent_without_being_read_all_the_same(running: Start) -> None:
    """What the application answers is passed on as it is."""
    app = Flask("web")
    Graceful(app, livez=True, metrics=True)
    answers: list[t.Any] = []
    outermost = app.wsgi_app

    def application(environ: t.Any, start_response: t.Any) -> t.Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](open(__file__, "rb"))

    def seen(environ: t.Any, start_response: t.Any) -> t.Any:
        answers.append(outermost(environ, start_response))
        return answers[-1]

    outermost._app._app = application  # type: ignore[attr-defined]
    app.wsgi_app = seen  # type: ignore[method-assign]
    with running(app).connect() as client:
        assert client.get()[0] == 200
    assert isinstance(answers[0], FileWrapper)
