"""Rows of the specification on states, time-outs and accepting that have no better place."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import socket
import threading
import time
import typing as t
from pathlib import Path

import pytest
from conftest import DEADLINE, SLACK, Client, Live, wait_until
from flask_graceful import Connection, ConnState, Server, ServerClosed
from test_server import GET, Gate, Start, hello

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"


class Record:
    """The states of connections as they come, for `conn_state`."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self._news = threading.Condition()

    def __call__(self, connection: Connection, state: ConnState) -> None:
        with self._news:
            self.states.append(str(state))
            self._news.notify_all()

    def wait_for(self, last: str) -> list[str]:
        """All states, once the last one has come."""
        with self._news:
            assert self._news.wait_for(lambda: self.states[-1:] == [last], DEADLINE), self.states
            return self.states


def fail(environ: t.Any, start_response: t.Any) -> list[bytes]:
    raise ValueError("out of order")


class Listening(socket.socket):
    """A listening socket that counts how often it is closed, fails when told to, and can't be
    a key of anything."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0
        self.accept_error = self.close_error = 0
        self.bind(("127.0.0.1", 0))
        self.listen()
        self.address = self.getsockname()

    def __eq__(self, other: object) -> bool:
        raise AssertionError("two listeners were compared")

    def accept(self) -> t.Any:
        if self.accept_error:
            raise OSError(self.accept_error, "told to fail")
        return super().accept()

    def close(self) -> None:
        self.closed += 1
        super().close()
        if self.close_error:
            raise OSError(self.close_error, "told to fail")


class Serving:
    """One more listener that a server serves, in a thread of its own."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.error: BaseException | None = None
        self._server = server
        self._sock = sock
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def join(self) -> BaseException | None:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "serve() did not return"
        return self.error

    def _serve(self) -> None:
        try:
            self._server.serve(self._sock)
        except (ServerClosed, OSError) as error:
            self.error = error


def is_refused(address: t.Any) -> bool:
    try:
        Client(address).sock.close()
    except ConnectionRefusedError:
        return True
    return False


def test_L4_several_listeners_end_by_one_shutdown(running: Start) -> None:
    one = running(hello)
    socks = [Listening(), Listening()]
    servings = [Serving(one.server, sock) for sock in socks]
    for sock in socks:
        with Client(sock.address) as client:
            assert client.get()[2] == b"hello"
    one.server.shutdown(timeout=DEADLINE)
    assert [type(serving.join()) for serving in servings] == [ServerClosed, ServerClosed]
    assert [is_refused(sock.address) for sock in socks] == [True, True]


def test_L5_a_listener_is_closed_once(running: Start) -> None:
    one = running(hello)
    sock = Listening()
    serving = Serving(one.server, sock)
    with Client(sock.address) as client:
        client.get()
    one.server.shutdown(timeout=DEADLINE)
    one.server.close()
    serving.join()
    assert sock.closed == 1


def test_L8_shutdown_before_serve_runs_its_hooks_and_is_final() -> None:
    server = Server(":0", hello)
    ran = threading.Event()
    server.register_on_shutdown(ran.set)
    server.shutdown(timeout=0)
    assert ran.wait(DEADLINE)
    sock = Listening()
    assert isinstance(Serving(server, sock).join(), ServerClosed)
    assert sock.closed == 1


def test_L9_an_error_of_accepting_ends_serve_and_nothing_else(running: Start) -> None:
    one = running(hello)
    sock = Listening()
    serving = Serving(one.server, sock)
    with Client(sock.address) as old:
        assert old.get()[2] == b"hello"
        sock.accept_error = errno.EBADF
        with contextlib.suppress(ConnectionResetError), Client(sock.address) as other:
            error = serving.join()
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF
            assert other.is_closed()
        assert sock.closed == 1
        assert old.get()[2] == b"hello"
        again = Listening()
        serving = Serving(one.server, again)
        with Client(again.address) as client:
            assert client.get()[2] == b"hello"
    one.server.shutdown(timeout=DEADLINE)
    assert isinstance(serving.join(), ServerClosed)


def test_L10_a_listener_that_fails_to_close_is_logged(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    one = running(hello)
    sock = Listening()
    sock.close_error = errno.EIO
    serving = Serving(one.server, sock)
    with Client(sock.address) as client:
        client.get()
    one.server.shutdown(timeout=DEADLINE)
    assert isinstance(serving.join(), ServerClosed)
    assert [entry.getMessage().rpartition("] ")[2] for entry in caplog.records] == ["told to fail"]


def test_S1_the_order_of_a_shutdown(running: Start) -> None:
    one = running(gate := Gate())
    seen: list[bool] = []
    hooked = threading.Event()

    def hook() -> None:
        # Its listeners were closed before.
        seen.extend([one.server.is_stopping, is_refused(one.address)])
        hooked.set()

    one.server.register_on_shutdown(hook)
    with one.connect() as idle, one.connect() as busy:
        gate.leave.set()
        idle.get()
        gate.leave.clear()
        gate.wait()
        busy.send(GET)
        gate.wait()
        stopper = threading.Thread(target=one.server.shutdown)
        stopper.start()
        assert hooked.wait(DEADLINE)
        assert seen == [True, True]
        assert idle.is_closed()
        # What runs is waited for, last of all.
        assert stopper.is_alive()
        gate.leave.set()
        assert busy.response()[2] == b"late"
        stopper.join(DEADLINE)
        assert not stopper.is_alive()


def test_S12_a_pause_of_accepting_does_not_delay_a_shutdown(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    one = running(hello)
    sock = Listening()
    sock.accept_error = errno.EMFILE
    serving = Serving(one.server, sock)
    with Client(sock.address):
        wait_until(lambda: "retrying in 1s" in caplog.text, "a long pause")
        began = time.monotonic()
        one.server.shutdown(timeout=0)
        assert isinstance(serving.join(), ServerClosed)
        assert time.monotonic() - began < 0.8
    assert sock.closed == 1


def test_S16_closed_comes_for_idle_connections_too(running: Start) -> None:
    record = Record()
    one = running(hello, conn_state=record)
    with one.connect() as client:
        client.get()
        record.wait_for("idle")
        one.server.shutdown(timeout=DEADLINE)
        assert record.wait_for("closed") == ["new", "active", "idle", "closed"]


def test_C2_after_close_the_app_runs_on_and_closed_comes_at_its_end(running: Start) -> None:
    record, entered, leave = Record(), threading.Event(), threading.Event()
    errors: list[OSError] = []

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        entered.set()
        assert leave.wait(DEADLINE)
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            errors.append(error)
        return hello(environ, start_response)

    one = running(app, conn_state=record)
    with one.connect().send(HEAD) as client:
        assert entered.wait(DEADLINE)
        one.server.close()
        one.join()
        assert client.is_closed()
        assert record.states == ["new", "active"]
        leave.set()
        assert record.wait_for("closed") == ["new", "active", "closed"]
    assert len(errors) == 1


def test_K1_names_and_values() -> None:
    assert [(str(state), state.value) for state in ConnState] == [
        ("new", 0), ("active", 1), ("idle", 2), ("hijacked", 3), ("closed", 4),
        ("handed_over", 5),
    ]  # fmt: skip


def test_K2_a_hook_that_blocks_at_new_stalls_accepting(running: Start) -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    def hook(connection: Connection, state: ConnState) -> None:
        if state is ConnState.NEW:
            entered.release()
            assert leave.wait(20)

    one = running(hello, conn_state=hook)
    with one.connect().send(GET) as first:
        assert entered.acquire(timeout=20)
        with one.connect().send(GET) as second:
            assert not first.is_closed(0.1)
            assert not second.is_closed(0.1)
            assert not entered.acquire(blocking=False)
            leave.set()
            assert first.response()[0] == second.response()[0] == 200


def test_K3_active_comes_with_the_whole_head(running: Start) -> None:
    record = Record()
    with running(hello, conn_state=record).connect() as client:
        client.send(GET[:20])
        record.wait_for("new")
        assert not client.is_closed(0.2)
        assert record.states == ["new"]
        client.send(GET[20:])
        assert record.wait_for("idle") == ["new", "active", "idle"]


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 6000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        GET,
        b"GET / HTTP/1.0\r\n\r\n",
    ],
    ids=["400", "417", "431", "501", "panic", "1.0"],
)
def test_K4_K5_new_active_closed(running: Start, data: bytes) -> None:
    record = Record()
    app = fail if data == GET else hello
    with running(app, conn_state=record, max_header_bytes=1000).connect() as client:
        client.send(data)
        client.response()
        if data == GET:
            # Here a request that failed before its answer is answered, and its connection lives.
            assert record.wait_for("idle") == ["new", "active", "idle"]
            return
        client.rest()
    assert record.wait_for("closed") == ["new", "active", "closed"]


def test_K4_silence_is_new_closed(running: Start) -> None:
    record = Record()
    with running(hello, conn_state=record, read_header_timeout=0.2).connect() as client:
        assert client.is_closed()
    assert record.wait_for("closed") == ["new", "closed"]


def test_K5_without_keep_alive_there_is_no_idle(running: Start) -> None:
    record = Record()
    one = running(hello, conn_state=record)
    one.server.set_keep_alives_enabled(False)
    with one.connect() as client:
        client.get()
    assert record.wait_for("closed") == ["new", "active", "closed"]


def test_K5_a_stream_begun_before_shutdown_becomes_idle(running: Start) -> None:
    record, leave = Record(), threading.Event()

    def app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        start_response("200 OK", [])
        yield b"a"
        assert leave.wait(20)
        yield b"b"

    one = running(app, conn_state=record)
    with one.connect().send(GET) as client:
        assert b"close" not in client._until(b"\r\n\r\n")
        stopper = threading.Thread(target=one.server.shutdown)
        stopper.start()
        one.join()
        leave.set()
        assert client._chunks() == b"ab"
        assert client.is_closed()
        stopper.join(20)
    assert record.states == ["new", "active", "idle", "closed"]


def test_K6_half_a_next_head_at_the_end_of_waiting(running: Start) -> None:
    record = Record()
    with running(hello, conn_state=record, idle_timeout=5, read_timeout=0.3).connect() as client:
        client.get()
        client.send(b"GET ")
        assert client.is_closed()
    assert record.wait_for("closed") == ["new", "active", "idle", "closed"]


def test_K7_what_the_hook_of_the_end_sees(running: Start) -> None:
    seen: list[tuple[bool, ConnState]] = []
    one = running(hello)

    def hook(connection: Connection, state: ConnState) -> None:
        seen.append((connection in one.server.connections(), connection.state))

    one.server.conn_state = hook
    with one.connect() as client:
        client.get(headers="Connection: close\r\n")
    wait_until(lambda: len(seen) == 3, "closed")
    assert seen == [(True, ConnState.NEW), (True, ConnState.ACTIVE), (False, ConnState.CLOSED)]


def took(began: float, seconds: float) -> bool:
    return seconds - 0.05 < time.monotonic() - began < seconds + SLACK


def test_TM2_the_header_time_begins_with_the_first_bytes(running: Start) -> None:
    with running(hello, idle_timeout=5, read_header_timeout=0.4).connect() as client:
        client.get()
        assert not client.is_closed(0.6)
        began = time.monotonic()
        client.send(b"GET ")
        assert client.is_closed()
        assert took(began, 0.4)


def test_TM7_a_request_that_came_in_time_is_served_however_late(running: Start) -> None:
    """The only thread sees it after the idle time, together with the idle time's end."""
    gate = Gate()
    limit = 1.0
    one = running(hello, threads=1, idle_timeout=limit)
    with one.connect() as client, one.connect() as other:
        assert client.get()[2] == b"hello"
        idle_since = time.monotonic()
        one.server.app = gate
        other.send(GET)
        gate.wait()
        client.send(GET)
        assert time.monotonic() < idle_since + limit
        time.sleep(1.5 * limit)
        gate.leave.set()
        assert client.response()[2] == other.response()[2] == b"late"
        assert client.is_closed()


def test_TM3_TM9_negative_is_off(running: Start) -> None:
    options = {"read_header_timeout": -1, "idle_timeout": -1, "read_timeout": -1}
    with running(hello, **options).connect() as client:
        client.get()
        assert not client.is_closed(0.2)
        client.send(GET[:9])
        assert not client.is_closed(0.2)
        client.send(GET[9:])
        assert client.response()[0] == 200


def test_TM4_the_head_may_take_its_own_time_and_the_body_has_its_own(running: Start) -> None:
    errors: list[float] = []

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError:
            errors.append(time.monotonic())
        return hello(environ, start_response)

    one = running(app, read_timeout=0.4, read_header_timeout=0.8)
    with one.connect() as client:
        began = time.monotonic()
        client.send(HEAD[:20])
        assert client.is_closed()
        assert took(began, 0.8)
    with one.connect() as client:
        began = time.monotonic()
        client.send(HEAD).rest()
        assert began + 0.35 < errors[0] < began + 0.4 + SLACK


def test_TM10_write_timeout_counts_from_the_head_for_each_request(running: Start) -> None:
    gates = [Gate() for _ in range(3)]

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            environ["wsgi.input"].read()
            return hello(environ, start_response)
        return gates[int(environ["QUERY_STRING"])](environ, start_response)

    one = running(app, write_timeout=1)
    with one.connect() as client:
        for i, gate in enumerate(gates):
            threading.Timer(0.4, gate.leave.set).start()
            assert client.get(f"/?{i}")[2] == b"late"
        # It does not limit idle time.
        assert not client.is_closed(1.2)
        # It includes the upload: the answer comes too late.
        client.send(HEAD)
        assert not client.is_closed(1.2)
        assert client.send(b"12345").rest() == b""


def test_TM11_TM12_an_answer_after_write_timeout_is_lost(running: Start) -> None:
    gate = Gate()
    with running(gate, write_timeout=0.2).connect().send(GET) as client:
        gate.wait()
        assert not client.is_closed(0.4)
        gate.leave.set()
        assert client.rest() == b""


def test_TM11_what_was_sent_before_write_timeout_arrives(running: Start) -> None:
    late = threading.Event()

    def app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        start_response("200 OK", [])
        yield b"early"
        assert late.wait(20)
        yield b"late"

    with running(app, write_timeout=0.2).connect().send(GET) as client:
        client._until(b"early")
        assert client.buffer == b"\r\n"
        assert not client.is_closed(0.4)
        late.set()
        assert client.rest() == b"\r\n"


@pytest.mark.parametrize("data", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nFoo", GET[:-2]])
def test_TM13_TM14_a_time_out_is_silent(
    running: Start, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    with running(hello, read_header_timeout=0.2).connect() as client:
        assert client.send(data).is_closed()
    assert caplog.records == []


def test_TM15_a_client_that_stops_within_its_head(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    one = running(hello)
    with one.connect() as client:
        client.sock.shutdown(socket.SHUT_WR)
        assert client.is_closed()
    with one.connect().send(GET[:-2]) as client:
        client.sock.shutdown(socket.SHUT_WR)
        assert client.response()[0] == 400
        assert client.rest() == b""
    with one.connect() as client:
        client.get()
        client.send(b"G").sock.shutdown(socket.SHUT_WR)
        assert client.response()[0] == 400
    assert caplog.records == []


CROWDED = """
import logging, os, resource, time
from flask_graceful import Server
from flask_graceful.listeners import listen

logging.basicConfig(format="%(created)f %(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

def app(environ, start_response):
    start_response("200 OK", [])
    return [repr(time.process_time()).encode()]

server = Server("127.0.0.1:0", app)
listener = listen(server.address)
print("port", listener.port, flush=True)
server.serve(listener)
"""


def test_Y1_F4_descriptors_run_out_and_come_back(
    live: t.Callable[..., Live], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(CROWDED)
    one = live("program.py", cwd=tmp_path)
    address = ("127.0.0.1", int(one.wait_for(r"^port (\d+)")[1]))
    with Client(address) as kept:
        before = float(kept.get()[2])
        crowd = [Client(address) for _ in range(60)]
        pattern = r"^([\d.]+) http: Accept error: .*Too many open files.*; retrying in (\S+)$"
        one.wait_for(pattern, 10)
        used = float(kept.get()[2]) - before
        lines = re.findall(pattern, one.log, re.MULTILINE)[:10]
        pauses = [5, 10, 20, 40, 80, 160, 320, 640]
        assert [text for _, text in lines] == [f"{pause}ms" for pause in pauses] + ["1s", "1s"]
        times = [float(moment) for moment, _ in lines]
        for pause, began, ended in zip([*pauses, 1000], times, times[1:], strict=False):
            assert pause / 1000 - 0.001 < ended - began < pause / 1000 + 0.2
        # 2.3 seconds have passed: under 5 % of a CPU.
        assert used < 0.05 * (times[-1] - times[0]) + 0.02
        for client in crowd:
            client.sock.close()
        with Client(address) as fresh:
            assert fresh.get()[0] == 200
        # The pause begins anew.
        crowd = [Client(address) for _ in range(60)]
        one.wait_for(r"retrying in 5ms$", 2)
        for client in crowd:
            client.sock.close()


def test_Y2_options_of_accepted_sockets(running: Start) -> None:
    one = running(hello)
    with one.connect():
        (connection,) = wait_until(one.server.connections, "accepted")
        sock = connection._wire.sock
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 15


def entries(environ: t.Any, start_response: t.Any) -> list[bytes]:
    start_response("200 OK", [])
    return [repr({key: environ[key] for key in ("a", "b") if key in environ}).encode()]


def test_Y3_contexts_are_in_environ_and_do_not_leak(running: Start) -> None:
    given: list[t.Any] = []
    order: list[str] = []

    def base(listener: t.Any) -> dict[str, t.Any]:
        given.append(listener)
        return {"a": "base"}

    def conn(entries: dict[str, t.Any], connection: Connection) -> dict[str, t.Any]:
        order.append("context")
        assert entries["a"] == "base"
        assert isinstance(entries["flask_graceful.server"], Server)
        assert "b" not in entries
        # Changing them is no way to reach other connections.
        entries["b"] = "leak"
        return {"b": 1} if connection.peer[1] in chosen else {}

    chosen: set[int] = set()
    one = running(entries, base_context=base, conn_context=conn)
    assert [listener.fileno() >= 0 for listener in given] == [True]
    assert isinstance(given[0], socket.socket)
    order.clear()
    one.server.conn_state = lambda connection, state: order.append(str(state))
    with one.connect() as plain:
        assert plain.get()[2] == b"{'a': 'base'}"
        assert plain.get()[2] == b"{'a': 'base'}"
        # Before the hook of the new state.
        assert order[:2] == ["context", "new"]
        order.clear()
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            chosen.add(sock.getsockname()[1])
            sock.connect(one.address)
            sock.sendall(GET)
            assert sock.recv(65536).endswith(b"{'a': 'base', 'b': 1}")
        assert plain.get()[2] == b"{'a': 'base'}"


def test_Y3_no_context_is_an_error() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with pytest.raises(TypeError, match=r"^BaseContext returned a nil context$"):
            Server(":0", hello, base_context=lambda listener: None).serve(sock)  # type: ignore
        assert sock.fileno() == -1
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        server = Server(":0", hello, conn_context=lambda entries, connection: None)  # type: ignore
        with Client(sock.getsockname()) as client:
            with pytest.raises(TypeError, match=r"^ConnContext returned nil$"):
                server.serve(sock)
            assert client.is_closed()
        assert sock.fileno() == -1
        server.close()


def test_Y3_a_context_that_fails_costs_its_connection_only(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def conn(entries: dict[str, t.Any], connection: Connection) -> dict[str, t.Any]:
        if is_bad:
            raise ValueError("not today")
        return {}

    is_bad = False
    one = running(hello, conn_context=conn)
    is_bad = True
    with caplog.at_level(logging.ERROR), one.connect() as client:
        assert client.is_closed()
    assert "not today" in caplog.text
    is_bad = False
    with one.connect() as client:
        assert client.get()[0] == 200


def test_Y4_environ_has_the_server_and_the_local_address(running: Start) -> None:
    seen: list[t.Any] = []

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        seen.append(environ["flask_graceful.server"])
        start_response("200 OK", [])
        return [environ["flask_graceful.local_addr"].encode()]

    one = running(app)
    with one.connect() as client:
        assert client.get()[2] == b"127.0.0.1:%d" % one.address[1]
    assert seen == [one.server]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_Y4_the_local_address_is_the_one_connected_to() -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["flask_graceful.local_addr"].encode()]

    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        port = sock.getsockname()[1]
        server = Server(":0", app)
        thread = threading.Thread(target=_serve, args=(server, sock))
        thread.start()
        try:
            with Client(("127.0.0.1", port)) as client:
                assert client.get()[2] == b"127.0.0.1:%d" % port
            with socket.create_connection(("::1", port), DEADLINE) as six:
                six.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                with six.makefile("rb") as answer:
                    assert answer.read().endswith(b"[::1]:%d" % port)
        finally:
            server.close()
            thread.join(DEADLINE)


def _serve(server: Server, sock: socket.socket) -> None:
    with pytest.raises(ServerClosed):
        server.serve(sock)
