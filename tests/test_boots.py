"""What a successor prints, how its start fails, and what it is started from: releases that are
switched, moved and deleted."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import flask_graceful
import pytest
from conftest import Live, open_files, suspend, wait_until
from service import Service
from steady import Fresh, Program, Steady, generation

PACKAGE = Path(flask_graceful.__file__).parent


PRINTS = """
import subprocess
child = "until [ -e more ]; do sleep 0.05; done; echo the child says"
subprocess.Popen(["sh", "-c", child])

@server.before_begin
def begin(addr):
    # It has its listeners, and needs nobody any more.
    open(f"boots-{os.getpid()}", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    print("one\\ntwo")
    print("three")
"""


def test_one_process_at_a_time_reads_what_a_worker_prints(
    tmp_path: Path, live: t.Callable[..., Live]
) -> None:
    """Two of them would pass it on in any order: the supervisor until it has heard that the worker
    is ready, and the worker from then on."""
    service = Service(tmp_path, live).start(workers=1)
    service.write(PRINTS, workers=1)
    service.signal(signal.SIGHUP)
    (boots,) = wait_until(lambda: list(tmp_path.glob("boots-*")), "the new worker")
    new = int(boots.name.removeprefix("boots-"))
    suspend(service.pid)
    service.let_go("go")
    output = os.readlink(f"/proc/{service.pid}/fd/1")
    wait_until(lambda: os.readlink(f"/proc/{new}/fd/1") == output, "the end of its boot")
    time.sleep(0.3)
    assert "one" not in service.one.log.replace("loads one", "")
    os.kill(service.pid, signal.SIGCONT)
    service.one.wait_for("^one\ntwo\nthree$")
    service.workers(2)
    service.let_go("more")
    service.one.wait_for("^the child says$")


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


class Printing:
    """A program whose standard output and error go to a file each, or to a terminal."""

    def __init__(self, directory: Path, terminal: int | None = None, **options: t.Any) -> None:
        environ = {**os.environ, "OPTIONS": repr(options), "PYTHONUNBUFFERED": ""}
        self._out, self._err = directory / "out", directory / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "program.py"],
                cwd=directory,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out if terminal is None else terminal,
                stderr=err if terminal is None else terminal,
                start_new_session=True,
            )

    def __enter__(self) -> Printing:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)

    @property
    def out(self) -> str:
        return self._out.read_text()

    def wait_out(self, text: str, since: int = 0) -> None:
        """Wait for a text on standard output, behind so many characters."""
        wait_until(lambda: text in self.out[since:], repr(text))

    @property
    def err(self) -> str:
        return self._err.read_text()

    def pid(self, number: int) -> int:
        """The process that was the first to be ready, the second, ..."""
        pattern = re.compile(r"^Actual pid is (\d+)$", re.MULTILINE)
        return int(wait_until(lambda: pattern.findall(self.out)[number - 1 :], "a process")[0])

    @property
    def port(self) -> int:
        return int(re.findall(r"^Serving HTTP on .*:(\d+)$", self.out, re.MULTILINE)[0])

    def wait_err(self, pattern: str) -> re.Match[str]:
        found: re.Match[str] = wait_until(
            lambda: re.search(pattern, self.err, re.MULTILINE), f"{pattern!r} in {self.err}"
        )
        return found


# How a successor ends: what the log says of it, its code, and the last line that is quoted.
BROKEN = [
    ("exited with status 1", "import no_such_module", "No module named 'no_such_module'"),
    ("exited with status 3", "for i in range(500): print('line', i)\nsys.exit(3)", "to stderr"),
    ("was killed by SIGKILL", "time.sleep(60)", "to stderr"),
]


def test_three_broken_successors_and_a_good_one(program: Program) -> None:
    """The log says how each has failed, and has the end of what it printed, on both streams; all
    of that also went where this process prints. Serving goes on, and the good one takes over."""
    program.write()
    with Printing(program.directory, boot_timeout=4) as one:
        old = one.pid(1)
        with Fresh(one.port, 2) as fresh, Steady(one.port, 2) as steady:
            for how, code, last in BROKEN:
                program.write(f"print('to stdout')\nprint('to stderr', file=sys.stderr)\n{code}")
                out, err = len(one.out), len(one.err)
                os.kill(old, signal.SIGHUP)
                failed = one.wait_err(
                    rf"^{old} Restart failed: successor \d+ {how}; this process goes on serving\.\n"
                    r"Its last lines:\n((?:\| .*\n)+)"
                )
                lines = [line[2:] for line in failed[1].splitlines()]
                assert lines[-1].endswith(last)
                assert "to stderr" in lines
                assert "\nto stderr\n" in one.err[err:]
                printed = one.out[out:]
                assert "to stdout\n" in printed
                if "range" in code:
                    # The first ones were too many.
                    assert "to stdout" not in lines and lines[-2] == "line 499"
                    assert "".join(f"line {i}\n" for i in range(500)) in printed
                else:
                    assert "to stdout" in lines
            one.wait_err(rf"^{old} Successor \d+ was not ready after 4 seconds; killing it\.")
            program.write()
            os.kill(old, signal.SIGHUP)
            steady.wait_more(50, one.pid(2))
            one.wait_err(rf"^{old} Serve\(\) returning")
        assert fresh.failed == steady.refused == steady.breaks == []


def test_successor_that_never_stops_printing(program: Program) -> None:
    """It is killed when its time is up, and does not keep the old process from anything else."""
    one = program.start(boot_timeout=1)
    old = generation(one, 1)
    # It imports nothing large, and has all of its time to print.
    text = "import os\nwhile True: os.write(1, b'on and on\\n' * 99)"
    (program.directory / "program.py").write_text(text)
    os.kill(old, signal.SIGHUP)
    one.wait_for("^on and on$")
    os.kill(old, signal.SIGUSR1)
    one.wait_for(rf"^{old} Received SIGUSR1\.")
    one.wait_for(rf"^{old} Successor \d+ was not ready after 1 seconds; killing it\.")
    one.wait_for("was killed by SIGKILL; this process goes on serving")


# A program that prints until the file is there, and says how that ended.
CHATTY = """
import os, sys, time
signal = __import__("signal")
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
while not os.path.exists("enough"):
    os.write(1, f"child of {sys.argv[1]}\\n".encode())
    time.sleep(0.02)
os.write(1, f"end of the child of {sys.argv[1]}\\n".encode())
"""


def test_what_a_child_of_the_application_prints_arrives_in_all_generations(
    program: Program,
) -> None:
    """It was started while its parent booted, so it prints into a pipe. It outlives the old
    process, its parent, and the parent's successor, and must not be killed for printing."""
    child = f"""
import subprocess
subprocess.Popen([sys.executable, "-c", {CHATTY!r}, str(os.getpid())])
"""
    program.write(child)
    with Printing(program.directory) as one:
        one.pid(1)
        program.write(child + "print('boots')\nimport threading\n" + SAY)
        parents = [one.pid(1)]
        for number in range(2, 6):
            os.kill(parents[-1], signal.SIGHUP)
            parents.append(one.pid(number))
            one.wait_err(rf"^{parents[-2]} Serve\(\) returning")
            for pid in parents:
                one.wait_out(f"child of {pid}\n", len(one.out))
            # What the process itself prints, too.
            one.wait_out(f"{parents[-1]} says", len(one.out))
        program.let_go("enough")
        for pid in parents:
            one.wait_out(f"end of the child of {pid}\n")
        # The pipes are gone with those who printed into them.
        wait_until(lambda: not count_pipes(parents[-1]), "no pipes left")


SAY = """
def say():
    while True:
        print(os.getpid(), "says", flush=True)
        time.sleep(0.05)
threading.Thread(target=say, daemon=True).start()
"""


def count_pipes(pid: int) -> int:
    return sum(link.startswith("pipe:") for link in open_files(pid))


class Terminal:
    """A pseudo-terminal, and what was shown on it."""

    def __init__(self) -> None:
        self._ours, self.theirs = os.openpty()
        os.set_blocking(self._ours, False)
        self._shown = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._ours)
        os.close(self.theirs)

    @property
    def shown(self) -> str:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._ours, 65536):
                self._shown += data
        return self._shown.decode().replace("\r\n", "\n")

    def wait_for(self, pattern: str) -> str:
        expression = re.compile(pattern, re.MULTILINE)
        found: re.Match[str] = wait_until(lambda: expression.search(self.shown), pattern)
        return found[found.re.groups]


def test_on_a_terminal_nothing_is_shown_twice_and_lines_are_shown_at_once(
    program: Program,
) -> None:
    program.write()
    with Terminal() as screen, Printing(program.directory, screen.theirs) as one:
        old = one.process.pid
        screen.wait_for(rf"^Actual pid is {old}$")
        program.write("print('about to fail')\nimport no_such_module")
        os.kill(old, signal.SIGHUP)
        screen.wait_for(r"Restart failed: successor \d+ exited with status 1; this process goes on")
        shown = screen.shown
        assert shown.count("ModuleNotFoundError: No module named") == 1
        assert shown.count("about to fail") == 1
        assert "last lines" not in shown
        # Not flushed by the program, which prints to a pipe until it is ready.
        program.write("import threading\n" + SAY.replace(", flush=True", ""))
        os.kill(old, signal.SIGHUP)
        new = screen.wait_for(rf"^Actual pid is (?!{old})(\d+)$")
        screen.wait_for(rf"^{old} Serve\(\) returning")
        before = screen.shown.count(f"{new} says\n")
        wait_until(lambda: screen.shown.count(f"{new} says\n") > before + 2, "what it says")
