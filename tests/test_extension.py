"""The Flask extension: applications that are really served, and what is said of those that can't
be."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import typing as t
import weakref
from pathlib import Path

import flask_graceful
import pytest
from conftest import DEADLINE, ROOT, Client, Live, wait_until
from flask import Flask, Response
from flask_graceful import Graceful, GracefulServer, Server, settings
from flask_graceful.appstate import default_address, make_server, state_of
from flask_graceful.statuspage import create_blueprint
from load import KeptLoad, Load
from program import Hosted
from service import check_nothing_lost
from test_server import Start
from werkzeug.serving import make_server as werkzeug_server

# Flask's quickstart, with one changed line, and what the tests' clients want to hear.
QUICKSTART = """
import os, sys, threading, time
from flask import Flask, current_app, request
from flask_graceful import (
    Graceful, draining_started, restart_started, serving_started, shutdown_finished,
)

app = Flask(__name__)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

@app.route("/", methods=["GET", "POST"])
def hello():
    token = request.get_data(as_text=True) or request.query_string.decode()
    return f"{os.getpid()} {token}"

@app.route("/slow")
def slow():
    say(os.getpid(), "slow begins")
    while not os.path.exists("go"):
        time.sleep(0.01)
    return f"{os.getpid()} late"

#MORE
if __name__ == "__main__":
    #RUN
    say(os.getpid(), "goes on after run()")
"""
RUN = "Graceful(app).run(app, port=0, idle_grace=0)"
BANNER = r"^ \* Serving Flask app 'hello' on http://127\.0\.0\.1:(\d+) \(kill -1 (\d+) restarts"
# In debug mode.
RUNS = r"^ \* Running on http://127\.0\.0\.1:(\d+)$"


class Hello:
    """The program `hello.py`, and its processes."""

    one: Live

    def __init__(self, directory: Path, live: t.Callable[..., Live]) -> None:
        self.directory = directory
        self._live = live

    def write(self, more: str = "", run: str = RUN) -> None:
        text = QUICKSTART.replace("#MORE", more).replace("#RUN", run)
        (self.directory / "hello.py").write_text(text)

    def start(
        self,
        more: str = "",
        run: str = RUN,
        command: t.Sequence[str] = ("hello.py",),
        env: dict[str, str] | None = None,
    ) -> Hello:
        self.write(more, run)
        self.one = self._live(*command, cwd=self.directory, env=env)
        return self

    @property
    def port(self) -> int:
        return int(next(filter(None, self.one.wait_for(f"{BANNER}|{RUNS}").groups())))

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def pid(self, generation: int = 1) -> int:
        """Whom to signal, once that one serves."""
        return int(self.one.wait_for(BANNER, generation)[2])

    def signal(self, signum: int, generation: int = 1) -> None:
        os.kill(self.pid(generation), signum)

    def wait_over(self) -> int:
        """Wait for the end of all processes, and of the log; the exit status of the first."""
        status = self.one.process.wait(DEADLINE)
        wait_until(lambda: self.one._is_over, "the end of the log")
        return status

    def restart(self, generation: int = 2) -> int:
        self.signal(signal.SIGHUP, generation - 1)
        self.one.wait_for(rf"^{self.pid(generation - 1)} Serve\(\) returning")
        return self.pid(generation)

    def stop(self, generation: int = 1) -> None:
        pid = self.pid(generation)
        self.signal(signal.SIGTERM, generation)
        self.one.wait_for(rf"^{pid} goes on after run\(\)")


@pytest.fixture
def hello(tmp_path: Path, live: t.Callable[..., Live]) -> Hello:
    return Hello(tmp_path, live)


# Served by a program.


def test_one_changed_line_and_no_client_notices_a_restart(hello: Hello) -> None:
    hello.start()
    with KeptLoad(hello.address, [0.01] * 4) as kept, Load(hello.address, 2) as fresh:
        kept.wait_count(40)
        second = hello.restart()
        kept.wait_served_by([second])
        third = hello.restart(3)
        kept.wait_served_by([third])
    check_nothing_lost(kept, fresh)
    # The line that says where it serves is the extension's, and there is no second one.
    assert "Serving HTTP on" not in hello.one.log
    # `run` returns, as `app.run` does.
    hello.stop(3)
    assert "Traceback" not in hello.one.log


def test_with_workers_one_pid_is_restarted_and_stopped(hello: Hello) -> None:
    hello.start(run="Graceful(app, workers=2).run(app, port=0, idle_grace=0)")
    hello.one.wait_for(r"Generation 1 serves")
    supervisor = hello.pid()
    assert supervisor == hello.one.pid
    with KeptLoad(hello.address, [0.01] * 4) as kept, Load(hello.address, 2) as fresh:
        kept.wait_count(40)
        os.kill(supervisor, signal.SIGHUP)
        hello.one.wait_for(r"Generation 2 serves")
        count = kept.count
        kept.wait_count(count + 40)
    check_nothing_lost(kept, fresh)
    os.kill(supervisor, signal.SIGTERM)
    assert hello.wait_over() == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_an_address_in_use_is_one_line_and_status_1(hello: Hello, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = f"Graceful(app).run(app, port={port}, workers={workers})"
        hello.start(run=run)
        assert hello.wait_over() == 1
    hello.one.wait_for("address already in use")
    # A supervisor quotes what its worker has said.
    lines = {text.removeprefix("| ") for text in hello.one.log.splitlines() if "in use" in text}
    (line,) = lines
    assert line.startswith(f"hello: listen tcp 127.0.0.1:{port}: bind: address already in use")
    assert "Traceback" not in hello.one.log


HOOKS = """
graceful = Graceful(app)

def note(what):
    def hook(*words):
        say(os.getpid(), what, current_app.name, *words)
    return hook

graceful.before_begin(note("before_begin"))
graceful.before_restart(note("before_restart"))
graceful.on_draining(note("on_draining"))
graceful.on_shutdown(note("on_shutdown"))

def listen(signal, what):
    def receive(sender, **more):
        is_current = sender is current_app._get_current_object()
        say(os.getpid(), what, is_current and current_app.name, *more.values())
    signal.connect(receive, weak=False)

listen(serving_started, "serving_started")
listen(restart_started, "restart_started")
listen(draining_started, "draining_started")
listen(shutdown_finished, "shutdown_finished")
"""
BEGUN = ["before_begin", "serving_started"]
ENDED = ["on_draining", "draining_started", "on_shutdown", "shutdown_finished"]


def hooks_of(one: Live, pid: int, app: str = "hello") -> list[str]:
    """What was called, in its order, each within the context of the app."""
    return re.findall(rf"^{pid} (\w+) {app}\b", one.log, re.MULTILINE)


def test_hooks_and_signals_run_in_their_order_and_inside_the_apps_context(hello: Hello) -> None:
    hello.start(HOOKS, "graceful.run(app, port=0, idle_grace=0)")
    first, port = hello.pid(), hello.port
    assert hooks_of(hello.one, first) == BEGUN
    hello.one.wait_for(rf"^{first} serving_started hello 127\.0\.0\.1:{port}$")
    second = hello.restart()
    hello.one.wait_for(rf"^{first} shutdown_finished")
    restarted = ["before_restart", "restart_started"]
    assert hooks_of(hello.one, first) == [*BEGUN, *restarted, *ENDED]
    hello.stop(2)
    assert hooks_of(hello.one, second) == [*BEGUN, *ENDED]


def test_hooks_of_workers(hello: Hello) -> None:
    hello.start(HOOKS, "graceful.run(app, port=0, idle_grace=0, workers=1)")
    (first,) = re.findall(r"serves with worker (\d+)", hello.one.wait_for(r".*Generation 1.*")[0])
    hello.signal(signal.SIGHUP)
    hello.one.wait_for(rf"^{first} shutdown_finished")
    restarted = ["before_restart", "restart_started"]
    assert hooks_of(hello.one, int(first)) == [*BEGUN, *restarted, *ENDED]


MOUNTED = (
    HOOKS
    + """
from werkzeug.middleware.dispatcher import DispatcherMiddleware

two = Flask("two")
graceful.init_app(two)
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/two": two})

def work():
    slow()
    say(os.getpid(), "worked", current_app.name)

@graceful.before_begin
def begin(addr):
    if current_app.name == "two":
        graceful.spawn(work)
"""
)


def test_an_app_that_is_mounted_in_another_has_its_hooks_and_its_work_is_waited_for(
    hello: Hello,
) -> None:
    hello.start(MOUNTED, "graceful.run(app, port=0, idle_grace=0)")
    first = hello.pid()
    hello.signal(signal.SIGHUP)
    for name in ("hello", "two"):
        hello.one.wait_for(f"^{first} draining_started {name}$")
    assert hooks_of(hello.one, first)[-1] == hooks_of(hello.one, first, "two")[-1] == ENDED[1]
    (hello.directory / "go").touch()
    hello.one.wait_for(rf"^{first} goes on after run\(\)")
    asked = [("before_restart", "hello"), ("before_restart", "two")]
    told = [("restart_started", "hello"), ("restart_started", "two")]
    restarted = re.findall(rf"^{first} (\w*restart\w*) (\w+)", hello.one.log, re.MULTILINE)
    assert restarted == asked + told
    words = [*BEGUN, "before_restart", "restart_started", *ENDED]
    assert hooks_of(hello.one, first) == words
    words.insert(-2, "worked")
    assert hooks_of(hello.one, first, "two") == words


REFUSES = """
graceful = Graceful(app)

@graceful.before_restart
def check():
    if not os.path.exists("may"):
        sys.exit("not before the file is there")
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_before_restart_may_refuse(hello: Hello, workers: int) -> None:
    hello.start(REFUSES, f"graceful.run(app, port=0, idle_grace=0, workers={workers})")
    if workers:
        hello.one.wait_for("Generation 1 serves")
    hello.signal(signal.SIGHUP)
    refused = "refused by before_restart hook: not before the file is there"
    hello.one.wait_for(f"Reload failed: {refused}" if workers else f"Restart {refused}")
    with Client(hello.address) as client:
        assert client.get()[0] == 200
    (hello.directory / "may").touch()
    hello.signal(signal.SIGHUP)
    if workers:
        hello.one.wait_for("Generation 2 serves")
        # For the service, whose pid stays.
        assert len(re.findall(BANNER, hello.one.log, re.MULTILINE)) == 1
    else:
        hello.one.wait_for(BANNER, 2)


def refuses() -> None:
    raise RuntimeError("not now")


def refuses_elsewhere() -> None:
    refuses()


def exits() -> None:
    sys.exit("not now")


def exits_with_status() -> None:
    sys.exit(3)


def is_misspelt() -> None:
    os.path.exits("/run/busy")  # type: ignore[attr-defined]


def misses_a_key() -> None:
    print({}["busy"])


def asks_others() -> None:
    json.loads("")


@pytest.mark.parametrize(
    ("hook", "reason", "is_meant"),
    [
        (refuses, "not now", True),
        (refuses_elsewhere, "not now", True),
        (exits, "not now", True),
        (exits_with_status, "SystemExit(3)", True),
        (is_misspelt, "AttributeError(\"module 'posixpath' has no attribute 'exits'", False),
        (misses_a_key, "KeyError('busy')", False),
        (asks_others, "JSONDecodeError('Expecting value", False),
    ],
)
def test_a_hook_that_refuses_by_accident_has_its_traceback_and_no_other(
    app: Flask, caplog: pytest.LogCaptureFixture, hook: t.Callable[[], None], reason: str,
    is_meant: bool,
) -> None:  # fmt: skip
    Graceful(app).before_restart(hook)
    server = make_server(app, {"bind": ":0"})
    assert server.why_no_restart().startswith(f"refused by before_restart hook: {reason}")
    (record,) = caplog.records
    assert record.exc_info is None if is_meant else f"in {hook.__name__}" in caplog.text


SLOW_HOOK = """
graceful = Graceful(app)

@graceful.on_draining
def slow_hook():
    slow()

@graceful.on_draining
def broken():
    raise ValueError("as asked for")

graceful.on_shutdown(sys.exit)

@graceful.on_shutdown
def on_shutdown():
    say("on_shutdown", os.path.exists("go"))
"""


def test_a_process_waits_for_its_draining_hooks_and_ends_with_its_shutdown_hooks(
    hello: Hello,
) -> None:
    hello.start(SLOW_HOOK, "graceful.run(app, port=0, idle_grace=0)")
    first = hello.pid()
    hello.signal(signal.SIGHUP)
    hello.one.wait_for(rf"^{first} slow begins")
    # The next one serves meanwhile.
    second = hello.pid(2)
    with Client(hello.address) as client:
        assert client.get()[2] == b"%d " % second
    assert "on_shutdown" not in hello.one.log
    (hello.directory / "go").touch()
    hello.one.wait_for(r"^on_shutdown True$")
    hello.one.wait_for(rf"^{first} goes on after run\(\)")
    # One that fails is logged, with its process and its name, and no more.
    hello.one.wait_for(rf"^{first} on_draining hook broken failed$")
    assert hello.one.log.count("ValueError: as asked for") == 1


def test_on_shutdown_comes_after_the_last_request(hello: Hello) -> None:
    hello.start(HOOKS, "graceful.run(app, port=0, idle_grace=0)")
    first = hello.pid()
    with Client(hello.address) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        hello.one.wait_for(f"^{first} slow begins")
        hello.signal(signal.SIGTERM)
        hello.one.wait_for(f"^{first} draining_started")
        assert "on_shutdown" not in hooks_of(hello.one, first)
        (hello.directory / "go").touch()
        assert client.response()[2] == b"%d late" % first
    hello.one.wait_for(f"^{first} shutdown_finished")


def test_run_does_nothing_under_a_flask_command(hello: Hello) -> None:
    text = 'Graceful(app).run(app, port=0)\n@app.cli.command("say")\ndef command(): say("said")'
    hello.write(text, "pass")
    command = [sys.executable, "-m", "flask", "--app", "hello", "say"]
    done = subprocess.run(command, cwd=hello.directory, capture_output=True, text=True, check=True)
    assert "Ignoring a call to 'graceful.run()'" in done.stdout
    assert done.stdout.endswith("said\n")


def test_debug_is_that_of_app_run(hello: Hello) -> None:
    more = "@app.route('/debug')\ndef debug(): return str(app.debug)"
    hello.start(more, "Graceful(app).run(app, port=0, debug=True)")
    with Client(hello.address) as client:
        assert client.get("/debug")[2] == b"True"


def test_tls_and_unix_sockets_as_app_run_spells_them(
    hello: Hello, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(hello.directory / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(hello.directory / "cert.pem")
    trusting, unknowing = ssl.create_default_context(), ssl.create_default_context()
    authority.configure_trust(trusting)
    unknowing.check_hostname, unknowing.verify_mode = False, ssl.CERT_NONE
    for given, context in (("('cert.pem', 'key.pem')", trusting), ("'adhoc'", unknowing)):
        hello.start(run=f"Graceful(app).run(app, port=0, ssl_context={given})")
        port = int(hello.one.wait_for(r"on https://127\.0\.0\.1:(\d+) ")[1])
        with (
            socket.create_connection(("127.0.0.1", port), DEADLINE) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 200"

    path = tmp_path_factory.mktemp("s") / "sock"
    hello.start(run=f"Graceful(app).run(app, host='unix://{path}')")
    hello.one.wait_for(f"on unix:{path} ")
    with Client(str(path)) as client:
        assert client.get()[0] == 200


COMMAND = """
app.config["GRACEFUL_THREADS"] = 3
app.config["GRACEFUL_BIND"] = "127.0.0.1:0"
app.config["GRACEFUL_IDLE_GRACE"] = 0

@app.route("/settings")
def settings():
    known = request.environ["flask_graceful.server"].settings
    return [known.threads, known.hammer_time, known.idle_grace]
"""


def test_the_command_knows_the_extension(hello: Hello) -> None:
    """Its hooks are called, its configuration counts, and a flag comes before that."""
    more = COMMAND + HOOKS.replace("Graceful(app)", "Graceful(app, hammer_time=7)")
    words = ("-m", "flask_graceful", "--threads", "5", "hello:app")
    hello.start(more, command=words)
    pid = hello.one.pid
    port = int(hello.one.wait_for(rf"^{pid} serving_started hello 127\.0\.0\.1:(\d+)$")[1])
    # The hooks take nothing away.
    hello.one.wait_for(rf"^{pid} Serving HTTP on 127\.0\.0\.1:{port}$")
    with Client(("127.0.0.1", port)) as client:
        assert client.get("/settings")[2].split() == b"[5,7.0,0.0]".split()
    os.kill(pid, signal.SIGTERM)
    assert hello.wait_over() == 0
    assert hooks_of(hello.one, pid) == [*BEGUN, *ENDED]


def test_the_command_serves_a_module_that_would_serve_itself(hello: Hello) -> None:
    text = "graceful = Graceful(app)\ngraceful.run(app, port=9)"
    hello.start(text, command=("-m", "flask_graceful", "--bind", "127.0.0.1:0", "hello:app"))
    port = int(hello.one.wait_for(r"^\d+ Serving HTTP on 127\.0\.0\.1:(\d+)$")[1])
    assert "Ignoring a call to 'graceful.run()'" in hello.one.log
    with Client(("127.0.0.1", port)) as client:
        assert client.get()[0] == 200
    os.kill(hello.one.pid, signal.SIGTERM)
    assert hello.wait_over() == 0


def test_the_command_names_a_wrong_certificate(hello: Hello) -> None:
    more = "app.config.update(GRACEFUL_CERTFILE='no.pem', GRACEFUL_KEYFILE='no.pem')\nGraceful(app)"
    hello.start(more, command=("-m", "flask_graceful", "--bind", ":0", "hello:app"))
    assert hello.wait_over() == 2
    (line,) = hello.one.log.splitlines()
    assert line.startswith("flask_graceful: ") and "no.pem" in line


@pytest.mark.parametrize("is_early", [False, True])
def test_the_command_names_a_wrong_key(hello: Hello, is_early: bool) -> None:
    """Whether the application's own code meets it, or the command."""
    more = ["Graceful(app)", "app.config['GRACEFUL_THREDS'] = 3"]
    more = more[:: -1 if is_early else 1]
    hello.start("\n".join(more), command=("-m", "flask_graceful", "hello:app"))
    assert hello.wait_over() == 2
    line = "flask_graceful: unknown key 'GRACEFUL_THREDS' in app.config; "
    assert hello.one.log == f"{line}did you mean 'GRACEFUL_THREADS'?\n"


# Clients that stay: server-sent events and WebSockets.

STAYING = """
from flask import Response
from flask_sock import Sock

graceful = Graceful(app)
sock = Sock(app)

@sock.route("/echo")
def echo(ws):
    while not graceful.shutting_down:
        data = ws.receive(timeout=0.05)
        if data is not None:
            ws.send(f"{os.getpid()} {data}")
    ws.close(1001, "going away")

@app.route("/events")
def events():
    def ticks():
        while True:
            yield f"data: {os.getpid()}\\n\\n"
            time.sleep(0.02)
    stream = graceful.until_shutdown(ticks(), farewell="event: bye\\ndata: -\\n\\n")
    return Response(stream, mimetype="text/event-stream")
"""


class Events(threading.Thread):
    """What EventSource does: it comes back when a stream ends."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.seen: list[str] = []
        self.streams: list[str] = []
        self.failed: list[str] = []
        self.is_over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.is_over.is_set():
            try:
                with Client(("127.0.0.1", self.port)) as client:
                    code, _, body = client.send(
                        b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n"
                    ).response(head_only=True)
                    assert code == 200
                    while size := int(client._until(b"\r\n"), 16):
                        body += client._exactly(size + 2)[:-2]
                        self.seen.append(body.decode().rpartition("data: ")[2].strip())
                self.streams.append(body.decode())
            except (OSError, AssertionError) as error:
                self.failed.append(repr(error))


class Echoes(threading.Thread):
    """A WebSocket client that comes back when it was sent away."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.url = f"ws://127.0.0.1:{port}/echo"
        self.seen: list[str] = []
        self.goodbyes: list[tuple[int, str]] = []
        self.is_over = threading.Event()
        self.start()

    def run(self) -> None:
        # Not everybody who runs other tests has it.
        import simple_websocket
        from wsproto.utilities import LocalProtocolError

        # The latter two when its own thread has just seen the end.
        ends = (simple_websocket.ConnectionClosed, OSError, LocalProtocolError)
        while not self.is_over.is_set():
            ws = simple_websocket.Client(self.url)
            try:
                while not self.is_over.is_set():
                    ws.send("hi")
                    answer = ws.receive(DEADLINE)
                    assert answer is not None and answer.endswith(" hi")
                    self.seen.append(answer.split()[0])
                ws.close()
            except ends:
                wait_until(lambda ws=ws: not ws.connected, "the end of the WebSocket")
                self.goodbyes.append((ws.close_reason, ws.close_message))


@pytest.mark.parametrize("workers", [0, 1])
def test_those_who_stay_are_told_and_come_back_and_nothing_is_logged_as_an_error(
    hello: Hello, workers: int
) -> None:
    hello.start(STAYING, f"graceful.run(app, port=0, workers={workers})")
    events, echoes = Events(hello.port), Echoes(hello.port)
    both: tuple[Events, Echoes] = (events, echoes)
    for generation in range(1, 4):
        for one in both:
            wait_until(lambda one=one, n=generation: len(set(one.seen) - {"-"}) == n, "its turn")
        if generation < 3:
            pid = hello.pid() if workers else hello.pid(generation)
            if workers:
                hello.one.wait_for(rf"Generation {generation} serves")
            os.kill(pid, signal.SIGHUP)
    events.is_over.set()
    echoes.is_over.set()
    echoes.join(DEADLINE)
    os.kill(pid if workers else hello.pid(3), signal.SIGTERM)
    events.join(DEADLINE)
    assert echoes.goodbyes == [(1001, "going away")] * 2
    # Each stream was ended, and not cut: the farewell is its last word.
    assert [one.endswith("event: bye\ndata: -\n\n") for one in events.streams] == [True] * 3
    assert events.failed == []
    hello.wait_over()
    for word in ("Traceback", "ERROR", "Error", "Cut", "Hammer", "WARNING"):
        assert word not in hello.one.log


@pytest.fixture
def app() -> Flask:
    return Flask("web")


def test_a_stream_ends_when_shutdown_begins_and_is_closed(running: Start, app: Flask) -> None:
    graceful, closed = Graceful(app), threading.Event()
    begun, items_closed = threading.Event(), threading.Event()

    class Items(list[str]):
        def close(self) -> None:
            items_closed.set()

    def numbers() -> t.Iterator[str]:
        try:
            while True:
                yield "1"
                begun.set()
                graceful_event.wait(DEADLINE)
        finally:
            closed.set()

    graceful_event: threading.Event = None  # type: ignore[assignment]

    @app.get("/stream")
    def stream() -> Response:
        nonlocal graceful_event
        graceful_event = graceful.shutdown_event
        return Response(graceful.until_shutdown(numbers(), farewell="!"))

    @app.get("/short")
    def short() -> Response:
        return Response(graceful.until_shutdown(Items("ab"), farewell="!"))

    one = running(app)
    with one.connect() as client, one.connect() as other:
        # One that ends by itself has no farewell.
        assert other.get("/short")[2] == b"ab"
        assert items_closed.is_set()
        client.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        assert begun.wait(DEADLINE)
        one.server.shutdown(timeout=DEADLINE)
        assert client.response()[2] == b"11!"
    assert closed.is_set()


# Within requests.


def about(graceful: Graceful, app: Flask) -> None:
    """A page with what the extension says in a request."""

    @app.get("/about")
    def page() -> list[t.Any]:
        with graceful.track():
            return [graceful.shutting_down, graceful.shutdown_event.is_set()]


def test_work_is_waited_for_and_is_inside_the_apps_context(running: Start, app: Flask) -> None:
    from flask import current_app

    graceful = Graceful(app)
    go, names = threading.Event(), []

    def work(word: str) -> None:
        assert go.wait(DEADLINE)
        names.append(f"{current_app.name} {word}")

    @app.get("/")
    def index() -> str:
        graceful.spawn(work, "done")
        return "soon"

    one = running(app)
    with one.connect() as client:
        client.get()
        assert one.server.tracked == 1
        with pytest.raises(flask_graceful.ShutdownTimeout):
            one.server.shutdown(timeout=0.01)
        go.set()
        one.server.shutdown(timeout=DEADLINE)
    assert names == ["web done"]


def test_what_a_request_is_told_by_this_server(running: Start, app: Flask) -> None:
    graceful = Graceful(app)
    inside, leave, said = threading.Event(), threading.Event(), []

    @app.get("/")
    def index() -> str:
        with graceful.track():
            said.append((graceful.shutting_down, one.server.tracked))
        inside.set()
        assert leave.wait(DEADLINE)
        said.append((graceful.shutting_down, one.server.tracked))
        return ""

    one = running(app)
    with one.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert inside.wait(DEADLINE)
        stopping = threading.Thread(target=one.server.shutdown)
        stopping.start()
        assert one.server.shutdown_event.wait(DEADLINE)
        leave.set()
        client.response()
        stopping.join()
    assert said == [(False, 1), (True, 0)]


def test_under_other_servers_nothing_ever_shuts_down(app: Flask) -> None:
    graceful = Graceful(app)
    about(graceful, app)
    with app.test_client() as client:
        assert client.get("/about").json == [False, False]
    other = werkzeug_server("127.0.0.1", 0, app, threaded=True)
    serving = threading.Thread(target=other.serve_forever)
    serving.start()
    try:
        with Client(("127.0.0.1", other.server_port)) as client:
            assert client.get("/about")[2].split() == b"[false,false]".split()
    finally:
        other.shutdown()
        serving.join()
        other.server_close()
    ran = threading.Event()
    with app.app_context():
        assert list(graceful.until_shutdown("abc", farewell="!")) == ["a", "b", "c"]
        thread = graceful.spawn(ran.set)
    thread.join(DEADLINE)
    assert ran.is_set()


def test_in_the_apps_context_it_is_the_server_of_this_process(running: Start, app: Flask) -> None:
    graceful = Graceful(app)
    one = t.cast("Hosted", running(app, kind=Hosted))
    with app.app_context():
        assert graceful.shutdown_event is not one.server.shutdown_event
        state_of(app).attach(one.server, app)
        assert graceful.shutdown_event is one.server.shutdown_event
        with graceful.track():
            assert one.server.tracked == 1


def test_a_receiver_that_fails_takes_no_other_with_it(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever is called first. Before serving begins, it forbids that."""
    called: list[str] = []

    def raises(sender: Flask, **more: t.Any) -> None:
        called.append("raises")
        raise ValueError("as asked for")

    def exits(sender: Flask, **more: t.Any) -> None:
        called.append("exits")
        sys.exit(3)

    for signal_ in (flask_graceful.serving_started, flask_graceful.shutdown_finished):
        signal_.connect(raises, app)
        signal_.connect(exits, app)
    Graceful(app)
    server = make_server(app, {"bind": ":0"})
    server._hooks.run_after_shutdown()
    assert sorted(called) == ["exits", "raises"]
    assert [one.levelname for one in caplog.records] == ["ERROR"] * 2
    called.clear()
    with pytest.raises((ValueError, SystemExit)):
        server._hooks.before_begin[0]("here")
    assert len(called) == 1


# Applications and extensions.


def test_several_apps_share_an_extension_and_each_has_its_configuration() -> None:
    graceful = Graceful(threads=7)
    apps = [Flask("one"), Flask("two")]
    for app, path in zip(apps, ("/alive", True), strict=True):
        app.config["GRACEFUL_LIVEZ"] = path
        app.config["GRACEFUL_HAMMER_TIME"] = len(str(path))
        graceful.init_app(app)
    called: list[str] = []

    @graceful.before_begin
    def note(addr: str) -> None:
        from flask import current_app

        called.append(f"{current_app.name} {addr}")

    servers = [make_server(app, {"bind": ":0"}) for app in apps]
    rows = zip(apps, servers, ("/alive", "/livez"), (6, 4), strict=True)
    for app, server, path, time in rows:
        assert (server.settings.threads, server.settings.hammer_time) == (7, time)
        assert state_of(app).server is server
        for hook in server._hooks.before_begin:
            hook("here")
        answers = {page: app.test_client().get(page).status_code for page in ("/alive", "/livez")}
        assert [page for page, code in answers.items() if code == 200] == [path]
    assert called == ["one here", "two here"]


def test_what_an_option_needs_may_stand_in_the_configuration() -> None:
    graceful = Graceful(keyfile="key.pem")
    graceful.init_app(configured(GRACEFUL_CERTFILE="cert.pem"))


def test_the_extension_keeps_no_app() -> None:
    graceful = Graceful()
    app = Flask("short-lived")
    graceful.init_app(app)
    server = make_server(app, {"bind": ":0"})
    gone = weakref.ref(app)
    del app, server
    gc.collect()
    assert gone() is None
    assert graceful._points.apps == []


def test_an_app_that_can_not_have_the_extension_is_left_as_it_was(app: Flask) -> None:
    app.register_blueprint(create_blueprint())
    graceful = Graceful(livez=True, status_page=True)
    with pytest.raises(ValueError, match="already registered"):
        graceful.init_app(app)
    assert app.test_client().get("/livez").status_code == 404
    assert "graceful" not in app.extensions
    assert graceful._points.apps == []


def test_the_nearest_word_counts(app: Flask) -> None:
    app.config.update(GRACEFUL_THREADS=3, GRACEFUL_HAMMER_TIME=4, GRACEFUL_IDLE_GRACE=5)
    Graceful(app, hammer_time=6, idle_grace=7)
    known = make_server(app, {"idle_grace": 8}).settings
    assert (known.threads, known.hammer_time, known.idle_grace) == (3, 6, 8)
    assert known.old_generations == 3


def test_each_setting_has_a_key_and_words_are_read(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Flask takes them from the environment."""
    values = {
        settings.SECONDS: ("2.5", 2.5),
        settings.BYTES: ("5000", 5000),
        settings.COUNT: ("2", 2),
        settings.PATH: ("/run/x", "/run/x"),
        settings.SWITCH: ("on", True),
    }
    for row in settings.rows():
        monkeypatch.setenv(f"FLASK_GRACEFUL_{row.name.upper()}", values[row.unit][0])
    monkeypatch.setenv("FLASK_GRACEFUL_READ_TIMEOUT", "off")
    monkeypatch.setenv("FLASK_GRACEFUL_LIVEZ", "on")
    monkeypatch.setenv("FLASK_GRACEFUL_READYZ", "off")
    monkeypatch.setenv("FLASK_GRACEFUL_STATUS_PAGE", "on")
    monkeypatch.setenv("FLASK_GRACEFUL_STATUS_TOKEN", "123456")
    monkeypatch.setenv("FLASK_GRACEFUL_BIND", '["127.0.0.1:0", "[::1]:0"]')
    # The server's own.
    monkeypatch.setenv("FLASK_GRACEFUL_POLLER", "portable")
    app.config.from_prefixed_env()
    Graceful(app)
    server = make_server(app, {})
    for row in settings.rows():
        expected = 0 if row.name == "read_timeout" else values[row.unit][1]
        assert getattr(server.settings, row.name) == expected, row.name
    assert [one.text for one in server.addresses] == ["127.0.0.1:0", "[::1]:0"]
    client = app.test_client()
    assert [client.get(path).status_code for path in ("/livez", "/readyz")] == [200, 404]
    assert client.get("/graceful/?token=123456").status_code == 200


@pytest.mark.parametrize(
    ("name", "host", "port", "expected"),
    [
        (None, None, None, "127.0.0.1:5000"),
        ("web.test:8080", None, None, "web.test:8080"),
        ("web.test", None, None, "web.test:5000"),
        ("web.test:8080", "0.0.0.0", None, "0.0.0.0:8080"),
        ("web.test:8080", None, 0, "web.test:0"),
        (None, "::", 8000, "[::]:8000"),
        (None, "unix:///run/x.sock", 8000, "unix:/run/x.sock"),
    ],
)
def test_addresses_are_those_of_app_run(
    app: Flask, name: str | None, host: str | None, port: int | None, expected: str
) -> None:
    app.config["SERVER_NAME"] = name
    assert default_address(app, host, port) == expected


# What is wrong.


def configured(**config: t.Any) -> Flask:
    app = Flask("web")
    app.config.update(config)
    return app


def with_hook_too_late() -> None:
    app = Flask("web")
    graceful = Graceful(app)
    make_server(app, {})
    graceful.on_draining(print)


def run_in_a_request() -> None:
    app = Flask("web")
    graceful = Graceful(app)
    with app.test_request_context():
        graceful.run(app)


def run_in_a_thread() -> None:
    app = Flask("web")
    graceful = Graceful(app)
    errors: list[RuntimeError] = []

    def run() -> None:
        try:
            graceful.run(app)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(DEADLINE)
    raise errors[0]


def twice() -> None:
    app = Flask("web")
    Graceful(app)
    Graceful(app)


def in_a_request_of_another() -> None:
    with Flask("other").test_request_context():
        assert Graceful().shutting_down


def run(**options: t.Any) -> None:
    app = Flask("web")
    Graceful(app).run(app, **options)


@pytest.mark.parametrize(
    ("kind", "message", "wrong"),
    [
        (RuntimeError, "'web' has the extension already: use either Graceful(app) or", twice),
        (RuntimeError, "call graceful.init_app(app)", lambda: Graceful().run(Flask("web"))),
        (RuntimeError, "register it before run()", with_hook_too_late),
        (RuntimeError, "while a request is served: call it once", run_in_a_request),
        (RuntimeError, "in another one, use Server(addr, app)", run_in_a_thread),
        (RuntimeError, "`with app.app_context():`", lambda: Graceful().shutting_down),
        (RuntimeError, "'other' does not have the extension", in_a_request_of_another),
        (TypeError, "expected a Flask application, got 'web'", lambda: Graceful("web")),
        (
            TypeError,
            "run(): expected a Flask application, got 'web'; the extension keeps none: graceful.ru",
            lambda: Graceful().run("web"),
        ),
        (
            TypeError,
            "run(): expected a Flask application; the extension keeps none: graceful.run(app)",
            lambda: Graceful(Flask("web")).run(port=8000),
        ),
        (TypeError, "expected a function, got 7", lambda: Graceful().on_shutdown(7)),
        (
            TypeError,
            "before_begin: expected a function, got None; a decorator takes no parentheses",
            lambda: Graceful().before_begin(),
        ),
        (
            TypeError,
            "before_begin: <lambda>() can't be called with the address: too many",
            lambda: Graceful().before_begin(lambda: None),
        ),
        (
            TypeError,
            "on_draining: <lambda>() can't be called without arguments: missing a required arg",
            lambda: Graceful().on_draining(lambda app: None),
        ),
        (
            TypeError,
            "unknown key 'GRACEFUL_THREDS' in app.config; did you mean 'GRACEFUL_THREADS'?",
            lambda: Graceful(configured(GRACEFUL_THREDS=3)),
        ),
        (
            TypeError,
            "unknown key 'GRACEFUL_PROT' in app.config; known: GRACEFUL_BIND, GRACEFUL_CERT",
            lambda: Graceful(configured(GRACEFUL_PROT=3)),
        ),
        (
            TypeError,
            "'GRACEFUL_HOST' in app.config; did you mean 'GRACEFUL_BIND', or host= and port= of",
            lambda: Graceful(configured(GRACEFUL_HOST="::1")),
        ),
        (
            TypeError,
            "unknown option 'port'; did you mean 'bind', or host= and port= of run()?",
            lambda: Graceful(port=3, app=Flask("web")),
        ),
        (
            ValueError,
            "status_token does nothing without status_page: set GRACEFUL_STATUS_PAGE too",
            lambda: Graceful(configured(GRACEFUL_STATUS_TOKEN="secret")),
        ),
        (
            ValueError,
            "readyz_during_delay does nothing without readyz: set GRACEFUL_READYZ too",
            lambda: Graceful(Flask("web"), readyz_during_delay=True),
        ),
        (
            ValueError,
            "GRACEFUL_THREADS in app.config: expected 1 to 10000, got 0",
            lambda: Graceful(configured(GRACEFUL_THREADS=0)),
        ),
        (
            ValueError,
            "GRACEFUL_READ_TIMEOUT in app.config: expected a number of seconds, got 'soon'",
            lambda: Graceful(configured(GRACEFUL_READ_TIMEOUT="soon")),
        ),
        (
            TypeError,
            "GRACEFUL_LIVEZ in app.config: expected True, False or a path such as '/livez'",
            lambda: Graceful(configured(GRACEFUL_LIVEZ="alive")),
        ),
        (
            TypeError,
            "GRACEFUL_READYZ_DURING_DELAY in app.config: expected True or False, got 'maybe'",
            lambda: Graceful(configured(GRACEFUL_READYZ_DURING_DELAY="maybe")),
        ),
        (
            ValueError,
            "GRACEFUL_BIND in app.config: address 'no address'",
            lambda: Graceful(configured(GRACEFUL_BIND="no address")),
        ),
        (
            ValueError,
            "'/ok' is given for two of livez, readyz and metrics",
            lambda: Graceful(Flask("web"), livez="/ok", readyz="/ok"),
        ),
        (
            TypeError,
            "unknown option 'threds'; did you mean 'threads'?",
            lambda: Graceful(threds=3),
        ),
        (ValueError, "threads: expected 1 to 10000, got 0", lambda: Graceful(threads=0)),
        (TypeError, "livez: expected True, False or a path", lambda: Graceful(livez="alive")),
        (TypeError, "unknown option 'prot'; known: bind, ", lambda: run(prot=3)),
        (TypeError, "give either bind, or host and port", lambda: run(bind=":0", port=3)),
        (TypeError, "threaded is an option of Werkzeug's server; req", lambda: run(threaded=True)),
        (TypeError, "; debug=True restarts when code changes", lambda: run(use_reloader=True)),
        (ValueError, "port: expected 0 to 65535, got 99999", lambda: run(port=99999)),
        (ValueError, "port: expected a whole number, got 'abc'", lambda: run(port="abc")),
        (TypeError, "port: expected a whole number, got [1]", lambda: run(port=[1])),
        (TypeError, "host: expected a text such as '127.0.0.1', got 8000", lambda: run(host=8000)),
        (ValueError, "host: address '[a:5000': expected host:port", lambda: run(host="[a")),
        (TypeError, "ssl_context: expected an ssl.SSLContext", lambda: run(ssl_context="ad")),
        (ValueError, "leave out workers, or debug", lambda: run(debug=True, workers=3)),
        (ValueError, "keyfile is given without certfile", lambda: run(keyfile="key.pem")),
    ],
)
def test_misuse_is_told_with_the_remedy(
    kind: type[Exception], message: str, wrong: t.Callable[[], object]
) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        wrong()


# The package.


def test_the_server_needs_no_flask() -> None:
    """And who asks for the extension without Flask is told so."""
    program = """
import sys
for name in ("flask", "blinker", "click", "werkzeug"):
    sys.modules[name] = None
from flask_graceful import *
import flask_graceful
assert GracefulServer and "Graceful" in dir(flask_graceful)
for name in ("Graceful", "draining_started"):
    try:
        getattr(flask_graceful, name)
    except ImportError as error:
        print(error)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    remedy = "needs Flask: pip install 'flask-graceful[flask]'"
    assert done.stdout.splitlines() == [f"Graceful {remedy}", f"draining_started {remedy}"]


def test_the_package_imports_no_flask_and_no_prometheus_client_unasked() -> None:
    program = """
import sys
import flask_graceful, flask_graceful.restart
assert "flask" not in sys.modules
from flask import Flask
from flask_graceful import Graceful
Graceful(Flask("web"), livez=True)
assert "prometheus_client" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_example_runs(tmp_path: Path, live: t.Callable[..., Live]) -> None:
    text = (ROOT / "examples" / "flask_app.py").read_text()
    (tmp_path / "hello.py").write_text(
        text.replace("graceful.run(app)", "graceful.run(app, port=0)")
    )
    one = live("hello.py", cwd=tmp_path)
    port, pid = map(int, one.wait_for(BANNER).groups())
    with Client(("127.0.0.1", port)) as client:
        assert client.get("/readyz")[0] == 200
        client.send(b"GET /clock HTTP/1.1\r\nHost: a\r\n\r\n").response(head_only=True)
        assert client._until(b" ").endswith(b"data:")
        os.kill(pid, signal.SIGTERM)
        assert b"event: restart" in client.rest()
    one.wait_for(f"process {pid} takes no new connections")
    one.wait_for(f"process {pid} has served its last request")


def test_a_server_of_another_kind_is_no_trouble(app: Flask, running: Start) -> None:
    """An app with the extension, served by who knows nothing of it."""
    graceful = Graceful(app, livez=True, readyz=True)
    about(graceful, app)
    one = running(app)
    assert type(one.server) is Server and not isinstance(one.server, GracefulServer)
    with one.connect() as client:
        assert [client.get(path)[0] for path in ("/livez", "/readyz", "/about")] == [200] * 3


def test_the_status_page_is_there_when_asked_for(app: Flask) -> None:
    Graceful(app, status_page=True, status_token="secret")
    client = app.test_client()
    assert [client.get(path).status_code for path in ("/graceful/", "/graceful/?token=secret")] == [
        404,
        200,
    ]


def test_the_status_page_can_be_switched_off_whatever_else_is_set(app: Flask) -> None:
    app.config["GRACEFUL_STATUS_PAGE"] = "off"
    Graceful(app, status_token="secret")
    app.debug = True
    assert app.test_client().get("/graceful/").status_code == 404
