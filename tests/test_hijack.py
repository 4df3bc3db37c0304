"""Connections that the application takes over: `environ["werkzeug.socket"]`."""

from __future__ import annotations

import logging
import socket
import threading
import typing as t

import pytest
import simple_websocket
from conftest import DEADLINE, Client, Running, wait_until
from flask import Flask, request
from flask_graceful import Connection, ConnState, ShutdownTimeout
from flask_sock import Sock
from test_server import GET, Start, hello
from test_server_rows import Record
from test_tls import Begin, files, secure  # noqa: F401  fixtures

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


class Echo:
    """An app that takes its connection over and sends back what comes, until the client ends."""

    def __init__(self, error: BaseException | None = None, greeting: bytes = SWITCH) -> None:
        self.error = error
        self.greeting = greeting
        self.taken = threading.Event()
        self.over = threading.Event()
        self.thread_name = ""

    def __call__(self, environ: t.Any, start_response: t.Any) -> t.Any:
        if environ["PATH_INFO"] == "/hello":
            return hello(environ, start_response)
        try:
            sock = environ["werkzeug.socket"]
            sock.sendall(self.greeting)
            self.taken.set()
            while data := sock.recv(100):
                sock.sendall(data)
        finally:
            self.over.set()
        if self.error is not None:
            raise self.error
        start_response("200 OK", [])
        return [b"nobody sees this"]


@pytest.fixture(params=["best", "portable"], autouse=True)
def poller(request: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_GRACEFUL_POLLER", request.param)


def switch(client: Client, more: bytes = b"") -> Client:
    """Have the connection taken over."""
    client.send(GET + more)
    assert client._exactly(len(SWITCH)) == SWITCH
    return client


def echoed(client: Client, data: bytes) -> bool:
    return client.send(data)._exactly(len(data)) == data


def test_S18_neither_tracked_nor_waited_for_nor_closed(running: Start) -> None:
    app = Echo()
    one = running(app)
    with one.connect() as client:
        switch(client)
        assert one.server.connections() == []
        one.server.shutdown(timeout=0)
        one.join()
        assert echoed(client, b"after shutdown")
        one.server.close()
        assert echoed(client, b"after close")
        client.sock.shutdown(socket.SHUT_WR)
        # Nothing of what the app answered.
        assert client.rest() == b""
    assert app.over.wait(DEADLINE)


def test_S18_a_request_that_is_waited_for_may_become_hijacked(running: Start) -> None:
    entered, leave = threading.Event(), threading.Event()

    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        entered.set()
        assert leave.wait(DEADLINE)
        environ["werkzeug.socket"].sendall(SWITCH)
        assert environ["werkzeug.socket"].recv(9) == b""
        return hello(environ, start_response)

    one = running(app)
    with one.connect().send(GET) as client:
        assert entered.wait(DEADLINE)
        with pytest.raises(ShutdownTimeout):
            one.server.shutdown(timeout=0.01)
        leave.set()
        assert client._exactly(len(SWITCH)) == SWITCH
        one.server.shutdown(timeout=DEADLINE)


@pytest.mark.parametrize("error", [None, ConnectionError("gone"), ValueError("broken")])
def test_K4_F6_new_active_hijacked_and_no_word_more(
    running: Start, caplog: pytest.LogCaptureFixture, error: BaseException | None
) -> None:
    """An error other than ConnectionError is logged, as Go logs a panic."""
    record = Record()
    with running(Echo(error), conn_state=record).connect() as client:
        switch(client).sock.shutdown(socket.SHUT_WR)
        assert client.rest() == b""
    logged = [entry.getMessage().partition(": ")[2] for entry in caplog.records]
    if isinstance(error, ValueError):
        assert [line.rpartition(": ")[2] for line in logged] == ["broken"]
    else:
        assert logged == []
    assert record.states == ["new", "active", "hijacked"]


def test_K7_the_hook_finds_it_untracked(running: Start) -> None:
    seen: list[bool] = []
    one = running(Echo())

    def hook(connection: Connection, state: ConnState) -> None:
        if state is ConnState.HIJACKED:
            seen.append(connection in one.server.connections())

    one.server.conn_state = hook
    with one.connect() as client:
        switch(client)
    assert seen == [False]


def test_TM17_no_deadline_is_left(running: Start) -> None:
    options = {"read_timeout": 0.2, "write_timeout": 0.2, "idle_timeout": 0.2}
    with running(Echo(), **options).connect() as client:
        switch(client)
        assert not client.is_closed(0.6)
        assert echoed(client, b"late")


def test_Y5_bytes_behind_the_head_come_first(running: Start) -> None:
    early = b"e" * 250
    with running(Echo()).connect() as client:
        switch(client, early)
        assert client._exactly(len(early)) == early
        assert echoed(client, b"next")


def test_Y5_after_the_first_blocks_of_a_response(running: Start) -> None:
    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        start_response("200 OK", [])
        yield b"framed"
        environ["werkzeug.socket"].sendall(b"raw")
        yield b"dropped"

    with running(app).connect().send(GET) as client:
        assert b"chunked" in client._until(b"\r\n\r\n")
        assert client.rest() == b"6\r\nframed\r\nraw"


def test_Y5_the_body_can_t_be_read_any_more(running: Start) -> None:
    errors: list[OSError] = []

    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        sock = environ["werkzeug.socket"]
        sock.sendall(b"taken ")
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            errors.append(error)
        sock.sendall(sock.recv(9))
        return hello(environ, start_response)

    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
    with running(app).connect().send(post) as client:
        assert client.rest() == b"taken body"
    assert "taken the connection over" in str(errors[0])


def test_looking_at_it_takes_nothing_and_too_late_is_an_error(running: Start) -> None:
    kept: list[t.Any] = []

    class Blocks(list[bytes]):
        def close(self) -> None:
            with pytest.raises(ConnectionError, match="the response is complete"):
                kept[-1].send(b"x")

    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        kept.append(environ["werkzeug.socket"])
        assert repr(kept[-1])
        kept[-1].settimeout(5)
        assert kept[-1].gettimeout() == 5
        with pytest.raises(ValueError, match="expected a positive number"):
            kept[-1].settimeout(0)
        start_response("200 OK", [])
        return Blocks([b"block"])

    record = Record()
    with running(app, conn_state=record).connect() as client:
        assert client.get()[2] == client.get()[2] == b"block"
        record.wait_for("idle")
        with pytest.raises(ConnectionError, match="the request is over"):
            kept[0].recv(1)
        kept[0].close()
        assert client.get()[2] == b"block"
    # One for all requests of a connection.
    assert kept[0] is kept[1] is kept[2]


def test_it_is_a_socket_that_waits(running: Start) -> None:
    """Its user needs no patience of his own, and sees time-outs and its end as with any socket."""
    found: dict[str, t.Any] = {}
    size = 8 << 20

    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        sock = environ["werkzeug.socket"]
        found["fileno"] = sock.fileno() >= 0
        found["peer"] = sock.getpeername() == (environ["REMOTE_ADDR"], int(environ["REMOTE_PORT"]))
        found["name"] = sock.getsockname()[1] == int(environ["SERVER_PORT"])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        found["sent"] = sock.send(b"x" * size)
        buffer = bytearray(10)
        found["into"] = sock.recv_into(buffer), bytes(buffer[:2])
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError, match="timed out"):
            sock.recv(1)
        sock.shutdown(socket.SHUT_WR)
        sock.close()
        sock.close()
        found["closed"] = sock.fileno()
        with pytest.raises(ConnectionError, match="the socket is closed"):
            sock.recv(1)
        return hello(environ, start_response)

    one = running(app)
    with one.connect().send(GET) as client:
        assert client._exactly(size) == b"x" * size
        client.send(b"in")
        assert client.rest() == b""
    wait_until(lambda: "closed" in found, "the app's end")
    assert found == {
        "fileno": True, "peer": True, "name": True,
        "sent": size, "into": (2, b"in"), "closed": -1,
    }  # fmt: skip


def test_closing_wakes_a_thread_that_receives(running: Start) -> None:
    ended: list[bytes] = []
    threads: list[threading.Thread] = []

    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        sock = environ["werkzeug.socket"]
        sock.sendall(SWITCH)
        thread = threading.Thread(target=lambda: ended.append(sock.recv(1)))
        threads.append(thread)
        thread.start()
        wait_until(lambda: sock._taken._users == 1, "the thread waits")
        return hello(environ, start_response)

    with running(app).connect() as client:
        switch(client)
        assert client.rest() == b""
        # The client's end is still open: it is the server's close that wakes.
        threads[0].join(DEADLINE)
        assert ended == [b""]


def test_a_hijacked_connection_keeps_no_place_of_a_request(running: Start) -> None:
    app = Echo()
    one = running(app, threads=2)
    clients = [switch(one.connect()) for _ in range(6)]
    with one.connect() as client:
        assert client.get("/hello")[2] == b"hello"
    for other in clients:
        assert echoed(other, b"x")
        other.sock.close()


def test_KA3_an_upgrade_has_its_own_connection_header(running: Start) -> None:
    one = running(Echo())
    one.server.set_keep_alives_enabled(False)
    with one.connect().send(GET) as client:
        assert client._until(b"\r\n\r\n") + b"\r\n\r\n" == SWITCH
        assert echoed(client, b"x")


def test_over_tls(secure: Begin) -> None:  # noqa: F811
    app = Echo()
    one = secure(app)
    with one.connect() as client:
        switch(client, b"early")
        assert client._exactly(5) == b"early"
        one.server.shutdown(timeout=0)
        data = bytes(range(256)) * 1000
        # In pieces: neither side's OpenSSL bears two threads, so nobody may send before it reads.
        for start in range(0, len(data), 16384):
            piece = data[start : start + 16384]
            client.sock.sendall(piece)
            assert client._exactly(len(piece)) == piece
        client.sock.unwrap().close()
    assert app.over.wait(DEADLINE)


def test_over_tls_the_end_is_said(secure: Begin) -> None:  # noqa: F811
    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        environ["werkzeug.socket"].sendall(b"all")
        return hello(environ, start_response)

    with secure(app).connect() as client:
        # The client takes an end without close_notify for an error.
        assert client.send(GET).rest() == b"all"


def flask_app() -> Flask:
    app = Flask(__name__)
    app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 0.5}
    sock = Sock(app)

    @sock.route("/echo")
    def echo(ws: t.Any) -> None:
        while (data := ws.receive()) != "bye":
            ws.send(data)

    @app.get("/")
    def index() -> str:
        return request.method

    return app


class WebSocket(simple_websocket.Client):
    def wait_closed(self) -> None:
        with pytest.raises(simple_websocket.ConnectionClosed):
            self.receive(timeout=DEADLINE)
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()


def web_socket(one: Running) -> WebSocket:
    return WebSocket(f"ws://127.0.0.1:{one.address[1]}/echo")


@pytest.mark.parametrize("who_ends", ["client", "server"])
def test_S18_flask_sock(running: Start, caplog: pytest.LogCaptureFixture, who_ends: str) -> None:
    record = Record()
    one = running(flask_app().wsgi_app, conn_state=record)
    ws = web_socket(one)
    large = "x" * 100_000
    for message in ("hello", large, b"bytes"):
        ws.send(message)
        assert ws.receive(timeout=DEADLINE) == message
    with one.connect() as client:
        assert client.get()[2] == b"GET"
    one.server.shutdown(timeout=DEADLINE)
    one.join()
    # Pings go out and are answered meanwhile.
    assert ws.receive(timeout=1.2) is None
    ws.send("still here")
    assert ws.receive(timeout=DEADLINE) == "still here"
    if who_ends == "client":
        ws.close()
        ws.thread.join(DEADLINE)
    else:
        ws.send("bye")
        ws.wait_closed()
        assert ws.close_reason == 1000
    assert record.states[:3] == ["new", "active", "hijacked"]
    assert [entry for entry in caplog.records if entry.levelno > logging.INFO] == []


def test_flask_sock_answers_what_is_no_websocket(running: Start) -> None:
    with running(flask_app()).connect() as client:
        assert client.get("/echo")[0] == 400
        assert client.get("/")[2] == b"GET"
