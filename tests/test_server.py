"""`Server` over real sockets, in this process. Names carry the rows of the specification."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import typing as t

import pytest
from conftest import SLACK, Client, Running, wait_until
from flask_graceful import ConnState, Server, ServerClosed, ShutdownTimeout

Start = t.Callable[..., Running]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def hello(environ: t.Any, start_response: t.Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


class Gate:
    """An app that answers when told to, so that no test needs to guess how long it takes."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.leave = threading.Event()

    def __call__(self, environ: t.Any, start_response: t.Any) -> list[bytes]:
        self.entered.release()
        assert self.leave.wait(20)
        start_response("200 OK", [])
        return [b"late"]

    def wait(self) -> None:
        assert self.entered.acquire(timeout=20)


def echo(environ: t.Any, start_response: t.Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [body]


def states_of(record: list[tuple[int, ConnState]]) -> list[str]:
    return [str(state) for _, state in record]


def test_requests_follow_each_other_on_one_connection(running: Start) -> None:
    with running(hello).connect() as client:
        for _ in range(3):
            code, headers, body = client.get()
            assert (code, body) == (200, b"hello")
            assert headers["content-length"] == "5"
            assert "connection" not in headers


def test_P17_pipelined_requests_are_answered_in_order(running: Start) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    with running(app).connect() as client:
        count = 2000
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(count)))
        assert [client.response()[2] for i in range(count)] == [b"/%d" % i for i in range(count)]


@pytest.mark.parametrize("threads", [1, 8])
def test_bodies_come_in_whatever_pieces(running: Start, threads: int) -> None:
    body = bytes(range(256)) * 2000
    with running(echo, threads=threads).connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
        client.send(body[:1]).send(body[1:70000]).send(body[70000:])
        assert client.response()[2] == body
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), 99999):
            part = body[start : start + 99999]
            client.send(b"%x\r\n" % len(part)).send(part).send(b"\r\n")
        client.send(b"0\r\n\r\n")
        assert client.response()[2] == body


def test_B15_100_continue_is_sent_when_the_app_reads(running: Start) -> None:
    with running(echo).connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n")
        client.send(b"Expect: 100-continue\r\n\r\n")
        assert client.response()[0] == 100
        client.send(b"abc")
        assert client.response()[2] == b"abc"


def test_B16_without_reading_there_is_no_100_and_no_reuse(running: Start) -> None:
    with running(hello).connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n")
        client.send(b"Expect: 100-continue\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        code, headers, _ = client.response()
        assert (code, headers["connection"]) == (200, "close")
        assert client.rest() == b""


def test_B8_small_unread_body_is_drained_and_the_connection_goes_on(running: Start) -> None:
    with running(hello).connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        assert client.response()[0] == 200
        client.send(b"x" * 100000)
        assert client.get()[0] == 200


def test_B10_large_unread_body_ends_the_connection_after_the_answer(running: Start) -> None:
    with running(hello).connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n")
        client.send(b"x" * 1000000)
        code, headers, body = client.response()
        assert (code, headers["connection"], body) == (200, "close", b"hello")
        # Half-closed, not reset: what still comes is taken, and the end is clean.
        assert client.send(b"x" * 1000000).rest() == b""


def test_a_refused_request_is_answered_and_nothing_after_it_is_read(running: Start) -> None:
    seen: list[str] = []

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        seen.append(environ["PATH_INFO"])
        return hello(environ, start_response)

    with running(app).connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: {\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n")
        code, headers, body = client.response()
        assert (code, headers["connection"]) == (400, "close")
        assert body == b"400 Bad Request: malformed Host header\n"
        assert client.rest() == b""
    assert seen == []


def test_F1_an_app_that_raises_gets_500_and_a_log_line(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        raise SystemExit("no")

    with caplog.at_level(logging.ERROR), running(app).connect() as client:
        assert client.get()[0] == 500
        assert client.get()[0] == 500
    assert "http: panic serving 127.0.0.1:" in caplog.text


def test_an_app_that_raises_in_its_response_ends_the_connection(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        start_response("200 OK", [])
        yield b"x"
        raise ValueError("in the middle")

    with caplog.at_level(logging.ERROR), running(app).connect() as client:
        client.send(GET)
        assert client.rest().endswith(b"1\r\nx\r\n")
    assert "in the middle" in caplog.text


def test_a_response_larger_than_the_socket_takes_needs_no_thread(running: Start) -> None:
    size = 20_000_000

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/":
            return hello(environ, start_response)
        start_response("200 OK", [])
        return [b"x" * size]

    one = running(app, threads=1)
    with one.connect() as slow, one.connect() as fast:
        slow.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        # The only thread has the large response behind it when it answers this.
        assert fast.get()[0] == 200
        assert fast.get()[0] == 200
        assert len(slow.response()[2]) == size
        assert slow.get()[2] == b"hello"


def test_a_blocking_request_does_not_delay_others(running: Start) -> None:
    gate = Gate()

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        return (gate if environ["PATH_INFO"] == "/slow" else hello)(environ, start_response)

    one = running(app, threads=8)
    with one.connect() as fast:
        slow = [one.connect().send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(7)]
        for _ in slow:
            gate.wait()
        began = time.monotonic()
        assert fast.get()[0] == 200
        assert time.monotonic() - began < SLACK
        gate.leave.set()
        for client in slow:
            with client:
                assert client.response()[2] == b"late"


def test_another_clients_fields_spoil_nothing(running: Start) -> None:
    """One parser serves all connections of a thread."""
    one = running(hello, threads=1)
    for line in ("Proxy-Connection: close", "Connection: close, upgrade", "Upgrade: x"):
        with one.connect() as first, one.connect() as second:
            assert first.get(headers=f"{line}\r\n")[0] == 200
            assert second.get()[0] == 200


def test_a_request_behind_a_large_response_is_answered(running: Start) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x" * int(environ["QUERY_STRING"] or 1)]

    one = running(app)
    for size in range(5_600_000, 5_700_000, 10_000):
        with one.connect() as client:
            client.send(b"GET /?%d HTTP/1.1\r\nHost: a\r\n\r\n" % size)
            wait_until(lambda: one.server.connections(), "accepted")
            client.sock.recv(1)
            client.buffer = bytearray(b"H")
            client.send(GET)
            assert len(client.response()[2]) == size
            assert client.response()[2] == b"x"


def test_a_client_that_sends_but_does_not_read_costs_no_cpu(running: Start) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x" * 20_000_000]

    one = running(app)
    with one.connect() as byte, one.connect() as half:
        byte.send(GET)
        half.send(GET)
        wait_until(lambda: len(one.server.connections()) == 2, "accepted")
        byte.sock.recv(1)
        half.sock.recv(1)
        byte.send(b"G")
        half.sock.shutdown(socket.SHUT_WR)
        used = time.process_time()
        assert not threading.Event().wait(1)
        assert time.process_time() - used < 0.3


def test_bytes_behind_the_last_request_do_not_cut_its_answer(running: Start) -> None:
    gate = Gate()

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        gate(environ, lambda *_: None)
        start_response("200 OK", [])
        return [b"x" * 3_000_000]

    with running(app).connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        gate.wait()
        client.send(GET)
        gate.leave.set()
        assert len(client.response()[2]) == 3_000_000


def test_pipelining_without_end_neither_fills_memory_nor_stops_others(running: Start) -> None:
    one = running(hello)
    stop = threading.Event()

    def pipeline() -> None:
        with one.connect() as client:
            client.sock.settimeout(0.01)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    client.sock.send(GET * 1000)
                with contextlib.suppress(TimeoutError):
                    client.sock.recv(1 << 20)

    threads = [threading.Thread(target=pipeline) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(one.server.connections()) == 3, "pipelining")
        for _ in range(20):
            with one.connect() as client:
                began = time.monotonic()
                assert client.get()[0] == 200
                assert time.monotonic() - began < SLACK
        for connection in one.server.connections():
            assert len(connection._wire.inbox.data) < 200_000
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("size", [9, 1_000_000])
def test_promise_5_withheld_bodies_delay_nobody(running: Start, size: int) -> None:
    one = running(echo, threads=4)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
    slow = [one.connect().send(head + b"x" * (size - 1)) for _ in range(40)]
    began = time.monotonic()
    for _ in range(20):
        with one.connect() as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
            assert client.response()[2] == b"ab"
    assert time.monotonic() - began < 5
    for client in slow:
        with client:
            assert len(client.send(b"x").response()[2]) == size


def test_S7_an_unread_body_is_no_next_request(running: Start) -> None:
    gate = Gate()
    one = running(gate)
    with one.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
        gate.wait()
        stopper = threading.Thread(target=one.server.shutdown)
        stopper.start()
        one.join()
        gate.leave.set()
        assert client.response()[1]["connection"] == "close"
        stopper.join(20)


def test_a_failing_close_does_not_cut_the_response(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    class Blocks(list[bytes]):
        def close(self) -> None:
            raise ValueError("close failed")

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])
        return Blocks([b"x" * 20_000_000])

    with running(app).connect() as client:
        assert len(client.get()[2]) == 20_000_000
    assert "close failed" in caplog.text


@pytest.mark.parametrize("block", ["text", b"too long"])
def test_a_bad_first_block_is_answered_500(
    running: Start, block: t.Any, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[t.Any]:
        start_response("200 OK", [("Content-Length", "3")])
        return [block]

    with running(app).connect() as client:
        assert client.get()[0] == 500
    assert "http: panic serving" in caplog.text


def test_L1_serve_closes_its_listener_also_when_it_refuses(running: Start) -> None:
    one = running(hello)
    one.server.shutdown()
    assert isinstance(one.join(), ServerClosed)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with pytest.raises(ServerClosed, match="http: Server closed"):
            one.server.serve(sock)
        assert sock.fileno() == -1


def test_L3_serve_returns_before_the_drain_ends(running: Start) -> None:
    gate = Gate()
    one = running(gate)
    with one.connect().send(GET) as client:
        gate.wait()
        stopper = threading.Thread(target=one.server.shutdown)
        stopper.start()
        assert isinstance(one.join(), ServerClosed)
        assert stopper.is_alive()
        gate.leave.set()
        code, headers, body = client.response()
        assert (code, headers["connection"], body) == (200, "close", b"late")
        stopper.join(20)
        assert not stopper.is_alive()


def test_S2_idle_connections_are_closed_at_once(running: Start) -> None:
    one = running(hello)
    with one.connect() as client:
        client.get()
        began = time.monotonic()
        one.server.shutdown()
        assert time.monotonic() - began < SLACK
        assert client.is_closed()


def test_S3_S4_a_new_connection_may_still_send_its_request(running: Start) -> None:
    one = running(hello)
    with one.connect() as client:
        wait_until(one.server.connections, "accepted")
        stopper = threading.Thread(target=one.server.shutdown)
        stopper.start()
        one.join()
        code, headers, _ = client.get()
        assert (code, headers["connection"]) == (200, "close")
        stopper.join(20)


def test_S3_new_connections_count_as_idle_after_five_seconds(running: Start) -> None:
    one = running(hello)
    began = time.monotonic()
    with one.connect() as client:
        one.server.shutdown(timeout=20)
        assert 4.5 < time.monotonic() - began < 7 + SLACK
        assert client.is_closed()


def test_S6_a_body_still_uploading_is_waited_for(running: Start) -> None:
    one = running(echo)
    with one.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")

        def is_active() -> bool:
            return [conn.state for conn in one.server.connections()] == [ConnState.ACTIVE]

        wait_until(is_active, "active")
        stopper = threading.Thread(target=one.server.shutdown)
        stopper.start()
        one.join()
        assert client.send(b"cde").response()[2] == b"abcde"
        stopper.join(20)


def test_S10_S14_timeout_kills_nothing_and_close_cuts(running: Start) -> None:
    gate = Gate()
    one = running(gate)
    with one.connect().send(GET) as client, one.connect().send(GET) as other:
        gate.wait()
        gate.wait()
        with pytest.raises(ShutdownTimeout, match=r"2 connections still active after 0\.05 s"):
            one.server.shutdown(timeout=0.05)
        assert not client.is_closed(0.05)
        one.server.close()
        assert client.is_closed()
        assert other.is_closed()
        one.server.shutdown(timeout=0)
        gate.leave.set()


def test_S11_only_idle_connections_and_no_time_is_no_error(running: Start) -> None:
    one = running(hello)
    with one.connect() as client:
        client.get()
        (connection,) = one.server.connections()
        wait_until(lambda: connection.state is ConnState.IDLE, "idle")
        one.server.shutdown(timeout=0)


def test_S13_S17_hooks_run_at_each_shutdown_and_are_not_waited_for(running: Start) -> None:
    one = running(hello)
    runs = threading.Semaphore(0)
    leave = threading.Event()

    def hook() -> None:
        runs.release()
        leave.wait(20)

    one.server.register_on_shutdown(hook)
    began = time.monotonic()
    one.server.shutdown()
    one.server.shutdown()
    assert time.monotonic() - began < 5
    assert runs.acquire(timeout=20)
    assert runs.acquire(timeout=20)
    leave.set()


def test_S15_connections_in_the_accept_queue_are_served() -> None:
    """Better than Go's reset: what the kernel let in is answered (promise 3)."""
    server = Server("127.0.0.1:0", hello)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    # Whoever connects before serve() is in the queue.
    clients = [Client(sock.getsockname()).send(GET) for _ in range(50)]

    def serve() -> None:
        with pytest.raises(ServerClosed):
            server.serve(sock)

    thread = threading.Thread(target=serve)
    thread.start()
    wait_until(lambda: server.connections() or not thread.is_alive(), "serving")
    server.shutdown()
    for client in clients:
        with client:
            assert client.response()[2] == b"hello"
    thread.join(20)


def test_promise_3_bytes_received_are_not_idle(running: Start) -> None:
    one = running(hello)
    with one.connect() as client:
        client.get()
        client.send(b"GET / HTTP/1.1\r\nHost:")
        wait_until(lambda: bytes(one.server.connections()[0]._wire.inbox.data), "half a head")
        stopper = threading.Thread(target=one.server.shutdown)
        stopper.start()
        one.join()
        code, headers, _ = client.send(b" a\r\n\r\n").response()
        assert (code, headers["connection"]) == (200, "close")
        stopper.join(20)


def test_C3_close_twice_and_before_serve() -> None:
    server = Server(":0", hello)
    server.close()
    server.close()
    with pytest.raises(ServerClosed):
        server.listen_and_serve()


def test_KA1_KA2_keep_alives_off_and_on(running: Start) -> None:
    one = running(hello)
    with one.connect() as client:
        client.get()
        one.server.set_keep_alives_enabled(False)
        assert client.is_closed()
    with one.connect() as client:
        assert client.get()[1]["connection"] == "close"
    one.server.set_keep_alives_enabled(True)
    with one.connect() as client:
        client.get()
        assert client.get()[0] == 200


def test_KA1_keep_alives_off_gives_later_connections_their_time(running: Start) -> None:
    one = running(hello)
    one.server.set_keep_alives_enabled(False)
    with one.connect() as client:
        assert not client.is_closed(6)
        assert client.get()[0] == 200


def test_K4_state_sequences(running: Start) -> None:
    record: list[tuple[int, ConnState]] = []

    def note(connection: t.Any, state: ConnState) -> None:
        record.append((id(connection), state))

    one = running(hello, conn_state=note)

    def closed() -> bool:
        return bool(record) and record[-1][1] is ConnState.CLOSED

    with one.connect() as client:
        client.get()
        client.get()
    wait_until(closed, "closed")
    assert states_of(record) == ["new", "active", "idle", "active", "idle", "closed"]
    record.clear()
    one.connect().sock.close()
    wait_until(closed, "closed")
    assert states_of(record) == ["new", "closed"]
    record.clear()
    with one.connect().send(b"garbage\r\n\r\n") as client:
        assert client.response()[0] == 400
        client.rest()
    wait_until(closed, "closed")
    assert states_of(record) == ["new", "active", "closed"]
    record.clear()
    with one.connect() as client:
        client.get(headers="Connection: close\r\n")
    wait_until(closed, "closed")
    assert states_of(record) == ["new", "active", "closed"]


@pytest.mark.parametrize(
    ("options", "sent", "expected"),
    [
        ({"read_header_timeout": 0.4}, b"", 0.4),
        ({"read_header_timeout": 0.4}, b"GET / HT", 0.4),
        ({"read_timeout": 0.4}, b"GET / HTTP/1.1\r\n", 0.4),
        ({"idle_timeout": 0.4}, GET, 0.4),
        ({"idle_timeout": 0.4, "read_timeout": 60}, GET, 0.4),
        ({"read_timeout": 0.4}, GET, 0.4),
    ],
)
def test_TM_silence_ends_a_connection_silently(
    running: Start, options: dict[str, float], sent: bytes, expected: float
) -> None:
    with running(hello, **options).connect() as client:
        began = time.monotonic()
        client.send(sent)
        if sent == GET:
            client.response()
        assert client.is_closed()
        assert expected - 0.05 < time.monotonic() - began < expected + SLACK


def test_TM1_dripping_bytes_do_not_extend_the_deadline(running: Start) -> None:
    with running(hello, read_header_timeout=0.5).connect() as client:
        began = time.monotonic()
        client.send(b"GET /")
        # A byte that comes too late is answered by a reset.
        with contextlib.suppress(ConnectionError):
            while not client.is_closed(0.08):
                client.send(b"a")
                assert time.monotonic() - began < 0.5 + SLACK
        assert time.monotonic() - began > 0.45


def test_TM8_idle_timeout_does_not_apply_to_a_new_connection(running: Start) -> None:
    with running(hello, idle_timeout=0.2).connect() as client:
        assert not client.is_closed(0.6)


def test_TM5_the_app_may_take_longer_than_read_timeout(running: Start) -> None:
    gate = Gate()
    with running(gate, read_timeout=0.2).connect().send(GET) as client:
        gate.wait()
        assert not client.is_closed(0.5)
        gate.leave.set()
        assert client.response()[2] == b"late"


def test_TM6_a_body_that_does_not_come_ends_in_an_error_for_the_app(running: Start) -> None:
    errors: list[Exception] = []

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            errors.append(error)
            raise
        raise AssertionError("the body came")

    with running(app, read_timeout=0.4).connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        assert client.rest() == b""
    assert "read_timeout" in str(errors[0])


def test_TM11_a_client_that_does_not_read_is_cut_at_write_timeout(running: Start) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x" * 50_000_000]

    one = running(app, write_timeout=0.4)
    with one.connect() as client:
        client.send(GET)
        wait_until(one.server.connections, "accepted")
        wait_until(lambda: not one.server.connections(), "cut")


def test_unknown_and_wrong_settings_say_what_would_be_right() -> None:
    with pytest.raises(TypeError, match="did you mean 'read_timeout'"):
        Server(":0", hello, read_timout=1)
    with pytest.raises(TypeError, match="read_timeout: expected a number of seconds, got '1'"):
        Server(":0", hello, read_timeout="1")
    with pytest.raises(ValueError, match="threads: expected 1 to 10000, got 0"):
        Server(":0", hello, threads=0)
    with pytest.raises(ValueError, match="expected host:port"):
        Server("8000", hello)
    with pytest.raises(TypeError, match="expected a WSGI application"):
        Server(":0", "app")
