"""Follows a tutorial as its reader does: types its commands in terminals, watches what they print.

Owns the reading of a tutorial's fenced blocks and the terminals that they are played in.

A block marked `console terminal-N` is what terminal N shows, in the order of the document. A
terminal is bash on a pseudo-terminal, in a copy of the project. In a block,

    $ command       is typed when the terminal shows its prompt, as it stands
    ^C, $ ^C        is the key, pressed while a command runs or at the prompt
    $               is the prompt, with nothing typed
    ...             is any number of lines
    anything else   is what the terminal prints, line by line

Blanks count as one, however many. What no two runs have in common is masked: see MASKS, and the
process ids, the port and the directory, which also have to be the same wherever they appear again.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path

# What a document says of these, and what a terminal prints in their place.
MASKS = {
    "token": r"eyJ[\w-]+\.[\w-]+\.[\w-]+",
    "access_time": r"\d{4}/\d\d/\d\d - \d\d:\d\d:\d\d",
    "log_time": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}",
    "epoch": r"\b1\d{9}\b",
    "latency": r"\b\d+(?:\.\d+)?(?:ns|µs|ms|s)\b",
    "line_number": r"\bline \d+",
}
# Where a document tells a process id for the first time.
PID = re.compile(r"(?:Actual pid is |[Ss]uccessor |^(?=\d+ Generation 1 ))(\d+)", re.MULTILINE)
PORT = "8000"
DIRECTORY = "/home/you/flask-graceful"

# Seconds in which a terminal has to print what the document says.
DEADLINE = 45.0

_FENCE = re.compile(r"^```(\S[^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TERMINAL = re.compile(r"console terminal-(\d)")
_COMMAND = re.compile(r"\$ (?=[A-Za-z.])")
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PROMPT = "$ "


class TutorialError(AssertionError):
    """The document and the terminal do not tell the same."""


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands after the fence, its text, and its first line's number."""

    info: str
    text: str
    line: int


def read_blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(match[1].strip(), match[2], text.count("\n", 0, match.start()) + 2)
        for match in _FENCE.finditer(text)
    ]


@dataclass
class Step:
    """Something to do in a terminal, and what is printed then."""

    line: int
    command: str | None = None
    interrupts: bool = False
    output: list[str] = field(default_factory=list)


def read_steps(block: Block) -> list[Step]:
    steps: list[Step] = []
    for number, line in enumerate(block.text.splitlines(), block.line):
        if command := _COMMAND.match(line):
            if steps:
                # The command before has to be through.
                steps[-1].output.append("$")
            steps.append(Step(number, command=line[command.end() :]))
        elif line.startswith(("^C", "$ ^C")):
            steps.append(Step(number, interrupts=True, output=[line]))
        elif steps:
            steps[-1].output.append(line)
        else:
            steps.append(Step(number, output=[line]))
    for step in steps:
        if step.output and step.output[-1] == "...":
            raise TutorialError(f"line {step.line}: nothing tells where the dots end")
    return steps


class Values:
    """What the document names and what it is in this run; learns process ids from the output."""

    def __init__(self, blocks: list[Block], known: dict[str, str]) -> None:
        self._known = dict(known)
        names = {pid for block in blocks for pid in PID.findall(block.text)} | set(known)
        self._names = "|".join(rf"(?<!\d){re.escape(name)}(?!\d)" for name in sorted(names))

    def substitute(self, text: str) -> str:
        return re.sub(self._names, lambda match: self._known[match[0]], text)

    def pattern(self, lines: list[str]) -> re.Pattern[str]:
        """Matches what the lines stand for."""
        new: set[str] = set()
        parts = [self._line_pattern(line, new) for line in lines if line != "$"]
        if lines[-1:] == ["$"]:
            parts.append(rf"(?={re.escape(PROMPT)})")
        return re.compile("".join(parts))

    def learn(self, match: re.Match[str]) -> None:
        for name, value in match.groupdict().items():
            self._known[name.removeprefix("pid_")] = value

    def _line_pattern(self, line: str, new: set[str]) -> str:
        if line == "...":
            return r"(?:.*\n)*?"
        line = re.sub(r"[ \t]+", " ", line)
        masks = "|".join(f"(?P<{name}>{mask})" for name, mask in MASKS.items())
        pattern, end = "", 0
        for match in re.finditer(f"{masks}|{self._names}", line):
            pattern += re.escape(line[end : match.start()])
            pattern += self._value_pattern(match, new)
            end = match.end()
        return pattern + re.escape(line[end:].rstrip()) + " ?\n"

    def _value_pattern(self, match: re.Match[str], new: set[str]) -> str:
        if match.lastgroup:
            return MASKS[match.lastgroup]
        name = match[0]
        if name in self._known:
            return re.escape(self._known[name])
        if name in new:
            return f"(?P=pid_{name})"
        new.add(name)
        return rf"(?P<pid_{name}>\d+)"


class Terminal:
    """bash on a pseudo-terminal, which it leads: keys go to whom the shell gave the foreground."""

    def __init__(self, directory: Path, environ: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 1000, 0, 0))
        # A session leader that opens a terminal gets it as its own.
        command = 'exec bash --noprofile --norc --noediting -i <>"$0" >&0 2>&1'
        try:
            self._shell = subprocess.Popen(
                ["sh", "-c", command, os.ttyname(slave)],
                cwd=directory,
                env=environ,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._raw = b""
            self._read = 0
            self._lost_prompt = False
            # Only now may it close: a terminal that nobody has open hangs up.
            self.expect(re.compile(rf"(?={re.escape(PROMPT)})"), "the first prompt")
        except TutorialError:
            self.close()
            raise
        finally:
            os.close(slave)

    @property
    def unread(self) -> str:
        """What was printed and not yet expected."""
        text = _ESCAPE.sub("", self._raw.decode("utf-8", "ignore")).replace("\r\n", "\n")
        return re.sub(r"[ \t]+", " ", text)[self._read :]

    def expect(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        """Wait until what is unread begins as the pattern says."""
        deadline = time.monotonic() + DEADLINE
        while (match := pattern.match(self.unread)) is None:
            if not self._receive(deadline):
                raise TutorialError(f"{what}\n--- the terminal shows instead:\n{self.unread}")
        self._read += match.end()
        # What is printed behind a prompt takes it away, until Enter is pressed.
        lost = self._lost_prompt or re.search(rf"^{re.escape(PROMPT)}", match[0], re.MULTILINE)
        self._lost_prompt = bool(lost) and not self.unread.startswith(PROMPT)
        return match

    def type(self, command: str) -> None:
        """Type a command at the prompt, which must be all that there is to see."""
        if self._lost_prompt:
            self._send(b"\n")
            self.expect(re.compile(rf"\n(?={re.escape(PROMPT)})"), "a prompt after Enter")
        line = re.escape(PROMPT) + r"\Z"
        self.expect(re.compile(rf"(?={line})"), f"the prompt for {command!r}")
        self._send(command.encode() + b"\n")
        line = re.sub(r"[ \t]+", " ", PROMPT + command)
        self.expect(re.compile(re.escape(line) + " ?\n"), f"the echo of {command!r}")
        self._lost_prompt = False

    def interrupt(self, is_prompt: bool) -> None:
        """Press ctrl+c at the prompt, or when the shell has handed the terminal over."""
        deadline = time.monotonic() + DEADLINE
        while not is_prompt and not self._is_running_command():
            if time.monotonic() > deadline:
                raise TutorialError("no command runs that ctrl+c could end")
            time.sleep(0.01)
        self._send(b"\x03")

    def is_at_prompt(self) -> bool:
        self._receive(time.monotonic() + 0.02)
        return self._lost_prompt or self.unread.endswith(PROMPT)

    def close(self) -> None:
        """End everything that was started here, in whatever process group it is."""
        deadline = time.monotonic() + DEADLINE
        while pids := _session_members(self._shell.pid):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if time.monotonic() > deadline:
                raise TutorialError(f"processes {pids} do not end")
            self._receive(time.monotonic() + 0.05)
        self._shell.kill()
        self._shell.wait()
        os.close(self._master)

    def _is_running_command(self) -> bool:
        """Is another program in the foreground, and no longer a copy of the shell?"""
        foreground = os.tcgetpgrp(self._master)
        try:
            program = os.readlink(f"/proc/{foreground}/exe")
        except OSError:
            return False
        return program != os.readlink(f"/proc/{self._shell.pid}/exe")

    def _send(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def _receive(self, deadline: float) -> bool:
        """Take in what is printed until the deadline; False when that is nothing."""
        seconds = max(deadline - time.monotonic(), 0)
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:
            # The last process is gone.
            return False
        self._raw += data
        return bool(data)


def play(document: Path, directory: Path) -> None:
    """Follow the document in a copy of the project.

    :raises TutorialError: a terminal prints something else than the document says.
    """
    blocks = [block for block in read_blocks(document) if block.info.startswith("console")]
    port = free_port()
    values = Values(blocks, {PORT: str(port), DIRECTORY: str(directory)})
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PS1": PROMPT,
        "BLOG_SERVER_HTTP_PORT": str(port),
        "PORT": str(port),
    }
    terminals: dict[str, Terminal] = {}
    try:
        for block in blocks:
            name = _TERMINAL.fullmatch(block.info)
            if name is None:
                raise TutorialError(f"line {block.line}: which terminal is {block.info!r}?")
            if name[1] not in terminals:
                terminals[name[1]] = Terminal(directory, environ)
            terminal = terminals[name[1]]
            others = [other for other in terminals.values() if other is not terminal]
            for step in read_steps(block):
                where = f"{document.name}:{step.line}"
                if step.command is not None:
                    if PORT in step.command:
                        _wait_for_server(port, where)
                    terminal.type(values.substitute(step.command))
                if step.interrupts:
                    _wait_for_clients(others, port, where)
                    terminal.interrupt(is_prompt=step.output[0].startswith(PROMPT))
                text = "\n".join(step.output)
                values.learn(terminal.expect(values.pattern(step.output), f"{where}:\n{text}"))
        for name, terminal in terminals.items():
            rest = re.compile(rf"(?:{re.escape(PROMPT)})?\Z")
            terminal.expect(rest, f"{document.name}: nothing more in terminal {name}")
    finally:
        for terminal in terminals.values():
            terminal.close()


def _wait_for_server(port: int, where: str) -> None:
    """A command that names the port is typed when somebody listens there."""
    deadline = time.monotonic() + DEADLINE
    while not _has_socket(port, "0A"):
        if time.monotonic() > deadline:
            raise TutorialError(f"{where}: nobody listens on the port")
        time.sleep(0.01)


def _wait_for_clients(terminals: list[Terminal], port: int, where: str) -> None:
    """A key is pressed when the commands in the other terminals are at work, or through."""
    deadline = time.monotonic() + DEADLINE
    while not (all(t.is_at_prompt() for t in terminals) or _has_socket(port, "01")):
        if time.monotonic() > deadline:
            raise TutorialError(f"{where}: no client has connected")


def _has_socket(port: int, state: str) -> bool:
    """Is there a local TCP socket in the state, as the kernel numbers them?"""
    row = re.compile(rf"^ *\d+: [0-9A-F]+:{port:04X} [0-9A-F:]+ {state} ", re.MULTILINE)
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    return any(row.search(table.read_text()) for table in tables if table.exists())


def _session_members(leader: int) -> list[int]:
    """The living processes of a session, without its leader."""
    pids = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = status.read_text().rpartition(") ")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z" and status.parent.name != str(leader):
            pids.append(int(status.parent.name))
    return pids


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        port: int = sock.getsockname()[1]
        return port


def copy_project(root: Path, directory: Path) -> None:
    """What git would track, as it came, with an environment that is there already."""
    ignored = (root / ".gitignore").read_text().split()
    shutil.copytree(
        root, directory, ignore=shutil.ignore_patterns(".git", *(n.rstrip("/") for n in ignored))
    )
    # The one file that its user is asked to change.
    shutil.copy(root / "tests/blog/app.ini", directory / "conf")
    binaries = directory / ".venv/bin"
    binaries.mkdir(parents=True)
    _write_script(binaries / "python", f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    _write_script(binaries / "pip", f"#!{sys.executable}\n{_PIP}")
    # As the real one, which also says so in the prompt.
    (binaries / "activate").write_text(f"export PATH='{binaries}':\"$PATH\"\n")
    # The Makefile's words that everything is made and installed.
    place = directory.resolve()
    (directory / ".venv/.made").write_text(f"{place}\n{place / '.venv'}\n")
    (directory / ".venv/.run").touch()


def _write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


# Nothing is downloaded in a test: this checks that what the file asks for is there.
_PIP = """
import re, sys
from importlib.metadata import version

command, option, path = sys.argv[1:]
assert (command, option) == ("install", "-r")
for line in open(path):
    name = re.match(r"[\\w-]+", line)
    if name and not line.startswith("-"):
        print("Requirement already satisfied:", line.strip(), f"({version(name[0])})")
print("Successfully installed flask-graceful-" + version("flask-graceful"))
"""
