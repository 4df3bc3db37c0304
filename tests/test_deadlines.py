"""`request_timeout` and `request_timeout_hard`: requests that run for too long."""

from __future__ import annotations

import io
import logging
import os
import random
import re
import signal
import threading
import time
import typing as t
from pathlib import Path

import pytest
from conftest import SLACK, Client, Live, wait_until
from flask_graceful.exchange import Exchange
from program import Hosted, Program, ask, connect, one_server, pid_from, serving_pids
from service import Service, crowd
from test_server import GET, Gate, Start, hello
from test_tls import Begin, files, secure  # noqa: F401  fixtures

BODY = b"503 Service Unavailable: the application took too long to answer\n"


@pytest.fixture(params=["best", "portable"])
def poller(request: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_GRACEFUL_POLLER", request.param)


@pytest.fixture(params=["plain", "tls"])
def begin(request: t.Any) -> Start:
    return t.cast(
        "Start", request.getfixturevalue("running" if request.param == "plain" else "secure")
    )


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged about requests that take too long, each with its stack."""
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if "request_timeout" in message]


def is_refused_503(client: Client) -> bool:
    """Does the client get the 503, whole, and nothing else?"""
    code, headers, body = client.response()
    assert (code, headers["connection"], body) == (503, "close", BODY)
    return client.rest() == b""


class Held:
    """An app that does what it was made with when told to, and tells when that is over."""

    def __init__(self, last: t.Callable[[t.Any, t.Any], t.Any]) -> None:
        self.gate = Gate()
        self.last = last
        self.failure: BaseException | None = None
        self.over = threading.Event()

    def __call__(self, environ: t.Any, start_response: t.Any) -> t.Any:
        if environ["PATH_INFO"] != "/held":
            return hello(environ, start_response)
        self.gate.entered.release()
        try:
            assert self.gate.leave.wait(20)
            return self.last(environ, start_response)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self.over.set()


HELD = b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n"


# The 503.


@pytest.mark.parametrize("threads", [1, 3])
def test_every_client_is_answered_though_all_threads_are_blocked(
    begin: Start, poller: None, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    one = begin(gate, threads=threads, request_timeout=0.3)
    clients = [one.connect() for _ in range(threads)]
    began = time.monotonic()
    for client in clients:
        client.send(GET)
    for _ in clients:
        gate.wait()
    for client in clients:
        assert is_refused_503(client)
    assert 0.3 <= time.monotonic() - began < 0.3 + SLACK
    assert len(one.server.running_requests()) == threads
    # The threads come back, and serve.
    gate.leave.set()
    for client in clients:
        client.sock.close()
    with one.connect() as client:
        assert client.get()[2] == b"late"
    wait_until(lambda: not one.server.connections(), "all gone")
    # They are written after the answers.
    wait_until(lambda: len(lines(caplog)) >= threads, "a line for each")
    assert len(lines(caplog)) == threads


def stuck_in_a_query(gate: Gate) -> None:
    gate.entered.release()
    assert gate.leave.wait(20)


def test_log_names_the_request_and_the_place_where_it_is_once(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        stuck_in_a_query(gate)
        return hello(environ, start_response)

    one = running(app, request_timeout=0.2)
    with one.connect() as client:
        client.send(b"POST /a%0Ab?secret=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        assert is_refused_503(client)
        peer = "{}:{}".format(*client.sock.getsockname())
        wait_until(lambda: lines(caplog), "a line")
        # Time for more looks at it.
        time.sleep(0.3)
        (line,) = lines(caplog)
        first, *stack = line.split("\n")
        assert re.fullmatch(
            rf"{os.getpid()} request_timeout is over: POST /a%0Ab of {peer} after \d\.\d seconds; "
            r"503 was sent\. Stack \(most recent call last\):",
            first,
        )
        assert re.fullmatch(r'  File ".*test_deadlines\.py", line \d+, in app', stack[0])
        assert any(line.endswith(", in stuck_in_a_query") for line in stack)
        gate.leave.set()


def test_of_a_response_that_has_begun_nothing_changes_but_the_log(
    begin: Start, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    def app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        stuck_in_a_query(gate)
        yield b"two"

    one = begin(app, request_timeout=0.2)
    with one.connect() as client:
        client.send(GET)
        wait_until(lambda: lines(caplog), "a line")
        assert "; a part of its response was sent, the rest may follow. " in lines(caplog)[0]
        assert "in stuck_in_a_query" in lines(caplog)[0]
        gate.leave.set()
        assert client.response()[::2] == (200, b"onetwo")
        assert client.get()[::2] == (200, b"onetwo")


def test_without_a_limit_there_is_no_timekeeper(running: Start) -> None:
    before = threading.active_count()
    one = running(hello, threads=1)
    assert one.server.new_exchange is Exchange
    assert threading.active_count() == before + 2


# What comes too late.


class Blocks:
    """An iterable that tells when it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def __iter__(self) -> t.Iterator[bytes]:
        yield b"late"

    def close(self) -> None:
        self.closed.set()


def test_a_late_answer_is_dropped_and_closed(
    begin: Start, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = Blocks()

    def last(environ: t.Any, start_response: t.Any) -> Blocks:
        start_response("200 OK", [])
        return blocks

    app = Held(last)
    one = begin(app, threads=1, request_timeout=0.2)
    with one.connect() as client, one.connect() as other:
        client.send(HELD)
        assert is_refused_503(client)
        other.send(GET)
        app.gate.leave.set()
        assert blocks.closed.wait(20)
        # The only thread is back.
        assert other.response()[2] == b"hello"
    wait_until(lambda: not one.server.connections(), "the connections closed")
    assert [record.getMessage() for record in caplog.records] == lines(caplog)


def late_write(environ: t.Any, start_response: t.Any) -> list[bytes]:
    start_response("200 OK", [])(b"late")
    return []


def late_read(environ: t.Any, start_response: t.Any) -> list[bytes]:
    environ["wsgi.input"].read()
    return []


def late_takeover(environ: t.Any, start_response: t.Any) -> list[bytes]:
    environ["werkzeug.socket"].sendall(b"late")
    return []


@pytest.mark.parametrize("last", [late_write, late_read, late_takeover])
def test_late_writes_reads_and_takeovers_are_refused(
    begin: Start, last: t.Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = Held(last)
    one = begin(app, request_timeout=0.2)
    with one.connect() as client:
        client.send(b"POST /held HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel")
        assert is_refused_503(client)
        app.gate.leave.set()
        assert app.over.wait(20)
        assert isinstance(app.failure, ConnectionError)
        assert "longer than request_timeout" in str(app.failure)
    wait_until(lambda: not one.server.connections(), "the connection closed")
    wait_until(lambda: lines(caplog), "a line")
    assert len(caplog.records) == len(lines(caplog)) == 1


def test_a_late_file_is_closed_and_not_sent(begin: Start, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"late" * 1000)

    def last(environ: t.Any, start_response: t.Any) -> t.Any:
        start_response("200 OK", [])
        opened.append(path.open("rb"))
        return environ["wsgi.file_wrapper"](opened[0])

    opened: list[io.BufferedReader] = []
    app = Held(last)
    one = begin(app, request_timeout=0.2)
    with one.connect() as client:
        client.send(HELD)
        code, _, body = client.response()
        assert (code, body) == (503, BODY)
        app.gate.leave.set()
        assert client.rest() == b""
        wait_until(lambda: opened and opened[0].closed, "the file closed")


def test_a_late_error_of_the_application_is_logged(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def last(environ: t.Any, start_response: t.Any) -> list[bytes]:
        raise ValueError("the database said no")

    app = Held(last)
    one = running(app, request_timeout=0.2)
    with one.connect() as client:
        client.send(HELD)
        assert is_refused_503(client)
        app.gate.leave.set()
        wait_until(lambda: "the database said no" in caplog.text, "the traceback")
        assert "http: panic serving 127.0.0.1:" in caplog.text


# Kinds of requests.


def test_head_gets_no_body(begin: Start) -> None:
    gate = Gate()
    one = begin(gate, request_timeout=0.2)
    with one.connect() as client:
        client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        code, headers, _ = client.response(head_only=True)
        assert (code, headers["content-length"]) == (503, str(len(BODY)))
        assert client.rest() == b""
        gate.leave.set()


@pytest.mark.parametrize("reads", [True, False])
def test_expect_100_continue(begin: Start, reads: bool) -> None:
    """With or without the 100 before it, there is one answer."""
    gate = Gate()

    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        if reads:
            assert environ["wsgi.input"].read(1) == b"h"
        return gate(environ, start_response)

    one = begin(app, request_timeout=0.2)
    with one.connect() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        if reads:
            assert client.response()[0] == 100
            client.send(b"hello")
        assert is_refused_503(client)
        gate.leave.set()


def test_of_pipelined_requests_the_one_that_is_stuck_is_the_last(begin: Start) -> None:
    app = Held(hello)
    called: list[str] = []

    def counted(environ: t.Any, start_response: t.Any) -> t.Any:
        called.append(environ["PATH_INFO"])
        return app(environ, start_response)

    one = begin(counted, request_timeout=0.2)
    with one.connect() as client:
        client.send(GET + HELD + GET)
        assert client.response()[::2] == (200, b"hello")
        assert is_refused_503(client)
        app.gate.leave.set()
        wait_until(lambda: not one.server.running_requests(), "the end of what was stuck")
    wait_until(lambda: not one.server.connections(), "the connection closed")
    assert called == ["/", "/held"]


def test_who_sends_a_large_body_reads_the_answer_before_a_reset(begin: Start) -> None:
    gate = Gate()
    one = begin(gate, request_timeout=0.2)
    size = 16 << 20
    with one.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        client.send(bytes(size))
        assert is_refused_503(client)
        gate.leave.set()


def test_who_is_cut_while_it_sends_leaves_nothing_behind(
    begin: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread comes back to a connection with much unread, and to a crew that goes home."""
    monkeypatch.setattr("flask_graceful.wire.MAX_DISCARDS", 1)
    app = Held(hello)
    one = begin(app, request_timeout=0.2)
    with one.connect() as client:
        client.send(b"POST /held HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n")
        assert client.response()[0] == 503
        client.send(bytes(1 << 20))
        one.server.close()
        app.gate.leave.set()
        one.join()


def test_who_does_not_leave_is_cut(running: Start) -> None:
    """The application still has the connection, but its client has none any more."""
    gate = Gate()
    one = running(gate, request_timeout=0.2)
    with one.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        assert is_refused_503(client)

        def is_cut() -> bool:
            try:
                client.send(b"x")
            except ConnectionError:
                return True
            return False

        wait_until(is_cut, "a reset")
        assert one.server.connections()
        gate.leave.set()
        wait_until(lambda: not one.server.connections(), "the connection closed")


def test_a_client_that_left_is_named_all_the_same(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    one = running(gate, request_timeout=0.3)
    with one.connect() as client:
        client.send(GET)
        gate.wait()
    wait_until(lambda: lines(caplog), "a line")
    gate.leave.set()
    wait_until(lambda: not one.server.connections(), "the connection closed")


def test_a_connection_taken_over_is_no_request_any_more(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        sock = environ["werkzeug.socket"]
        sock.sendall(b"taken")
        while data := sock.recv(100):
            sock.sendall(data)
        return []

    one = running(app, request_timeout=0.1, request_timeout_hard=0.1)
    with one.connect() as client:
        client.send(GET)
        assert client._exactly(5) == b"taken"
        time.sleep(0.4)
        client.send(b"more")
        assert client._exactly(4) == b"more"
    assert lines(caplog) == []


def test_the_time_that_the_client_takes_does_not_count(
    begin: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither for its body nor for reading the answer: these are other settings' matter."""
    size = 16 << 20

    def app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", str(size + len(body)))])
        yield bytes(size)
        yield body

    one = begin(app, request_timeout=1.5, request_timeout_hard=1.5)
    with one.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        for byte in b"hello":
            time.sleep(0.4)
            client.send(bytes([byte]))
        # It can't finish before this is read.
        time.sleep(2)
        assert client.response()[2][-5:] == b"hello"
    assert lines(caplog) == []


def test_the_clock_goes_on_when_the_body_is_there(begin: Start) -> None:
    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        environ["wsgi.input"].read()
        return gate(environ, start_response)

    gate = Gate()
    one = begin(app, request_timeout=0.3)
    with one.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        time.sleep(0.5)
        began = time.monotonic()
        client.send(b"hello")
        assert is_refused_503(client)
        assert 0.2 < time.monotonic() - began < 0.3 + SLACK
        gate.leave.set()


# The race.


def test_exactly_one_answers(begin: Start) -> None:
    """Applications that end when the time is up: each client gets a 200 and may go on, or gets a
    503 and the connection's end; and nobody gets both, a part of one, or a reset."""
    limit, rounds, clients = 0.1, 25, 12

    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        end = time.monotonic() + limit + random.uniform(-0.005, 0.06)
        body = environ["wsgi.input"].read(1)
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.01))
        start_response("200 OK", [("Content-Length", "3")])
        return [body, b"ok"]

    seen: list[int] = []
    failures: list[str] = []

    def use() -> None:
        client = one.connect()
        try:
            for _ in range(rounds):
                client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxy")
                code, _, body = client.response()
                seen.append(code)
                assert (code, body) in [(200, b"xok"), (503, BODY)]
                assert not client.buffer
                if code == 503:
                    assert client.rest() == b""
                    client.sock.close()
                    client = one.connect()
        except Exception as error:
            failures.append(repr(error))
        finally:
            client.sock.close()

    one = begin(app, threads=clients, request_timeout=limit)
    threads = [threading.Thread(target=use) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(seen) == rounds * clients
    assert set(seen) == {200, 503}, seen


# The hard limit.


def test_a_server_without_a_life_only_logs(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    one = running(gate, request_timeout_hard=0.2)
    with one.connect() as client:
        client.send(b"GET /stuck HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: lines(caplog), "a line")
        # The request is not over for that.
        gate.leave.set()
        assert client.response()[::2] == (200, b"late")
    (line,) = lines(caplog)
    assert " request_timeout_hard is over: GET /stuck of " in line
    assert ", in __call__\n" in line
    assert len(caplog.records) == 1


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


def test_a_process_with_a_stuck_request_is_replaced_once(program: Program) -> None:
    """The new one serves; the others' requests finish; what is stuck is cut as always."""
    text = one_server(request_timeout_hard=1, hammer_time=4, idle_grace=0)
    one = program.start(text)
    (first,) = serving_pids(one, 1)
    stuck = [
        connect(one.port).send(b"GET /held-%d HTTP/1.1\r\nHost: a\r\n\r\n" % i) for i in (1, 2)
    ]
    one.wait_for("^held-[12]$", 2)
    with connect(one.port) as idle:
        assert pid_from(idle) == first
        one.wait_for(rf"^{first} request_timeout_hard is over: GET /held-1 of .* Stack ")
        one.wait_for(
            rf"^{first} To be replaced: GET /held-[12] of 127\.0\.0\.1:\d+ after [1-3]\.\d "
        )
        second = serving_pids(one, 2)[1]
        one.wait_for(rf"^{first} Waiting for connections to finish")
        assert pid_from(idle) == ask(one.port) == second
        program.let_go("go-1")
        assert pid_from_held(stuck[0]) == first
        assert stuck[1].is_closed()
        one.wait_for(rf"^{first} Cut: GET /held-2 of ")
        assert pid_from(idle) == second
    assert one.log.count("request_timeout_hard is over") == 2
    assert one.log.count("To be replaced") == 1
    assert "in wait_for_file" in one.log
    os.kill(second, signal.SIGTERM)
    one.wait_for(rf"^{second} Serve\(\) returning")
    assert len(set(re.findall(r"^(\d+) Serving HTTP ", one.log, re.MULTILINE))) == 2
    for client in stuck:
        client.sock.close()


def test_a_worker_with_a_stuck_request_is_replaced_once(
    live: t.Callable[..., Live], tmp_path: Path
) -> None:
    service = Service(tmp_path, live)
    service.start(request_timeout_hard=0.5, hammer_time=30)
    with service.slow("go") as (stuck, pid):
        service.one.wait_for(rf"^{pid} request_timeout_hard is over: GET /slow of .* Stack ")
        reason = r"GET /slow of \S+ after \d\.\d seconds: over request_timeout_hard"
        service.one.wait_for(rf"Worker {pid} is to be replaced: {reason}; another one is started")
        new = int(service.one.wait_for(r"Worker (\d+) serves")[1])
        service.one.wait_for(rf"^{pid} Waiting for connections to finish")
        assert pid not in {service.ask() for _ in range(10)}
        service.let_go("go")
        assert pid_from_held(stuck) == pid
    service.wait_gone(pid)
    (other,) = set(service.workers()) - {pid}
    with crowd(service, [other, new]) as clients:
        assert set(clients.values()) == {other, new}
    assert service.one.log.count("is to be replaced") == 1
    service.signal(signal.SIGTERM)
    service.check_over()


def pid_from_held(client: Client) -> int:
    code, _, body = client.response()
    assert code == 200
    return int(body.split()[0])


def test_a_replacement_that_fails_is_tried_again_by_the_next_request(program: Program) -> None:
    one = program.start(one_server(request_timeout_hard=0.5, idle_grace=0))
    (first,) = serving_pids(one, 1)
    program.write("raise SystemExit('broken release')")
    with connect(one.port).send(b"GET /held-1 HTTP/1.1\r\nHost: a\r\n\r\n") as client:
        one.wait_for(f"^{first} Restart failed: ")
        program.write(one_server(request_timeout_hard=30, idle_grace=0))
        with connect(one.port).send(b"GET /held-2 HTTP/1.1\r\nHost: a\r\n\r\n") as other:
            second = serving_pids(one, 2)[1]
            one.wait_for(f"^{first} Waiting for connections")
            assert ask(one.port) == second
            program.let_go("go-1")
            program.let_go("go-2")
            assert {pid_from_held(client), pid_from_held(other)} == {first}


def test_a_process_that_stops_asks_for_no_other(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flask_graceful")
    gate = Gate()
    one = t.cast("Hosted", running(gate, kind=Hosted, request_timeout_hard=0.5))
    with one.connect().send(GET) as client:
        gate.wait()
        one.server.stop()
        wait_until(lambda: lines(caplog), "a line")
        gate.leave.set()
        assert client.response()[2] == b"late"
        one.join()
    assert "To be replaced" not in caplog.text
    assert "Told to restart" not in caplog.text
