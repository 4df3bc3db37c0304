"""A program as pid 1: in a pid namespace of its own, as in a container, and on the host's network.

`unshare` of util-linux makes the namespace and a /proc of its own; without root it needs user
namespaces. When this process ends it, or `unshare` dies, the kernel ends all that is inside.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import typing as t
from pathlib import Path

from conftest import DEADLINE, Live, wait_until
from program import children, is_gone

_COMMAND = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
# Its child says which pid it has inside once pid 1 is its parent, and ends when it is told to.
_ORPHAN = """
import os, sys
if os.fork():
    os._exit(0)
while os.getppid() != 1:
    pass
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def unshare() -> list[str]:
    """The words to put before a command, so that it becomes pid 1."""
    return _COMMAND if os.geteuid() == 0 else [*_COMMAND, "--user", "--map-root-user"]


@functools.cache
def has_namespaces() -> bool:
    """Does this machine let us?"""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*unshare(), "true"], capture_output=True).returncode == 0


class Namespace:
    """A pid namespace whose pid 1 is the Python program that it is made with. All pids are those
    outside, where nothing else is said.

    :param words: what follows `python`, as for `Live`.
    :param options: cwd, env and fds, as for `Live`.
    """

    def __init__(self, *words: str, **options: t.Any) -> None:
        self.live = Live(
            [*unshare(), sys.executable, *words],
            options.get("cwd", Path.cwd()),
            options.get("env", {}),
            options.get("fds", ()),
        )
        # `unshare` has one child, which becomes the program.
        self.pid: int = wait_until(self._find, "the program is pid 1")

    def _find(self) -> int:
        assert self.live.process.poll() is None, self.live.log
        found = children(self.live.pid)
        # Before that it is a copy of `unshare`.
        return found[0] if found and _name(found[0]) != "unshare" else 0

    def kill(self, signum: int) -> None:
        """Send a signal to pid 1 from outside. Where it has no handler, only SIGKILL and
        SIGSTOP do anything (pid_namespaces(7))."""
        os.kill(self.pid, signum)

    def pids(self) -> list[int]:
        """All processes inside, pid 1 first; those that nobody has waited for are among them."""
        here = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_in(path, here)]
        return sorted(found, key=lambda pid: (pid != self.pid, pid))

    def zombies(self) -> list[int]:
        """Those that have ended and that nobody has waited for."""
        return [pid for pid in self.pids() if is_gone(pid)]

    def orphan(self) -> Orphan:
        """A process inside whose parent has ended, so that pid 1 is to wait for it."""
        return Orphan(self)

    def run(self, *command: str) -> subprocess.Popen[str]:
        """Start a command inside, of which pid 1 knows nothing."""
        enter = ["nsenter", f"--target={self.pid}", "--pid", "--mount"]
        if os.geteuid() != 0:
            enter += ["--user", "--preserve-credentials"]
        return subprocess.Popen(
            [*enter, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait until pid 1 has ended, and with it all that is inside; its exit status, anything but
        0 when a signal has ended it."""
        return self.live.process.wait(seconds)

    def end(self) -> None:
        """End it by force, with all that is inside."""
        if self.live.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.live.end()


class Orphan:
    """A process that a namespace's pid 1 has got; `pid` outside, `inner` inside."""

    def __init__(self, space: Namespace) -> None:
        before = set(space.pids())
        self._starter = space.run(sys.executable, "-c", _ORPHAN)
        assert self._starter.stdout is not None
        self.inner = int(self._starter.stdout.readline())
        new = set(space.pids()) - before
        self.pid = next(pid for pid in new if _inner_pid(pid) == self.inner)

    def end(self) -> None:
        """Have it end by itself; it is a zombie until pid 1 waits for it."""
        for stream in (self._starter.stdin, self._starter.stdout):
            assert stream is not None
            stream.close()
        self._starter.wait(DEADLINE)
        wait_until(lambda: is_gone(self.pid), "the orphan has ended")

    def is_reaped(self) -> bool:
        return not Path(f"/proc/{self.pid}").exists()


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _is_in(process: Path, namespace: str) -> bool:
    try:
        return os.readlink(process / "ns/pid") == namespace
    except OSError:
        # It is another user's, or gone.
        return False


def _inner_pid(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("NSpid:")).split()[-1])
