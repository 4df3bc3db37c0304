"""Wrong values in programs: what each says, and that it says it at once."""

from __future__ import annotations

import os
import signal
import threading
import typing as t
from functools import partial
from pathlib import Path

import pytest
from conftest import Live
from flask_graceful import POST_SIGNAL, PRE_SIGNAL, GracefulServer, Server, run, serve
from program import Hosted, Program, one_server
from test_server import Start, hello


def graceful(**options: t.Any) -> GracefulServer:
    return GracefulServer("127.0.0.1:0", hello, **options)


RESTART_SIGNALS = "expected one of signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP"
SECONDS = "expected a number of seconds"
NO_FILE = "expected a descriptor or an open file"

CALLS: dict[str, tuple[t.Callable[[], object], type[Exception], str]] = {
    # The server.
    "app": (lambda: GracefulServer(":0", None), TypeError, "app: expected a WSGI application, got None"),  # type: ignore[arg-type]  # noqa: E501
    "addr": (lambda: GracefulServer(8000, hello), TypeError, "address: expected a string such as ':8000', got 8000"),  # type: ignore[arg-type]  # noqa: E501
    "handle_signals": (lambda: graceful(handle_signals="no"), TypeError, "handle_signals: expected True or False, got 'no'"),  # noqa: E501
    "restart_signal SIGTERM": (lambda: graceful(restart_signal=signal.SIGTERM), ValueError, f"is not supported; {RESTART_SIGNALS}"),  # noqa: E501
    "restart_signal SIGINT": (lambda: graceful(restart_signal=signal.SIGINT), ValueError, f"is not supported; {RESTART_SIGNALS}"),  # noqa: E501
    "restart_signal SIGQUIT": (lambda: graceful(restart_signal=signal.SIGQUIT), ValueError, f"is not supported; {RESTART_SIGNALS}"),  # noqa: E501
    "restart_signal 0": (lambda: graceful(restart_signal=0), ValueError, f"restart_signal 0 is not supported; {RESTART_SIGNALS}"),  # noqa: E501
    "restart_signal True": (lambda: graceful(restart_signal=True), ValueError, f"restart_signal True is not supported; {RESTART_SIGNALS}"),  # noqa: E501
    "restart_signal text": (lambda: graceful(restart_signal="SIGHUP"), ValueError, f"restart_signal 'SIGHUP' is not supported; {RESTART_SIGNALS}"),  # noqa: E501
    "restart_signal list": (lambda: graceful(restart_signal=[1]), ValueError, f"restart_signal [1] is not supported; {RESTART_SIGNALS}"),  # noqa: E501
    # Settings.
    "pid_file type": (lambda: graceful(pid_file=7), TypeError, "pid_file: expected a path, got 7"),
    "pid_file bytes": (lambda: graceful(pid_file=b"a"), TypeError, "pid_file: expected a path, got b'a'"),  # noqa: E501
    "pid_file NUL": (lambda: graceful(pid_file="a\0b"), ValueError, r"pid_file: expected a path, got 'a\x00b'"),  # noqa: E501
    "listen_limit text": (lambda: graceful(listen_limit="1"), TypeError, "listen_limit: expected a whole number, got '1'"),  # noqa: E501
    "listen_limit -1": (lambda: graceful(listen_limit=-1), ValueError, "listen_limit: expected 0 to 2147483648, got -1"),  # noqa: E501
    "old_generations": (lambda: graceful(old_generations=0), ValueError, "old_generations: expected 1 to 100, got 0"),  # noqa: E501
    "tcp_keep_alive": (lambda: graceful(tcp_keep_alive="3m"), TypeError, f"tcp_keep_alive: {SECONDS}, got '3m'"),  # noqa: E501
    "shutdown_delay": (lambda: graceful(shutdown_delay=True), TypeError, f"shutdown_delay: {SECONDS}, got True"),  # noqa: E501
    "hammer_time": (lambda: graceful(hammer_time=float("nan")), TypeError, f"hammer_time: {SECONDS}, got nan"),  # noqa: E501
    "request_timeout": (lambda: graceful(request_timeout="1m"), TypeError, f"request_timeout: {SECONDS}, got '1m'"),  # noqa: E501
    "request_timeout_hard": (lambda: graceful(request_timeout=30, request_timeout_hard=2.5), ValueError, "request_timeout_hard: expected at least request_timeout (30), got 2.5"),  # noqa: E501
    "unknown": (lambda: graceful(pidfile="a"), TypeError, "unknown setting 'pidfile'; did you mean 'pid_file'?"),  # noqa: E501
    # Hooks: when they are registered, and not when they are called.
    "before_begin": (lambda: graceful().before_begin(3), TypeError, "before_begin: expected a function, got 3"),  # type: ignore[arg-type]  # noqa: E501
    "before_begin assigned": (lambda: setattr(graceful(), "before_begin", "f"), TypeError, "before_begin: expected a function, got 'f'"),  # noqa: E501
    "before_restart": (lambda: graceful().before_restart(None), TypeError, "before_restart: expected a function, got None"),  # type: ignore[arg-type]  # noqa: E501
    "before_shutdown": (lambda: graceful().before_shutdown(False), TypeError, "before_shutdown: expected a function, got False"),  # type: ignore[arg-type]  # noqa: E501
    "shutdown_initiated": (lambda: graceful().shutdown_initiated([]), TypeError, "shutdown_initiated: expected a function, got []"),  # type: ignore[arg-type]  # noqa: E501
    "register_on_shutdown": (lambda: graceful().register_on_shutdown(1), TypeError, "register_on_shutdown: expected a function, got 1"),  # type: ignore[arg-type]  # noqa: E501
    "signal hook": (lambda: graceful().register_signal_hook(PRE_SIGNAL, signal.SIGHUP, 1), TypeError, "signal hook: expected a function, got 1"),  # type: ignore[arg-type]  # noqa: E501
    "signal hook's phase": (lambda: graceful().register_signal_hook(5, signal.SIGHUP, hello), ValueError, "hook phase 5: expected PRE_SIGNAL or POST_SIGNAL"),  # type: ignore[arg-type]  # noqa: E501
    "signal hook's signal": (lambda: graceful().register_signal_hook(POST_SIGNAL, "SIGHUP", hello), ValueError, "signal 'SIGHUP' is not supported; expected one of signal.SIGHUP"),  # type: ignore[arg-type]  # noqa: E501
    "before_begin without the address": (lambda: graceful().before_begin(no_argument), TypeError, "before_begin: no_argument() can't be called with the address: too many positional arguments"),  # type: ignore[arg-type]  # noqa: E501
    "before_begin assigned without the address": (lambda: setattr(graceful(), "before_begin", no_argument), TypeError, "before_begin: no_argument() can't be called with the address"),  # noqa: E501
    "before_restart of an argument": (lambda: graceful().before_restart(one_argument), TypeError, "before_restart: one_argument() can't be called without arguments: missing a required argument: 'what'"),  # type: ignore[arg-type]  # noqa: E501
    "before_shutdown of an argument": (lambda: graceful().before_shutdown(one_argument), TypeError, "before_shutdown: one_argument() can't be"),  # type: ignore[arg-type]  # noqa: E501
    "shutdown_initiated of an argument": (lambda: graceful().shutdown_initiated(one_argument), TypeError, "shutdown_initiated: one_argument() can't be"),  # type: ignore[arg-type]  # noqa: E501
    "after_shutdown of an argument": (lambda: graceful().after_shutdown(one_argument), TypeError, "after_shutdown: one_argument() can't be"),  # type: ignore[arg-type]  # noqa: E501
    "register_on_shutdown of an argument": (lambda: graceful().register_on_shutdown(one_argument), TypeError, "register_on_shutdown: one_argument() can't be"),  # type: ignore[arg-type]  # noqa: E501
    "signal hook of arguments": (lambda: graceful().register_signal_hook(PRE_SIGNAL, signal.SIGHUP, hello), TypeError, "signal hook: hello() can't be called without arguments: missing a required argument: 'environ'"),  # type: ignore[arg-type]  # noqa: E501
    "before_begin with parentheses": (lambda: graceful().before_begin(), TypeError, "before_begin: expected a function, got None; a decorator takes no parentheses"),  # type: ignore[call-arg]  # noqa: E501
    "after_shutdown with parentheses": (lambda: graceful().after_shutdown(), TypeError, "after_shutdown: expected a function, got None; a decorator takes no parentheses"),  # noqa: E501
    "spawn": (lambda: graceful().spawn("work"), TypeError, "spawn: expected a function, got 'work'"),  # type: ignore[arg-type]  # noqa: E501
    # Stops and waits.
    "stop -1": (lambda: graceful().stop(timeout=-1), ValueError, "timeout: expected 0 or more seconds, got -1"),  # noqa: E501
    "stop text": (lambda: graceful().stop(timeout="x"), TypeError, f"timeout: {SECONDS}, got 'x'"),  # type: ignore[arg-type]
    "stop nan": (lambda: graceful().stop(float("nan")), TypeError, f"timeout: {SECONDS}, got nan"),
    "shutdown": (lambda: Server(":0", hello).shutdown("5s"), TypeError, f"timeout: {SECONDS}, got '5s'"),  # type: ignore[arg-type]  # noqa: E501
    "wait_for_parent": (lambda: graceful().wait_for_parent("x"), TypeError, f"timeout: {SECONDS}, got 'x'"),  # type: ignore[arg-type]  # noqa: E501
    "restart": (lambda: graceful().restart(), RuntimeError, "nothing is served: a restart needs listen_and_serve()"),  # noqa: E501
    # Files.
    "add_file closed": (lambda: graceful().add_file("a", closed_file()), ValueError, "can't be handed on: I/O operation on closed file"),  # noqa: E501
    "add_file no descriptor": (lambda: graceful().add_file("a", 99999), ValueError, "file 'a': 99999 can't be handed on: Bad file descriptor"),  # noqa: E501
    "add_file -1": (lambda: graceful().add_file("a", -1), ValueError, "file 'a': -1 can't be handed on: Bad file descriptor"),  # noqa: E501
    "add_file huge": (lambda: graceful().add_file("a", 1 << 70), ValueError, "can't be handed on"),
    "add_file path": (lambda: graceful().add_file("a", "path"), TypeError, f"file 'a': {NO_FILE}, got 'path'"),  # noqa: E501
    "add_file None": (lambda: graceful().add_file("a", None), TypeError, f"file 'a': {NO_FILE}, got None"),  # noqa: E501
    "add_file True": (lambda: graceful().add_file("a", True), TypeError, f"file 'a': {NO_FILE}, got True"),  # noqa: E501
    "add_file name": (lambda: graceful().add_file(7, 0), TypeError, "name of a file: expected a string, got 7"),  # type: ignore[arg-type]  # noqa: E501
    # serve() and run().
    "serve nothing": (lambda: serve(), ValueError, "serve() needs at least one server"),
    "serve an app": (lambda: serve(hello), TypeError, "serve(): expected GracefulServers, got <function hello"),  # type: ignore[arg-type]  # noqa: E501
    "serve a Server": (lambda: serve(Server(":0", hello)), TypeError, "serve(): expected GracefulServers, got <"),  # type: ignore[arg-type]  # noqa: E501
    "serve a list": (lambda: serve([graceful()]), TypeError, "serve(): expected GracefulServers, got [<"),  # type: ignore[arg-type]  # noqa: E501
    "serve one address twice": (lambda: serve(graceful(), graceful()), ValueError, "address '127.0.0.1:0' is given 2 times"),  # noqa: E501
    "run's app": (lambda: run(":0", 1, "app"), TypeError, "app: expected a WSGI application, got 'app'"),  # type: ignore[arg-type]  # noqa: E501
    "run's arguments the wrong way round": (lambda: run(":0", hello, 1), TypeError, f"timeout: {SECONDS}, got <function hello"),  # type: ignore[arg-type]  # noqa: E501
    "run's time": (lambda: run(":0", -1, hello), ValueError, "timeout: expected 0 or more seconds, got -1"),  # noqa: E501
    "run's address": (lambda: run("8000", 1, hello), ValueError, "address '8000': expected host:port"),  # noqa: E501
    # Addresses.
    "unix NUL": (lambda: GracefulServer("unix:\0a", hello), ValueError, "expected unix:/path"),
}  # fmt: skip


def no_argument() -> None:
    pass


def one_argument(what: str) -> None:
    pass


def wrapper(*arguments: t.Any) -> None:
    one_argument("what it wraps gets this")


# inspect.signature follows this, and what is called is the wrapper.
wrapper.__wrapped__ = one_argument  # type: ignore[attr-defined]


class Method:
    def begin(self, addr: str) -> None:
        pass

    def __call__(self) -> None:
        pass


def closed_file() -> t.IO[str]:
    file = open(os.devnull)
    file.close()
    return file


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_say_what_would_be_right(name: str) -> None:
    call, error, text = CALLS[name]
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hooks_may_be_all_that_can_be_called_so() -> None:
    server = graceful()
    addresses: list[str] = []
    for begin in (
        addresses.append,
        one_argument,
        Method().begin,
        partial(lambda port, addr: None, 1),
        lambda addr, more=0: None,
        lambda *words, **more: None,
        print,
        wrapper,
        # It keeps its signature to itself.
        type,
    ):
        server.before_begin(begin)
    for hook in (no_argument, Method(), partial(one_argument, "x"), wrapper, os.sync, dict, vars):
        server.before_restart(hook)


def test_a_wrong_time_stops_nothing(running: Start) -> None:
    one = running(hello)
    with one.connect() as client:
        for wrong in ("5s", True, float("nan")):
            with pytest.raises(TypeError):
                one.server.shutdown(wrong)  # type: ignore[arg-type]
            assert client.get()[2] == b"hello"


def test_too_many_files() -> None:
    server = graceful()
    before = len(os.listdir("/proc/self/fd"))
    for i in range(100):
        server.add_file(f"{i}", 0)
    with pytest.raises(ValueError, match="at most 100 files can be handed to a successor"):
        server.add_file("one more", 0)
    # In the place of another one it can.
    server.add_file("7", 0)
    assert len(os.listdir("/proc/self/fd")) == before + 100
    server.heirlooms.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_server_is_served_once_at_a_time(running: Start) -> None:
    one = t.cast("Hosted", running(hello, kind=Hosted))
    with pytest.raises(RuntimeError, match="this server is served already"):
        one.server.listen_and_serve()
    with one.connect() as client:
        assert client.get()[2] == b"hello"
    one.server.stop(wait=True)
    one.join()


def test_a_server_that_could_not_begin_may_try_again(tmp_path: Path) -> None:
    place = tmp_path / "later"
    server = GracefulServer(f"unix:{place}/s", hello, handle_signals=False)
    for _ in range(2):
        with pytest.raises(OSError, match="no such file or directory"):
            server.listen_and_serve()
    place.mkdir()
    server.before_begin(lambda addr: server.stop())
    with pytest.raises(Exception, match="use of closed network connection"):
        server.listen_and_serve()


def test_signals_need_the_main_thread_and_the_remedies_are_named() -> None:
    errors: list[str] = []

    def call() -> None:
        for func in (lambda: serve(graceful()), lambda: run("127.0.0.1:0", 1, hello)):
            with pytest.raises(RuntimeError) as caught:
                func()
            errors.append(str(caught.value))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(20)
    assert len(errors) == 2
    for text in errors:
        assert "use Server, or GracefulServer(..., handle_signals=False)" in text


def test_a_hook_that_fails_before_it_begins_serves_nothing(
    tmp_path: Path, live: t.Callable[..., Live]
) -> None:
    more = "server.before_begin(lambda addr: addr.no_such_method())\n"
    one = Program(tmp_path, live).start(one_server(more, addr="unix:s"))
    assert one.process.wait(60) == 1
    one.wait_for("AttributeError: .*no_such_method")
    assert not (tmp_path / "s").exists()
