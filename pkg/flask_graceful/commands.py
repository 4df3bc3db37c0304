"""The commands that ask a running server: `python -m flask_graceful status` and its like.

Owns their flags, and how answers look. What a server is asked and how it is found is in `ask`.

Rules: the server, the application and Flask are not imported. What went wrong is one line on
stderr and status 1, a wrong flag is status 2. Text that has come from clients reaches no terminal
as it is.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import time
import typing as t

from .ask import AskError, Caller, Ended, Found, ProcessEnd, Refused, find

# What each does, in a line.
SUMMARIES = {
    "reload": "start the code anew, and wait until it serves, or tell why it does not",
    "requests": "show the requests that run now",
    "status": "show the processes of a server, and what they do",
    "stop": "stop a server after the requests in flight, and wait for its end",
}
NAMES = tuple(SUMMARIES)
# What others call them.
_BY_OTHER_WORDS = {"restart": "reload", "shutdown": "stop", "quit": "stop"}
MISUSED = 2
FAILED = 1
INTERRUPTED = 130

# How long a server may take that is only to be named, and how often a drain is told that nobody
# watches; in seconds.
NAMING_TIME = 2.0
TELL_TIME = 5.0

Json = dict[str, t.Any]


def main(arguments: t.Sequence[str], program: str = "python -m flask_graceful") -> t.NoReturn:
    """Ask a server.

    :param arguments: a command, and its flags.
    :param program: what the user has called.
    :raises SystemExit: always, with the exit status.
    """
    options, unknown = _parser(program).parse_known_args(arguments)
    if unknown:
        _refuse(options, unknown[0])
    for stream in (sys.stdout, sys.stderr):
        # What can't be shown must not be an error.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        options.run(options)
    except Refused as error:
        _complain(f"{options.command}: {safe(str(error))}", error.lines)
        sys.exit(FAILED)
    except AskError as error:
        _complain(safe(str(error)))
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


def named_like(word: str) -> str | None:
    """The command that somebody has meant by this word, if it can be one."""
    if not word.isalpha():
        return None
    names = {**{name: name for name in NAMES}, **_BY_OTHER_WORDS}
    close = difflib.get_close_matches(word, names, 1, 0.7)
    return names[close[0]] if close else None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> t.NoReturn:
        """One line; argparse would print the usage before it."""
        _complain(message)
        sys.exit(MISUSED)


def _refuse(options: argparse.Namespace, word: str) -> t.NoReturn:
    """
    :param options: what was read; each of the command's flags is there.
    """
    flag = word.partition("=")[0]
    known = [f"--{name}" for name in vars(options) if name not in ("command", "run")]
    close = difflib.get_close_matches(flag, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    what = f"unknown flag {flag!r}" if flag[:1] == "-" else f"{word!r} is one word too many"
    _complain(f"{options.command}: {what}; {hint}")
    sys.exit(MISUSED)


def _parser(program: str) -> argparse.ArgumentParser:
    """
    :param program: what the user has called.
    """
    parser = _Parser(prog=program, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def add(name: str, run: t.Callable[[argparse.Namespace], None]) -> _Parser:
        text = SUMMARIES[name]
        one = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        which = one.add_mutually_exclusive_group()
        which.add_argument(
            "--pid", type=_pid, metavar="N", help="the server's process id (default: the only one)"
        )
        which.add_argument("--socket", metavar="PATH", help="its control socket")
        one.set_defaults(run=run)
        return one

    add("reload", _reload)
    status = add("status", _status)
    requests = add("requests", _requests)
    requests.add_argument(
        "--stacks", action="store_true", help="with the Python stack of each request's thread"
    )
    for one in (status, requests):
        one.add_argument("--json", action="store_true", help="for programs")
    stop = add("stop", _stop)
    stop.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="cut them after this time, instead of the server's hammer_time; 0: never",
    )
    return parser


def _pid(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"expected a process id, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds, 0 or more, got {text!r}")
    return value


def _complain(message: str, lines: t.Sequence[str] = ()) -> None:
    print(f"flask_graceful: {message}", file=sys.stderr)
    if lines:
        print("Its last lines:", file=sys.stderr)
    for line in lines:
        print(f"| {safe(line)}", file=sys.stderr)


# The server.


def _call(options: argparse.Namespace) -> Caller:
    """A connection to the server that is meant.

    :raises AskError: it is not clear which, or there is none.
    """
    if options.socket is not None:
        return Caller(options.socket)
    found = find(options.pid)
    if len(found) > 1:
        names = ", ".join(map(_name, found))
        raise AskError(f"{len(found)} servers are running: {names}; choose one with --pid")
    return Caller(found[0].path)


def _name(one: Found) -> str:
    try:
        with Caller(one.path, NAMING_TIME) as caller:
            status = caller.ask("status")
            addresses = safe(" ".join(status["addresses"]) or status["state"])
    except (AskError, KeyError, TypeError):
        addresses = "gives no answer"
    return f"{one.pid} ({addresses})"


# The commands.


def _reload(options: argparse.Namespace) -> None:
    line = _Line()
    with _call(options) as caller, line:
        done = caller.ask("reload", lambda news: line.show("Waiting for the new code", False))
    old, new = (" ".join(map(str, done[which])) for which in ("old", "new"))
    print(f"reloaded: {old} -> {new}")


def _stop(options: argparse.Namespace) -> None:
    line = _Line()
    with _call(options) as caller, line:
        end = ProcessEnd(caller.peer.pid if caller.peer is not None else 0)
        try:
            caller.ask("stop", lambda news: line.show(_what_is_left(news)), timeout=options.timeout)
        except Ended:
            # It may have been killed meanwhile.
            pass
        end.wait()
    print("stopped")


def _status(options: argparse.Namespace) -> None:
    with _call(options) as caller:
        status = caller.ask("status")
    if options.json:
        print(json.dumps(status, indent=2))
        return
    # One that starts has none yet.
    where = ": " * bool(status["addresses"]) + safe(" ".join(status["addresses"]))
    print(f"{status['pid']} {status['state']}, generation {status['generation']}{where}\n")
    head = "PID GEN STATE AGE NEW ACTIVE IDLE TAKEN REQUESTS TRACKED RSS".split()
    _print_table(head, [_row(worker) for worker in status["workers"]], {2})


def _row(worker: Json) -> list[str]:
    connections = worker["connections"] or {}
    counts = [connections.get(name) for name in ("new", "active", "idle", "taken")]
    counts += [worker["requests"], worker["tracked"]]
    return [
        str(worker["pid"]),
        str(worker["generation"]),
        safe(worker["state"]),
        duration(worker["age"]),
        *("-" if count is None else str(count) for count in counts),
        size(worker["rss"]),
    ]


def _requests(options: argparse.Namespace) -> None:
    with _call(options) as caller:
        answer = caller.ask("requests", stacks=options.stacks)
    if options.json:
        print(json.dumps(answer, indent=2))
        return
    running = answer["requests"]
    if not running:
        print("no request is running")
        return
    rows = [
        [str(one["pid"]), f"{one['age']:.1f}s", *(safe(one[k]) for k in ("method", "path", "peer"))]
        for one in running
    ]
    stacks = [one.get("stack") or () for one in running]
    _print_table("PID AGE METHOD PATH PEER".split(), rows, {2, 3, 4}, stacks)


def _what_is_left(news: Json) -> str:
    names = (("requests", "request"), ("connections", "connection"), ("tracked", "tracked work"))
    counts = [(news.get(key, 0), name) for key, name in names]
    texts = [
        f"{count} {name}" + ("s" if count > 1 and name != "tracked work" else "")
        for count, name in counts
        if count
    ]
    return "Waiting for " + (", ".join(texts) or "the process to end")


# How things look.


class _Line:
    """A line that is rewritten on a terminal; elsewhere it is printed now and then."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._told = self._began
        self._is_live = sys.stderr.isatty()
        self._is_there = False

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_there:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def show(self, text: str, is_news: bool = True) -> None:
        """:param is_news: is it to be told where nobody sees the line change?"""
        now = time.monotonic()
        text = f"{text} ({now - self._began:.0f}s)"
        if self._is_live:
            self._is_there = True
            print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)
        elif is_news and now - self._told >= TELL_TIME:
            self._told = now
            print(text, file=sys.stderr, flush=True)


def _print_table(
    head: list[str],
    rows: list[list[str]],
    texts: t.Container[int],
    below: t.Sequence[t.Sequence[str]] = (),
) -> None:
    """:param texts: the columns that begin on the left.
    :param below: lines that belong to each row.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def show(row: list[str]) -> None:
        cells = [
            text.ljust(width) if place in texts else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())

    show(head)
    for number, row in enumerate(rows):
        show(row)
        for line in below[number] if below else ():
            print(f"    {safe(line)}")


def duration(seconds: float | None) -> str:
    """Seconds as people read them, in at most two units."""
    if seconds is None:
        return "-"
    rest = int(seconds)
    words: list[str] = []
    for name, unit in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if rest >= unit or (name == "s" and not words):
            words.append(f"{rest // unit}{name}")
            rest %= unit
    return "".join(words[:2])


def size(count: int | None) -> str:
    """Bytes as people read them."""
    return "-" if count is None else f"{count / (1 << 20):.1f}M"


def safe(text: str) -> str:
    """A text without anything that a terminal would obey."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode()
        for one in text
    )
