"""How a process becomes a supervisor, and a supervisor replaces its own program.

Owns what goes over execve(2): a record of the state in a file without a name, and the descriptors
that it names, kept open for that one moment.

Strategy: the new program is tried first, in a child that only imports itself. Signals are blocked
over the exec, so that none meets a program without handlers.

Rules: whoever reads the record may be older or newer code than the writer: `VERSION` says what it
means, and a program that knows another one fails its trial. The environment is the one that the
process was started with: what the application has changed in it since is not to hide what is new.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import typing as t

from .output import MAX_LINES

if t.TYPE_CHECKING:
    from .command import Command
    from .signals import Signals

MODULE = "flask_graceful.supervisor"
VERSION = "1"
# Names the descriptor of the record, and is taken out of the environment at once.
VARIABLE = "FLASK_GRACEFUL_SUPERVISOR"
# How long the trial of a new program may take, in seconds.
TRIAL_TIME = 20.0


def program(worker: Command) -> list[str]:
    """The supervisor's own program, by the worker's interpreter; its words show what it runs."""
    return [worker.interpreter(), "-m", MODULE, *worker.words[1:]]


class Trial:
    """Whether the supervisor's program can be run as it is now: then it exits with status 0.

    :raises OSError: it can't be started.
    """

    def __init__(self, worker: Command) -> None:
        self._said = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                [*program(worker)[:3], "--version", VERSION],
                cwd=worker.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
            )
        except BaseException:
            self._said.close()
            raise
        self.pid = self._process.pid

    def kill(self) -> None:
        # Popen.kill would reap it if it has just ended, and nobody else would learn of that.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """How it ended."""
        try:
            return self._process.wait(TRIAL_TIME)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def close(self, status: int) -> list[str]:
        """It has ended: the last lines of what it said."""
        self._process.returncode = status
        with self._said:
            self._said.seek(0)
            return self._said.read().decode("utf-8", "replace").splitlines()[-MAX_LINES:]


def execute(
    worker: Command,
    state: dict[str, t.Any],
    fds: t.Iterable[int],
    environ: t.Mapping[str, str] = os.environ,
    signals: Signals | None = None,
) -> t.NoReturn:
    """Become the supervisor's program.

    :param fds: the descriptors that the state names.
    :param signals: where some may wait that nobody has seen to.
    :raises OSError: it can't be run; everything is as before.
    """
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(state).encode())
        file.flush()
        kept = [file.fileno(), *fds]
        variables = {**environ, "PWD": worker.directory, VARIABLE: f"{os.getpid()}:{file.fileno()}"}
        words = program(worker)
        # Its name may lead elsewhere by now, or nowhere.
        here = os.open(".", os.O_RDONLY)
        old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            for fd in kept:
                os.set_inheritable(fd, True)
            os.chdir(worker.directory)
            if signals is not None:
                signals.send_again()
            os.execve(words[0], words, variables)
        finally:
            # Only when it failed.
            os.chdir(here)
            os.close(here)
            for fd in kept:
                os.set_inheritable(fd, False)
            signal.pthread_sigmask(signal.SIG_SETMASK, old)


def take_state(environ: t.MutableMapping[str, str]) -> dict[str, t.Any] | None:
    """What `execute` has left for this program; None when there is nothing."""
    pid, _, fd = environ.pop(VARIABLE, "").partition(":")
    if pid != str(os.getpid()) or not fd.isdigit():
        return None
    with os.fdopen(int(fd), "rb") as file:
        file.seek(0)
        state: dict[str, t.Any] = json.load(file)
    return state


def unblock_signals() -> None:
    """Handlers are in place: let the signals in that have come meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


def first_environment() -> dict[str, str]:
    """The environment that this process was started with, where the system remembers it."""
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = os.fsdecode(file.read()).split("\0")
    except OSError:
        return dict(os.environ)
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)
