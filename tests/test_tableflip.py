"""What cloudflare/tableflip offers (rows U), in real processes: upgrades that are waited for, the
pid file, parents and children, files for successors, and the files of Unix sockets."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Live, wait_until
from flask_graceful import GracefulServer, ListenError
from flask_graceful.listeners import listen, parse_address
from program import (
    Hosted,
    Program,
    ask,
    children,
    connect,
    is_gone,
    one_server,
    pid_from,
    serving_pids,
    signal_and_wait,
)
from test_server import Start, hello


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


# Upgrades.

UPGRADE = """
def with_orders(environ, start_response):
    if environ['PATH_INFO'] != '/upgrade':
        return app(environ, start_response)
    start_response('200 OK', [])
    try:
        environ['flask_graceful.server'].restart(wait=True)
    except RestartError as error:
        return [f'{os.getpid()}: {error}'.encode()]
    return [f'{os.getpid()}: upgraded'.encode()]

server.app = with_orders
"""


def upgrade(client: Client) -> str:
    """Ask for an upgrade, and what was said when it was over."""
    return client.get("/upgrade")[2].decode()


def test_U9_U10_U11_an_upgrade_is_waited_for(program: Program) -> None:
    one = program.start(one_server(UPGRADE))
    (old,) = serving_pids(one, 1)
    with connect(one.port) as client:
        program.write("wait_for_file('go')\n" + one_server(UPGRADE))
        client.send(b"GET /upgrade HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("forking")
        # The old process alone serves until the new one is ready.
        for _ in range(10):
            assert ask(one.port) == old
        assert not client.is_closed(0.1)
        program.let_go()
        assert client.response()[2].decode() == f"{old}: upgraded"
        assert pid_from(client) == ask(one.port) == serving_pids(one, 2)[1]


FAILURES = {
    "import sys; sys.exit(3)": r"successor \d+ exited with status 3",
    "1 / 0": r"successor \d+ exited with status 1",
    "os.kill(os.getpid(), 9)": r"successor \d+ was killed by SIGKILL",
    "time.sleep(60)": r"successor \d+ was killed by SIGKILL",
}


def test_U9_U10_a_failed_upgrade_says_why_and_the_next_one_works(program: Program) -> None:
    more = UPGRADE + (
        "@server.before_restart\n"
        "def check():\n"
        "    if os.path.exists('not-now'): raise ValueError('not now')\n"
    )
    text = one_server(more, boot_timeout=5)
    one = program.start(text)
    (old,) = serving_pids(one, 1)
    with connect(one.port) as client:
        for code, reason in FAILURES.items():
            program.write(f"{code}\n{text}")
            assert re.fullmatch(f"{old}: {reason}", upgrade(client))
            assert children(old) == []
        program.let_go("not-now")
        program.write(text)
        assert upgrade(client) == f"{old}: refused by before_restart hook: not now"
        os.unlink(program.directory / "not-now")
        assert upgrade(client) == f"{old}: upgraded"
        new = pid_from(client)
        assert new == ask(one.port) == serving_pids(one, 2)[1]


def test_U9_one_upgrade_at_a_time(program: Program) -> None:
    text = one_server(UPGRADE)
    one = program.start(text)
    (old,) = serving_pids(one, 1)
    program.write("wait_for_file('go')\n" + text)
    with connect(one.port) as first, connect(one.port) as second:
        first.send(b"GET /upgrade HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("forking")
        said = upgrade(second)
        assert said == f"{old}: a restart is under way; another one follows it"
        program.let_go()
        assert first.response()[2].decode() == f"{old}: upgraded"
        assert pid_from(first) in serving_pids(one, 3)[1:]


def test_U13_a_stop_ends_an_upgrade(program: Program) -> None:
    text = one_server(UPGRADE, idle_grace=0)
    one = program.start(text)
    (old,) = serving_pids(one, 1)
    program.write("time.sleep(60)\n" + text)
    with connect(one.port) as client:
        client.send(b"GET /upgrade HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("forking")
        (child,) = wait_until(lambda: children(old), "a successor")
        os.kill(old, signal.SIGTERM)
        assert re.fullmatch(
            rf"{old}: successor {child} was killed by SIGTERM", client.response()[2].decode()
        )
    assert one.process.wait(60) == 0
    assert is_gone(child)


def test_U9_nothing_to_upgrade() -> None:
    server = GracefulServer("127.0.0.1:0", hello)
    for wait in (False, True):
        with pytest.raises(RuntimeError, match="nothing is served"):
            server.restart(wait=wait)


# Parents.


def test_U12_a_successor_can_wait_for_its_parent(program: Program) -> None:
    more = (
        "say(os.getpid(), 'has parent', has_parent())\n"
        "def wait():\n"
        "    say(os.getpid(), 'at first', server.wait_for_parent(0.2))\n"
        "    say(os.getpid(), 'then', server.wait_for_parent())\n"
        "@server.before_begin\n"
        "def begin(addr):\n"
        "    say(os.getpid(), 'Serving HTTP on', addr)\n"
        "    threading.Thread(target=wait).start()\n"
    )
    one = program.start(one_server(more))
    (old,) = serving_pids(one, 1)
    for line in ("has parent False", "at first True", "then True"):
        one.wait_for(f"^{old} {line}$")
    with connect(one.port) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held$")
        os.kill(old, signal.SIGHUP)
        new = serving_pids(one, 2)[1]
        one.wait_for(f"^{new} has parent True$")
        one.wait_for(f"^{new} at first False$")
        assert f"{new} then" not in one.log
        program.let_go()
        assert int(client.response()[2]) == old
        one.wait_for(f"^{new} then True$")
    assert one.process.wait(60) == 0
    # Told by its end, and not before.
    assert one.log.index(f"{old} Serve() returning") < one.log.index(f"{new} then True")


def test_U12_a_killed_parent_is_gone_too(program: Program) -> None:
    more = "threading.Thread(target=lambda: say('gone', server.wait_for_parent())).start()\n"
    one = program.start(one_server(more))
    (old,) = serving_pids(one, 1)
    one.wait_for("^gone True$")
    with connect(one.port) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held$")
        os.kill(old, signal.SIGHUP)
        new = serving_pids(one, 2)[1]
        one.wait_for(f"^{old} Waiting for connections")
        os.kill(old, signal.SIGKILL)
        one.wait_for("^gone True$", 2)
        assert ask(one.port) == new


# The pid file.


def test_U8_pid_file_names_who_serves(program: Program) -> None:
    path = program.directory / "run.pid"
    more = (
        "os.chdir('/')\n"
        "@server.before_begin\n"
        "def begin(addr):\n"
        f"    where = {str(path)!r}\n"
        "    named = open(where).read().strip() if os.path.exists(where) else 'nobody'\n"
        "    say(os.getpid(), 'begins after', named)\n"
        "    say(os.getpid(), 'Serving HTTP on', addr)\n"
    )
    text = one_server(more, pid_file="run.pid", idle_grace=0)
    one = program.start(text)
    (pid,) = serving_pids(one, 1)
    assert ask(one.port) == pid
    one.wait_for(f"^{pid} begins after nobody$")
    assert path.read_text() == f"{pid}\n"
    assert path.stat().st_mode & 0o777 == 0o644
    seen: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        # Replaced in one step: never empty, never away.
        while not stop.is_set():
            seen.add(path.read_text())

    watcher = threading.Thread(target=watch)
    watcher.start()
    pids = [pid]
    for count in (2, 3, 4):
        signal_and_wait(one, pids[-1], signal.SIGHUP)
        pids = serving_pids(one, count)
        assert path.read_text() == f"{pids[-1]}\n"
        one.wait_for(f"^{pids[-1]} begins after {pids[-2]}$")
    wait_until(lambda: f"{pids[-1]}\n" in seen, "the last one seen")
    stop.set()
    watcher.join(20)
    assert seen == {f"{one}\n" for one in pids}
    signal_and_wait(one, pids[-1], signal.SIGTERM)
    wait_until(lambda: not path.exists(), "removed")
    assert [name for name in os.listdir(program.directory) if "pid" in name] == []


def test_U8_a_pid_file_that_names_another_is_kept(program: Program) -> None:
    path = program.directory / "run.pid"
    one = program.start(one_server(pid_file="run.pid", idle_grace=0))
    ask(one.port)
    path.write_text("1\n")
    os.kill(one.pid, signal.SIGTERM)
    assert one.process.wait(60) == 0
    assert path.read_text() == "1\n"


def test_U8_a_pid_file_that_went_away_is_no_error(program: Program) -> None:
    path = program.directory / "run.pid"
    one = program.start(one_server(pid_file=str(path), idle_grace=0))
    ask(one.port)
    path.unlink()
    os.kill(one.pid, signal.SIGTERM)
    assert one.process.wait(60) == 0
    assert "Traceback" not in one.log


def test_U8_the_pid_file_of_a_successor_that_died_is_taken_back(program: Program) -> None:
    path = program.directory / "run.pid"
    one = program.start(one_server(pid_file="run.pid"))
    (old,) = serving_pids(one, 1)
    with connect(one.port) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held$")
        os.kill(old, signal.SIGHUP)
        new = serving_pids(one, 2)[1]
        one.wait_for(f"^{old} Waiting for connections")
        assert path.read_text() == f"{new}\n"
        os.kill(new, signal.SIGKILL)
        one.wait_for("was killed by SIGKILL; this process serves again")
        assert path.read_text() == f"{old}\n"
        assert ask(one.port) == old
        program.let_go()
        assert int(client.response()[2]) == old


WRONG_PLACES = {
    "nowhere/run.pid": "no such file or directory",
    "directory": "is a directory",
    "file/run.pid": "not a directory",
}


@pytest.mark.parametrize("place", WRONG_PLACES)
def test_U8_a_pid_file_that_cannot_be_written_is_one_line(
    tmp_path: Path, live: t.Callable[..., Live], place: str
) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "web.py").write_text("def app(environ, start_response): pass\n")
    flags = ("--bind=unix:s", f"--pid-file={place}")
    one = live("-m", "flask_graceful", *flags, "web", cwd=tmp_path)
    assert one.process.wait(60) == 1
    one.wait_for("^flask_graceful: ")
    last = one.log.splitlines()[-1]
    assert last == f"flask_graceful: pid file {tmp_path / place}: {WRONG_PLACES[place]}"
    assert "Traceback" not in one.log
    # Nothing is left of the attempt.
    left = set(os.listdir(tmp_path)) - {"__pycache__"}
    assert left == {"directory", "file", "web.py"}


def test_U8_a_successor_that_cannot_write_its_pid_file_is_refused(program: Program) -> None:
    path = program.directory / "run.pid"
    one = program.start(one_server(pid_file="run.pid"))
    (old,) = serving_pids(one, 1)
    program.write(one_server(pid_file="nowhere/run.pid"))
    with connect(one.port) as client:
        assert pid_from(client) == old
        os.kill(old, signal.SIGHUP)
        one.wait_for("Restart failed: successor .* exited with status 1; this process goes on")
        place = program.directory / "nowhere/run.pid"
        assert f"pid file {place}: no such file or directory" in one.log
        assert pid_from(client) == ask(one.port) == old
    assert path.read_text() == f"{old}\n"


# The files of Unix sockets.


def test_U13_the_file_of_a_unix_socket_outlives_a_restart_and_no_stop(program: Program) -> None:
    """Also when the application has gone elsewhere."""
    path = program.directory / "s"
    more = (
        "@server.before_begin\n"
        "def begin(addr):\n"
        "    os.chdir('/')\n"
        "    say(os.getpid(), 'Serving HTTP on', addr)\n"
    )
    one = program.start(one_server(more, addr="unix:s", idle_grace=0))
    (old,) = serving_pids(one, 1)
    inode = path.stat().st_ino
    assert ask(str(path)) == old
    signal_and_wait(one, old, signal.SIGHUP)
    assert one.process.wait(60) == 0
    new = serving_pids(one, 2)[1]
    assert ask(str(path)) == new
    assert path.stat().st_ino == inode
    signal_and_wait(one, new, signal.SIGTERM)
    wait_until(lambda: not path.exists(), "removed")


def test_U13_another_s_socket_in_the_place_is_kept(program: Program) -> None:
    path = program.directory / "s"
    one = program.start(one_server(addr="unix:s", idle_grace=0))
    (old,) = serving_pids(one, 1)
    signal_and_wait(one, old, signal.SIGHUP)
    new = serving_pids(one, 2)[1]
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        signal_and_wait(one, new, signal.SIGTERM)
        wait_until(lambda: is_gone(new), "ended")
        connect(str(path)).sock.close()
    assert path.exists()


def test_U14_a_file_that_is_no_socket_is_never_removed(program: Program) -> None:
    path = program.directory / "s"
    path.write_text("precious")
    text = (
        "server = GracefulServer('unix:s', app)\n"
        "try:\n"
        "    server.listen_and_serve()\n"
        "except ListenError as err:\n"
        "    say('error', err)\n"
    )
    one = program.start(text)
    assert one.process.wait(60) == 0
    one.wait_for("^error listen unix s: bind: address already in use$")
    assert path.read_text() == "precious"
    # Nor when it comes later.
    path.unlink()
    two = program.start(one_server(addr="unix:s", idle_grace=0))
    two.wait_for("Serving")
    path.unlink()
    path.write_text("precious")
    os.kill(two.pid, signal.SIGTERM)
    assert two.process.wait(60) == 0
    assert path.read_text() == "precious"


def test_U14_the_file_of_a_server_that_was_killed_is_replaced(program: Program) -> None:
    text = one_server(addr="unix:s", idle_grace=0)
    one = program.start(text)
    one.wait_for("Serving")
    os.kill(one.pid, signal.SIGKILL)
    one.process.wait(60)
    assert (program.directory / "s").exists()
    two = program.start(text)
    two.wait_for("Serving")
    assert ask(str(program.directory / "s")) == two.pid
    # That one is alive.
    three = program.start(text)
    assert three.process.wait(60) == 1
    three.wait_for("ListenError: listen unix s: bind: address already in use$")
    assert ask(str(program.directory / "s")) == two.pid


@pytest.mark.skipif(not os.path.isdir("/proc/net"), reason="needs Linux")
def test_U14_abstract_sockets_have_no_file(program: Program) -> None:
    name = f"flask-graceful-{os.getpid()}"
    # Whatever has that name in the directory is no socket of ours.
    (program.directory / f"@{name}").write_text("precious")
    one = program.start(one_server(addr=f"unix:@{name}", idle_grace=0))
    (old,) = serving_pids(one, 1)
    one.wait_for(f"^{old} Serving HTTP on unix:@{name}$")
    assert ask(f"\0{name}") == old
    signal_and_wait(one, old, signal.SIGHUP)
    new = serving_pids(one, 2)[1]
    assert ask(f"\0{name}") == new
    signal_and_wait(one, new, signal.SIGTERM)
    assert (program.directory / f"@{name}").read_text() == "precious"
    with pytest.raises(ListenError, match="address already in use"):
        first = listen(parse_address(f"unix:@{name}"))
        try:
            listen(parse_address(f"unix:@{name}"))
        finally:
            first.close()


# Files for successors.

FILES = """
def fds():
    found = {}
    for fd in os.listdir('/proc/self/fd'):
        try:
            found[int(fd)] = os.readlink(f'/proc/self/fd/{fd}')
        except OSError:
            pass
    return found

for name in CLAIMED:
    fd = server.inherited_file(name)
    if fd is None:
        say(os.getpid(), name, None)
        continue
    if name == 'udp':
        sock = socket.socket(fileno=fd)
        say(os.getpid(), name, sock.getsockname()[1])
        sock.close()
    else:
        os.lseek(fd, 0, 0)
        say(os.getpid(), name, os.read(fd, 100).decode(), os.get_inheritable(fd))
        os.close(fd)

if not has_parent():
    for name in ('kept', 'left', 'replaced'):
        with open(name, 'w+') as file:
            file.write(name)
            file.flush()
            server.add_file(name, file if name == 'kept' else file.fileno())
    with open('another', 'w+') as file:
        file.write('another')
        file.flush()
        server.add_file('replaced', file)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(('127.0.0.1', 0))
    say(os.getpid(), 'udp', udp.getsockname()[1])
    server.add_file('udp', udp)
    udp.close()

@server.before_begin
def begin(addr):
    say(os.getpid(), 'Serving HTTP on', addr)

def show(environ, start_response):
    start_response('200 OK', [])
    names = ('kept', 'left', 'replaced', 'another')
    here = [os.path.basename(target) for target in fds().values()]
    return [' '.join(name for name in names if name in here).encode()]

server.app = show
"""


def test_U1_U7_U8_files_for_successors_over_two_generations(program: Program) -> None:
    """A regular file, and a UDP socket (tableflip's PacketConn)."""
    claimed = ("kept", "replaced", "udp", "unknown")
    more = FILES.replace("CLAIMED", repr(claimed))
    one = program.start(one_server(more, idle_grace=0))
    (pid,) = serving_pids(one, 1)
    for name in claimed[:2]:
        one.wait_for(f"^{pid} {name} None$")
    port = one.wait_for(rf"^{pid} udp (\d+)$")[1]

    def held() -> str:
        with connect(one.port) as client:
            return client.get()[2].decode()

    # Each once, closed by its user as it is; what was replaced is gone.
    assert held() == "kept left another"
    for count in (2, 3):
        signal_and_wait(one, pid, signal.SIGHUP)
        pid = serving_pids(one, count)[-1]
        said = re.findall(rf"^{pid} ((?:kept|replaced|udp|unknown) .*)$", one.log, re.M)
        assert said == [
            "kept kept False",
            "replaced another False",
            f"udp {port}",
            "unknown None",
        ]
        # Nobody has asked for the other one.
        assert held() == "kept another"


def test_U7_files_are_closed_with_their_server(running: Start) -> None:
    one = running(hello, kind=Hosted)
    before = len(os.listdir("/proc/self/fd"))
    one.server.add_file("null", 0)  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before + 1
    one.server.stop(wait=True)  # type: ignore[attr-defined]
    one.join()
    # The listener, the pollers and this one.
    assert len(os.listdir("/proc/self/fd")) < before
    assert "null" not in one.server.heirlooms.fds()  # type: ignore[attr-defined]
