"""A user's program, for a type checker; it is never run.

Each line with a `type: ignore` is a mistake that the checker has to find: under `--strict`, an
ignored error that is none is an error.
"""

from __future__ import annotations

import signal
import ssl
import threading
import typing as t

from flask import Flask, Response
from flask_graceful import (
    POST_SIGNAL,
    Connection,
    ConnState,
    Graceful,
    GracefulServer,
    ListenError,
    RestartError,
    RunningRequest,
    Server,
    ServerClosed,
    Settings,
    ShutdownTimeout,
    State,
    draining_started,
    has_parent,
    run,
    serve,
    serving_started,
)
from flask_graceful.statuspage import create_blueprint

app = Flask(__name__)


def on_state(connection: Connection, state: ConnState) -> None:
    print(connection.peer_name().upper(), state is ConnState.IDLE)


server = GracefulServer(
    [":8000", "unix:/run/hello.sock"],
    app,
    conn_state=on_state,
    conn_context=lambda entries, connection: {**entries, "peer": connection.peer_name()},
    ssl_context=ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
    restart_signal=signal.SIGUSR2,
    read_timeout=60,
    hammer_time=10.5,
    pid_file="/run/hello.pid",
    workers=2,
)


@server.before_begin
def log_address(addr: str) -> None:
    print(addr)


@server.before_restart
def check() -> None:
    if has_parent():
        raise RuntimeError("not now")


@server.before_shutdown
def may_stop() -> bool:
    return True


# As the article does.
server.before_begin = log_address
server.register_signal_hook(POST_SIGNAL, signal.SIGUSR1, server.reload_certificate)
server.register_on_shutdown(lambda: print("ends"))


def work(times: int) -> None:
    with server.track():
        print(times)


def ask() -> None:
    thread: threading.Thread = server.spawn(work, 3)
    requests: list[RunningRequest] = server.running_requests()
    ages: list[float] = [one.age for one in requests]
    state: State | None = server.state
    file: int | None = server.inherited_file("counter")
    settings: Settings = server.settings
    seconds: float = settings.hammer_time
    print(thread, ages, state, file, seconds)
    try:
        server.restart(wait=True)
    except RestartError as error:
        print(error)
    is_first: bool = server.stop(timeout=5, wait=True)
    print(is_first)


def live() -> int:
    try:
        server.listen_and_serve()
    except ServerClosed as error:
        print(error)
    except ListenError:
        return 1
    return 0


def go_s() -> None:
    plain = Server("127.0.0.1:8000", app)
    thread = threading.Thread(target=plain.listen_and_serve)
    thread.start()
    try:
        plain.shutdown(timeout=5)
    except ShutdownTimeout:
        plain.close()


def together() -> None:
    serve(server, GracefulServer(":8001", app))
    run(":0", 10, app)


def plain_wsgi(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    return [b""]


GracefulServer(":0", plain_wsgi)

# The extension.
graceful = Graceful(app, readyz=True, threads=8)
graceful.init_app(Flask("another"))
app.register_blueprint(create_blueprint("secret", is_open=True))


@graceful.before_begin
def announce(addr: str) -> None:
    print(addr)


@graceful.before_restart
def look() -> None:
    announce("here")


@graceful.on_draining
@graceful.on_shutdown
def leave() -> bool:
    return graceful.shutting_down


@draining_started.connect_via(app)
def on_draining(sender: Flask, **_: object) -> None:
    print(sender.name)


serving_started.connect(on_draining, app)


@app.get("/stream")
def stream() -> Response:
    ended: threading.Event = graceful.shutdown_event
    items: t.Iterator[str] = graceful.until_shutdown(["a", "b"], farewell="c")
    with graceful.track():
        thread: threading.Thread = graceful.spawn(work, 3)
    print(ended, thread)
    return Response(items)


def start() -> None:
    graceful.run(app, "127.0.0.1", 5000, debug=True, workers=2)


# Mistakes.
GracefulServer(8000, app)  # type: ignore[arg-type]
GracefulServer(":8000", "hello:app")  # type: ignore[arg-type]
GracefulServer(":8000")  # type: ignore[call-arg]
server.stop("now")  # type: ignore[arg-type]
server.restart(True)  # type: ignore[call-arg]
server.register_signal_hook("post", 1, check)  # type: ignore[arg-type]
server.before_begin(check)  # type: ignore[arg-type]
server.reload()  # type: ignore[attr-defined]
state_name: str = server.state  # type: ignore[assignment]
graceful.before_begin(check)  # type: ignore[type-var]
graceful.on_draining(announce)  # type: ignore[type-var]
announce(8000)  # type: ignore[arg-type]
graceful.run("web")  # type: ignore[arg-type]
create_blueprint(7)  # type: ignore[arg-type]
Graceful("web")  # type: ignore[arg-type]
