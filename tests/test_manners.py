"""What braintree/manners offers (rows M): closing with and without waiting, and work beside the
requests that a stop waits for."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
import typing as t
from pathlib import Path

import pytest
from conftest import SLACK, Live, wait_until
from flask_graceful import GracefulServer, Server, ServerClosed, ShutdownTimeout, State
from program import Hosted, Program, ask, is_refused, one_server, serving_pids
from test_hijack import Echo
from test_server import GET, Gate, Start, hello

Host = t.Callable[..., Hosted]


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


@pytest.fixture
def hosted(running: Start) -> Host:
    return lambda app, **options: t.cast("Hosted", running(app, kind=Hosted, **options))


class InThread:
    """A call in a thread of its own: when it is over, and with what."""

    def __init__(self, func: t.Callable[[], t.Any]) -> None:
        self._func = func
        self.result: t.Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self, seconds: float = 20) -> t.Any:
        self._thread.join(seconds)
        assert self.is_over, "it did not return"
        return self.result

    def _run(self) -> None:
        try:
            self.result = self._func()
        except Exception as error:
            self.error = error


def test_M2_M6_close_returns_at_once_and_in_flight_is_finished(hosted: Host) -> None:
    gate = Gate()
    one = hosted(gate)
    with one.connect().send(GET) as client:
        gate.wait()
        began = time.monotonic()
        assert one.server.stop() is True
        assert time.monotonic() - began < SLACK
        wait_until(lambda: one.server.state is State.SHUTTING_DOWN, "stopping")
        gate.leave.set()
        code, headers, body = client.response()
        assert (code, headers["connection"], body) == (200, "close", b"late")
    assert isinstance(one.join(), ServerClosed)


def test_M3_the_order_of_a_stop(hosted: Host) -> None:
    """Marked, no keep-alives and nobody let in, then requests waited for, then over."""
    gate = Gate()
    one = hosted(gate)
    seen: list[tuple[bool, bool, bool]] = []

    def look() -> None:
        # The same thread has closed the listener before.
        refused = is_refused(one.address[1])
        seen.append((one.server.is_stopping, one.server.keeps_alive, refused))

    one.server.shutdown_initiated(look)
    with one.connect().send(GET) as client:
        gate.wait()
        waiting = InThread(lambda: one.server.stop(wait=True))
        wait_until(lambda: seen, "initiated")
        assert seen == [(True, False, True)]
        assert not waiting.is_over
        gate.leave.set()
        assert client.response()[1]["connection"] == "close"
        waiting.join()
    one.join()


def test_M7_blocking_close_returns_after_the_last_request(hosted: Host) -> None:
    """For whoever waits, any number of them."""
    gate = Gate()
    one = hosted(gate)
    with one.connect().send(GET) as client:
        gate.wait()
        first = InThread(lambda: one.server.stop(wait=True))
        wait_until(lambda: one.server.is_stopping, "stopping")
        assert not first.is_over
        gate.leave.set()
        assert client.response()[2] == b"late"
        assert first.join() is True
    assert isinstance(one.join(), ServerClosed)
    assert one.server.state is State.TERMINATED
    others = [InThread(lambda: one.server.stop(wait=True)) for _ in range(3)]
    assert [other.join() for other in others] == [False] * 3


def test_M7_several_wait_for_the_same_end(hosted: Host) -> None:
    one = hosted(hello)
    both = [InThread(lambda: one.server.stop(wait=True)) for _ in range(4)]
    assert sorted(call.join() for call in both) == [False, False, False, True]
    one.join()


def test_M10_stops_without_serving_do_not_hang() -> None:
    for kind in (Server, GracefulServer):
        server = kind("127.0.0.1:0", hello)
        server.shutdown()
        server.close()
        with pytest.raises(ServerClosed):
            server.listen_and_serve()
    server = GracefulServer("127.0.0.1:0", hello)
    assert InThread(lambda: server.stop(wait=True)).join(5) is True
    assert InThread(lambda: server.stop(wait=True)).join(5) is False


def test_M7_a_stop_that_is_refused_is_not_waited_for(hosted: Host) -> None:
    one = hosted(hello)
    answers = [False, True]
    one.server.before_shutdown(lambda: answers.pop(0))
    assert InThread(lambda: one.server.stop(wait=True)).join(5) is True
    with one.connect() as client:
        code, headers, _ = client.get()
        assert (code, "connection" in headers) == (200, False)
    # Not the first call, but it is asked for again.
    assert InThread(lambda: one.server.stop(wait=True)).join(5) is False
    assert isinstance(one.join(), ServerClosed)


def test_M7_a_hook_cannot_wait_for_the_stop(hosted: Host) -> None:
    one = hosted(hello)
    errors: list[str] = []

    def wait() -> None:
        try:
            one.server.stop(wait=True)
        except RuntimeError as error:
            errors.append(str(error))

    one.server.shutdown_initiated(wait)
    one.server.stop(wait=True)
    one.join()
    assert errors == ["a hook can't wait for what happens when it has returned"]


def test_M8_an_error_of_accepting_ends_it_when_requests_are_finished(hosted: Host) -> None:
    gate = Gate()
    one = hosted(gate)
    with one.connect().send(GET) as client:
        gate.wait()
        (acceptor,) = one.server._acceptors
        # As if the system had taken the socket away: accepting fails for good.
        acceptor.listener.sock.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: one.server.state is State.SHUTTING_DOWN, "noticed")
        assert one.error is None
        gate.leave.set()
        assert client.response()[2] == b"late"
    error = one.join()
    assert isinstance(error, OSError)
    assert error.errno == errno.EINVAL


def test_M9_a_plain_server_leaves_signals_alone(program: Program) -> None:
    text = (
        "from flask_graceful.listeners import listen\n"
        "server = Server(':0', app)\n"
        "listener = listen(server.address)\n"
        "say('Serving HTTP on', listener.address)\n"
        "server.serve(listener)\n"
    )
    one = program.start(text)
    assert ask(one.port) == one.pid
    os.kill(one.pid, signal.SIGTERM)
    assert one.process.wait(60) == -signal.SIGTERM


def test_M11_conn_state_may_be_set_later(running: Start) -> None:
    one = running(hello)
    seen: list[str] = []
    one.server.conn_state = lambda connection, state: seen.append(str(state))
    with one.connect() as client:
        client.get(headers="Connection: close\r\n")
        wait_until(lambda: not one.server.connections(), "closed")
    assert seen == ["new", "active", "closed"]


@pytest.mark.parametrize("path", ["N,C", "N,A,C", "N,A,H", "N,A,I,C", "N,A,I,A,I,C"])
def test_M12_connections_are_counted_from_new_to_the_end(running: Start, path: str) -> None:
    gate = Gate()
    echo = Echo()

    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        return (echo if environ["PATH_INFO"] == "/take" else gate)(environ, start_response)

    one = running(app)
    letters = {"new": "N", "active": "A", "idle": "I", "hijacked": "H", "closed": "C"}
    seen: list[str] = []
    one.server.conn_state = lambda connection, state: seen.append(letters[str(state)])

    def count() -> int:
        return len(one.server.connections())

    with one.connect() as client:
        wait_until(lambda: count() == 1, "counted")
        for _ in range(path.count("A")):
            if "H" in path:
                client.send(GET.replace(b"/ ", b"/take "))
                assert echo.taken.wait(20)
                break
            gate.leave.clear()
            client.send(
                GET if "I" in path else GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            )
            gate.wait()
            assert count() == 1
            gate.leave.set()
            client.response()
        if "H" in path:
            assert count() == 0
    wait_until(lambda: count() == 0, "no longer counted")
    wait_until(lambda: ",".join(seen) == path, path)


# Work beside the requests.


def test_M4_a_shutdown_waits_for_what_is_tracked(running: Start) -> None:
    one = running(hello)
    with one.server.track(), one.server.track():
        assert one.server.tracked == 2
        with pytest.raises(ShutdownTimeout, match="0 connections still active, 2 tracked after"):
            one.server.shutdown(timeout=0.05)
        waiting = InThread(one.server.shutdown)
        assert not waiting.is_over
    waiting.join()
    assert (waiting.error, one.server.tracked) == (None, 0)


def test_M4_a_shutdown_waits_for_what_is_spawned(running: Start) -> None:
    one = running(hello)
    leave = threading.Event()
    said: list[t.Any] = []

    def work(*args: t.Any, **kwargs: t.Any) -> None:
        assert leave.wait(20)
        said.append((args, kwargs))

    thread = one.server.spawn(work, 1, two=2)
    assert one.server.tracked == 1
    waiting = InThread(one.server.shutdown)
    one.join()
    assert not waiting.is_over
    leave.set()
    waiting.join()
    assert said == [((1,), {"two": 2})]
    thread.join(20)


def test_M4_work_that_fails_is_counted_down(running: Start, capsys: t.Any) -> None:
    one = running(hello)
    with pytest.raises(ZeroDivisionError), one.server.track():
        raise ZeroDivisionError
    reported: list[t.Any] = []
    old, threading.excepthook = threading.excepthook, reported.append
    try:
        one.server.spawn(lambda: 1 / 0).join(20)
    finally:
        threading.excepthook = old
    assert reported[0].exc_type is ZeroDivisionError
    one.server.shutdown(timeout=5)
    assert one.server.tracked == 0


def test_M4_a_stop_waits_for_work_that_a_request_has_begun(hosted: Host) -> None:
    leave = threading.Event()

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        environ["flask_graceful.server"].spawn(leave.wait, 20)
        return hello(environ, start_response)

    one = hosted(app)
    with one.connect() as client:
        assert client.get()[2] == b"hello"
    stop = InThread(lambda: one.server.stop(wait=True))
    wait_until(lambda: one.server.state is State.SHUTTING_DOWN, "stopping")
    assert not stop.is_over
    leave.set()
    assert stop.join() is True
    one.join()


def test_M4_the_hammer_cuts_work_and_says_so(
    hosted: Host, caplog: pytest.LogCaptureFixture
) -> None:
    leave = threading.Event()
    one = hosted(hello, hammer_time=0.2)
    one.server.spawn(leave.wait, 20)
    one.server.spawn(leave.wait, 20)
    one.server.stop(wait=True)
    assert "Cut: 2 pieces of tracked work" in caplog.text
    one.join()
    leave.set()


WORK = """
@server.before_begin
def begin(addr):
    say(os.getpid(), 'Serving HTTP on', addr)
    if not has_parent():
        def work():
            wait_for_file('go')
            say(os.getpid(), 'has worked')
        server.spawn(work)
"""


def test_M4_the_old_process_finishes_its_work_after_a_restart(program: Program) -> None:
    one = program.start(one_server(WORK, idle_grace=0))
    (old,) = serving_pids(one, 1)
    os.kill(old, signal.SIGHUP)
    one.wait_for(f"^{old} Waiting for connections")
    new = serving_pids(one, 2)[1]
    assert ask(one.port) == new
    assert one.process.poll() is None
    program.let_go()
    assert one.process.wait(60) == 0
    one.wait_for(f"^{old} has worked$")
    assert one.log.index("has worked") < one.log.index(f"{old} Serve() returning")
