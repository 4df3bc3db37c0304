"""What a successor is started from: programs and releases that are switched, moved, deleted and put
back; and what it finds in its environment."""

from __future__ import annotations

import os
import shutil
import signal
import typing as t
import venv
from pathlib import Path

import flask_graceful
import httptools
import pytest
from conftest import Client, Live
from steady import PROGRAM, Fresh, Program, Steady, generation, restart, slow_request

PACKAGE = Path(flask_graceful.__file__).parent


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


@pytest.fixture
def command() -> t.Iterator[t.Callable[..., Live]]:
    """Start a command in a directory, which may be a symbolic link."""
    started: list[Live] = []

    def start(*words: str, cwd: Path) -> Live:
        started.append(Live(list(words), cwd, {"PWD": str(cwd)}))
        return started[-1]

    yield start
    for one in started:
        one.end()


def release(directory: Path) -> Path:
    """A program with an environment of its own, and three ways to start it."""
    name = directory.name
    environment = directory / "venv"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    shutil.copytree(PACKAGE, packages / "flask_graceful", ignore=shutil.ignore_patterns("*.pyc"))
    (packages / "httptools").symlink_to(Path(httptools.__file__).parent)
    (packages / "which.py").write_text(f"release = {name!r}")
    more = f"import which\nprint('code {name} in the environment', which.release, flush=True)"
    code = PROGRAM.replace("#MORE", more)
    (directory / "program.py").write_text(code)
    (directory / "wrapper").write_text('#!/bin/sh\nexec "${0%/*}/venv/bin/python" program.py\n')
    # As installers make it: the path of the interpreter is absolute.
    (directory / "script").write_text(f"#!{environment}/bin/python\n{code}")
    for name in ("wrapper", "script"):
        (directory / name).chmod(0o755)
    return directory


@pytest.mark.parametrize("words", ["venv/bin/python program.py", "./wrapper", "./script"])
def test_symbolic_link_moves_to_a_release_with_its_own_environment(
    tmp_path: Path, command: t.Callable[..., Live], words: str
) -> None:
    for name in ("one", "two"):
        release(tmp_path / name)
    current = tmp_path / "current"
    current.symlink_to("one")
    one = command(*words.split(), cwd=current)
    one.wait_for("^code one in the environment one$")
    for number, name in enumerate(("two", "one"), 2):
        (tmp_path / "next").symlink_to(name)
        (tmp_path / "next").replace(current)
        restart(one, number)
        one.wait_for(f"^code {name} in the environment {name}$", number - 1)


def test_program_that_is_missing_and_put_back(program: Program) -> None:
    """One clear line, and serving goes on; with the file, the next restart works."""
    one = program.start()
    old = generation(one, 1)
    file = program.directory / "program.py"
    aside = file.rename(program.directory / "aside")
    with Fresh(one.port, 2) as fresh, Steady(one.port, 2) as steady:
        os.kill(old, signal.SIGHUP)
        one.wait_for(
            rf"^{old} Restart failed: successor \d+ exited with status 2; this process goes on "
            rf"serving\.\nIts last lines:\n\| .*can't open file .*program\.py.*\n(?!\|)"
        )
        steady.wait_more(20, old)
        aside.rename(file)
        steady.wait_more(20, restart(one, 2))
    assert fresh.failed == steady.refused == steady.breaks == []


def test_directory_that_is_missing_and_put_back(
    tmp_path: Path, live: t.Callable[..., Live]
) -> None:
    """Not even a process can be started; that leaves nothing behind."""
    (tmp_path / "there").mkdir()
    program = Program(tmp_path / "there", live)
    one = program.start()
    old = generation(one, 1)
    aside = program.directory.rename(tmp_path / "aside")
    before: list[str] = []
    for count in range(1, 4):
        os.kill(old, signal.SIGHUP)
        one.wait_for(
            rf"^{old} Restart failed: can't start the successor: .*No such file or directory: "
            rf"'{program.directory}'$",
            count,
        )
        before = before or os.listdir(f"/proc/{old}/fd")
    assert os.listdir(f"/proc/{old}/fd") == before
    aside.rename(program.directory)
    restart(one, 2)


def test_release_deleted_while_the_old_process_drains(
    tmp_path: Path, command: t.Callable[..., Live]
) -> None:
    """With its code, its environment and this package: it finishes its requests, one of which
    fails with a traceback, says what it has to say, and can serve on when its successor dies."""
    old_release = release(tmp_path / "one")
    release(tmp_path / "two")
    current = tmp_path / "current"
    current.symlink_to("one")
    one = command("venv/bin/python", "program.py", cwd=current)
    old = generation(one, 1)
    done, fail = tmp_path / "done", tmp_path / "fail"
    with (
        slow_request(one, old, str(done)) as slow,
        slow_request(one, old, str(fail), "/slow/fail") as failing,
    ):
        current.unlink()
        current.symlink_to("two")
        os.kill(old, signal.SIGHUP)
        new = generation(one, 2)
        one.wait_for(rf"^{old} Waiting for connections")
        shutil.rmtree(old_release)
        os.kill(new, signal.SIGKILL)
        one.wait_for(rf"^{old} Successor {new} was killed by SIGKILL; this process serves again")
        with Client(("127.0.0.1", one.port)) as client:
            assert client.get()[2] == b"%d" % old
            os.kill(old, signal.SIGHUP)
            newest = generation(one, 3)
            one.wait_for(rf"^{old} Waiting for connections", 2)
            assert client.get()[2] == b"%d" % newest
        fail.touch()
        assert failing.response()[0] == 500
        one.wait_for("^ValueError: as asked for$")
        done.touch()
        assert slow.response()[2] == b"%d" % old
        assert slow.get()[2] == b"%d" % newest
    one.wait_for(rf"^{old} Serve\(\) returning")
    assert one.process.wait(60) == 0


# As systemd does it: a listening socket as descriptor 3, and variables that tell of it.
ACTIVATE = """
import os, socket, sys
sock = socket.create_server(("127.0.0.1", 0))
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
os.execv(sys.executable, [sys.executable, "program.py"])
"""


@pytest.mark.parametrize("is_activated", [False, True])
def test_nothing_of_ours_or_of_systemds_is_in_the_environment(
    program: Program, live: t.Callable[..., Live], is_activated: bool
) -> None:
    """Of each generation and its children: while it boots, and while it serves."""
    names = ["FLASK_GRACEFUL_PARENT", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]
    program.write(
        f"""
import subprocess
{'server = GracefulServer("systemd:web", app)' if is_activated else ""}

def look(when):
    child = subprocess.run(["env"], capture_output=True, check=True, text=True).stdout
    here = [name for name in {names} if name in os.environ]
    there = [name for name in {names} if name + "=" in child]
    print(os.getpid(), when, "sees", here + there, flush=True)

look("booting")
server.app = lambda environ, start_response: (look("serving"), app(environ, start_response))[1]

def log_where(addr):
    print(f"Serving HTTP on [::]:{{addr.rpartition(':')[2]}}", flush=True)
    print("Actual pid is", os.getpid(), flush=True)

server.before_begin = log_where
"""
    )
    (program.directory / "activate.py").write_text(ACTIVATE)
    one = live("activate.py" if is_activated else "program.py", cwd=program.directory)
    for number in (1, 2, 3):
        pid = generation(one, 1) if number == 1 else restart(one, number)
        with Client(("127.0.0.1", one.port)) as client:
            assert client.get()[2] == b"%d" % pid
        for when in ("booting", "serving"):
            assert one.wait_for(rf"^{pid} {when} sees (.*)$")[1] == "[]"
