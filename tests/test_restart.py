"""`GracefulServer`: real processes, real signals. Names carry the rows of the specification."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
import typing as t
from pathlib import Path

import pytest
from conftest import SLACK, Client, Live, wait_until
from flask_graceful import POST_SIGNAL, PRE_SIGNAL, GracefulServer
from load import Load

PROGRAM = """
import os, sys, threading, time
from flask_graceful import POST_SIGNAL, PRE_SIGNAL, GracefulServer, ServerClosed

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        print("slow begins", flush=True)
        time.sleep(float(environ["QUERY_STRING"] or 3))
    if path == "/environ":
        body = "\\n".join(sorted(os.environ)).encode()
    elif path == "/children":
        import subprocess
        body = subprocess.run(["env"], capture_output=True, check=True).stdout
    else:
        body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

server = GracefulServer(":0", app, **eval(os.environ.get("OPTIONS", "{}")))

@server.before_begin
def log_pid(addr):
    print("Serving HTTP on", addr, flush=True)
    print("Actual pid is", os.getpid(), flush=True)

#MORE
try:
    server.listen_and_serve()
except ServerClosed as err:
    print(f"Server err: {err}\\n", end="", flush=True)
"""


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> t.Callable[..., Live]:
    """Start PROGRAM from a file that the test may change."""

    def start(more: str = "", **options: t.Any) -> Live:
        (tmp_path / "program.py").write_text(PROGRAM.replace("#MORE", more))
        return live("program.py", cwd=tmp_path, env={"OPTIONS": repr(options)})

    return start


def ask(port: int, path: str = "/") -> bytes:
    with Client(("127.0.0.1", port)) as client:
        code, _, body = client.get(path)
        assert code == 200
        return body


def is_gone(pid: int) -> bool:
    """Has the process ended? A zombie has."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_refused(port: int) -> bool:
    try:
        Client(("127.0.0.1", port)).sock.close()
    except ConnectionRefusedError:
        return True
    return False


def test_log_has_the_lines_of_the_article_in_its_order(program: t.Callable[..., Live]) -> None:
    """They are endless's (row E4)."""
    one = program()
    port = one.port
    (old,) = one.wait_pids(1)
    assert ask(port) == b"%d" % old
    os.kill(old, signal.SIGHUP)
    old, new = one.wait_pids(2)
    one.wait_for("Server err: ")
    assert one.process.wait(60) == 0
    assert ask(port) == b"%d" % new
    os.kill(new, signal.SIGTERM)
    wait_until(lambda: is_refused(port), "stopped")
    one.wait_for("Server err: ", 2)
    lines = [line for line in one.log.splitlines() if not line.startswith("Serving")]
    closed = f"Server err: accept tcp [::]:{port}: use of closed network connection"
    assert lines == [
        f"Actual pid is {old}",
        f"{old} Received SIGHUP. forking.",
        f"Actual pid is {new}",
        f"{old} Received SIGTERM.",
        f"{old} [::]:{port} Listener closed.",
        f"{old} Waiting for connections to finish...",
        f"{old} Serve() returning...",
        closed,
        f"{new} Received SIGTERM.",
        f"{new} [::]:{port} Listener closed.",
        f"{new} Waiting for connections to finish...",
        f"{new} Serve() returning...",
        closed,
    ]


def test_E19_no_request_is_lost_in_ten_restarts(program: t.Callable[..., Live]) -> None:
    one = program()
    with Load(one.port, clients=8) as load:
        for generation in range(1, 11):
            pids = one.wait_pids(generation)
            os.kill(pids[-1], signal.SIGHUP)
            one.wait_for(r"Serve\(\) returning", generation)
            # Each generation serves for a while.
            load.wait_count(load.count + 100)
        load.wait_count(2000)
        load.stop()
        assert load.failed == []
        assert load.count >= 2000
        assert len(load.answers) >= 10


def test_a_request_in_flight_survives_a_restart_and_a_stop(program: t.Callable[..., Live]) -> None:
    one = program()
    (old,) = one.wait_pids(1)
    with Client(("127.0.0.1", one.port)) as first, Client(("127.0.0.1", one.port)) as second:
        first.send(b"GET /slow?1.5 HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("slow begins")
        os.kill(old, signal.SIGHUP)
        old, new = one.wait_pids(2)
        one.wait_for(f"{old} Waiting for connections")
        assert ask(one.port) == b"%d" % new
        with Client(("127.0.0.1", one.port)) as third:
            third.send(b"GET /slow?1.5 HTTP/1.1\r\nHost: a\r\n\r\n")
            one.wait_for("slow begins", 2)
            os.kill(new, signal.SIGTERM)
            assert first.response()[2] == b"%d" % old
            assert third.response()[2] == b"%d" % new
        # An idle connection is not kept for ever.
        assert second.is_closed()


def test_stop_with_nothing_in_flight_is_quick(program: t.Callable[..., Live]) -> None:
    one = program(idle_grace=60, hammer_time=60)
    (pid,) = one.wait_pids(1)
    assert ask(one.port) == b"%d" % pid
    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert one.process.wait(60) == 0
    assert time.monotonic() - began < SLACK


BROKEN = {
    "syntax error": ("def", "SyntaxError"),
    "missing dependency": ("import no_such_module", "No module named 'no_such_module'"),
    "failing hook": (
        "@server.before_begin\ndef fail(addr): raise ValueError('not today')",
        "not today",
    ),
    "exit status": ("sys.exit(3)", "exited with status 3"),
    "killed": ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
}


def test_E13_broken_successors_change_nothing(
    program: t.Callable[..., Live], tmp_path: Path
) -> None:
    one = program()
    (old,) = one.wait_pids(1)
    good = (tmp_path / "program.py").read_text()
    with Load(one.port, clients=2) as load:
        for count, (code, reason) in enumerate(BROKEN.values(), 1):
            (tmp_path / "program.py").write_text(PROGRAM.replace("#MORE", code))
            os.kill(old, signal.SIGHUP)
            one.wait_for(f"{old} Restart failed: .*this process goes on serving", count)
            assert reason in one.log
            # Reaped: no zombie is left.
            assert children(old) == []
        assert ask(one.port) == b"%d" % old
        (tmp_path / "program.py").write_text(good)
        os.kill(old, signal.SIGHUP)
        one.wait_for("Server err: ")
        new = int(re.findall(r"Actual pid is (\d+)", one.log)[-1])
        load.wait_count(load.count + 50)
    assert load.failed == []
    assert ask(one.port) == b"%d" % new != b"%d" % old


def test_a_successor_that_hangs_is_killed_at_boot_timeout(
    program: t.Callable[..., Live], tmp_path: Path
) -> None:
    one = program(boot_timeout=0.5)
    (old,) = one.wait_pids(1)
    (tmp_path / "program.py").write_text(PROGRAM.replace("#MORE", "time.sleep(60)"))
    os.kill(old, signal.SIGHUP)
    one.wait_for("was not ready after 0.5 seconds")
    one.wait_for("was killed by SIGKILL; this process goes on serving")
    assert ask(one.port) == b"%d" % old


def test_a_restart_asked_for_during_a_boot_follows_it(
    program: t.Callable[..., Live], tmp_path: Path
) -> None:
    one = program()
    (old,) = one.wait_pids(1)
    wait_for_file = "while not os.path.exists('go'): time.sleep(0.01)"
    (tmp_path / "program.py").write_text(PROGRAM.replace("#MORE", wait_for_file))
    os.kill(old, signal.SIGHUP)
    one.wait_for("forking")
    os.kill(old, signal.SIGHUP)
    one.wait_for("another one follows it")
    (tmp_path / "go").touch()
    _, second, third = one.wait_pids(3)
    one.wait_for("Server err: ", 2)
    assert ask(one.port) == b"%d" % third
    wait_until(lambda: is_gone(second), "the second generation gone")


def test_a_stop_during_a_boot_stops_the_successor_too(
    program: t.Callable[..., Live], tmp_path: Path
) -> None:
    one = program()
    (old,) = one.wait_pids(1)
    (tmp_path / "program.py").write_text(PROGRAM.replace("#MORE", "time.sleep(60)"))
    os.kill(old, signal.SIGHUP)
    (child,) = wait_until(lambda: children(old), "a successor")
    os.kill(old, signal.SIGTERM)
    assert one.process.wait(60) == 0
    assert is_gone(child)
    assert is_refused(one.port)


def test_the_old_process_killed_while_its_successor_boots_leaves_it_serving(
    program: t.Callable[..., Live], tmp_path: Path
) -> None:
    one = program()
    (old,) = one.wait_pids(1)
    port = one.port
    wait_for_file = "while not os.path.exists('go'): time.sleep(0.01)"
    (tmp_path / "program.py").write_text(PROGRAM.replace("#MORE", wait_for_file))
    os.kill(old, signal.SIGHUP)
    wait_until(lambda: children(old), "a successor")
    os.kill(old, signal.SIGKILL)
    one.process.wait(60)
    (tmp_path / "go").touch()
    _, new = one.wait_pids(2)
    assert ask(port) == b"%d" % new


def test_E6_nothing_of_ours_is_in_the_environment(program: t.Callable[..., Live]) -> None:
    one = program()
    one.wait_pids(1)
    os.kill(one.pid, signal.SIGHUP)
    one.wait_for("Server err: ")
    assert b"GRACEFUL_PARENT" not in ask(one.port, "/environ")
    assert b"GRACEFUL_PARENT" not in ask(one.port, "/children")


def test_E3_usr1_and_tstp_are_logged_and_do_nothing_else(program: t.Callable[..., Live]) -> None:
    one = program()
    (pid,) = one.wait_pids(1)
    for name in ("SIGUSR1", "SIGTSTP", "SIGUSR2"):
        os.kill(pid, getattr(signal, name))
        one.wait_for(f"{pid} Received {name}.")
    assert ask(one.port) == b"%d" % pid


@pytest.mark.parametrize("signum", [signal.SIGUSR2, signal.SIGINT])
def test_hammer_cuts_and_names_what_it_cuts(
    program: t.Callable[..., Live], signum: signal.Signals
) -> None:
    one = program()
    with Client(("127.0.0.1", one.port)) as client:
        client.send(b"GET /slow?60 HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("slow begins")
        os.kill(one.pid, signal.SIGTERM)
        one.wait_for("Waiting for connections")
        os.kill(one.pid, signum)
        assert client.is_closed()
        assert one.process.wait(60) == 0
    one.wait_for(r"\[STOP - Hammer Time\] Forcefully shutting down parent")
    one.wait_for(rf"{one.pid} Cut: GET /slow of .* after \d+\.\d seconds")


def test_E10_hammer_time(program: t.Callable[..., Live]) -> None:
    one = program(hammer_time=0.3)
    with Client(("127.0.0.1", one.port)) as client:
        client.send(b"GET /slow?60 HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("slow begins")
        began = time.monotonic()
        os.kill(one.pid, signal.SIGTERM)
        assert client.is_closed()
        assert one.process.wait(60) == 0
        assert 0.25 < time.monotonic() - began < 0.3 + SLACK


def test_E3_signal_hooks_run_before_and_after_the_act(program: t.Callable[..., Live]) -> None:
    one = program(
        "import signal\n"
        "def say(what): return lambda: print(what, flush=True)\n"
        "def fail(): raise ValueError('hook')\n"
        "server.register_signal_hook(PRE_SIGNAL, signal.SIGUSR1, fail)\n"
        "server.register_signal_hook(PRE_SIGNAL, signal.SIGUSR1, say('before'))\n"
        "server.register_signal_hook(POST_SIGNAL, signal.SIGUSR1, say('after'))\n"
    )
    one.wait_pids(1)
    os.kill(one.pid, signal.SIGUSR1)
    one.wait_for("^after$")
    said = [line for line in one.log.splitlines() if re.search("before$|Received|after$", line)]
    assert said == ["before", f"{one.pid} Received SIGUSR1.", "after"]
    one.wait_for("SIGUSR1 hook .* failed")


def hello(environ: t.Any, start_response: t.Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def test_the_command_is_repeated_where_it_was_given(
    program: t.Callable[..., Live], tmp_path: Path
) -> None:
    one = program("os.chdir('/')")
    (old,) = one.wait_pids(1)
    os.kill(old, signal.SIGHUP)
    _, new = one.wait_pids(2)
    one.wait_for("Listener closed")
    assert ask(one.port) == b"%d" % new


def test_a_release_switched_by_symbolic_link_runs_the_new_code(
    tmp_path: Path, live: t.Callable[..., Live]
) -> None:
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        say = f"print('release {release}', flush=True)"
        (tmp_path / release / "program.py").write_text(PROGRAM.replace("#MORE", say))
    current = tmp_path / "current"
    current.symlink_to("one")
    one = live("program.py", cwd=current, env={"PWD": str(current)})
    one.wait_for("release one")
    one.wait_pids(1)
    current.unlink()
    current.symlink_to("two")
    os.kill(one.pid, signal.SIGHUP)
    one.wait_for("release two")
    one.wait_pids(2)


def test_E8_before_begin_as_the_article_assigns_it(program: t.Callable[..., Live]) -> None:
    one = program("server.before_begin = lambda addr: print('begins at', addr, flush=True)")
    one.wait_for(r"begins at \[::\]:\d+")


def test_E5_wrong_hooks_are_refused() -> None:
    server = GracefulServer(":0", hello)
    with pytest.raises(ValueError, match="expected PRE_SIGNAL or POST_SIGNAL"):
        server.register_signal_hook(2, signal.SIGHUP, lambda: None)
    for when in (PRE_SIGNAL, POST_SIGNAL):
        with pytest.raises(ValueError, match=r"is not supported; expected one of signal\.SIGHUP"):
            server.register_signal_hook(when, signal.SIGQUIT, lambda: None)


def test_outside_the_main_thread_the_remedy_is_named() -> None:
    errors: list[Exception] = []

    def serve() -> None:
        try:
            GracefulServer(":0", hello).listen_and_serve()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(20)
    assert "to serve in another one, use Server" in str(errors[0])


def test_colon_port_takes_both_families(program: t.Callable[..., Live]) -> None:
    one = program()
    with socket.create_connection(("127.0.0.1", one.port), 20) as four:
        assert four.getpeername()[0] == "127.0.0.1"
    if socket.has_dualstack_ipv6():
        with socket.create_connection(("::1", one.port), 20) as six:
            assert six.getpeername()[0] == "::1"
