"""The settings of a server, declared once.

Owns the table of settings: name, default, unit and help of each. Everything that shows or
reads settings (keyword arguments, flags, configuration keys, the docs) is generated from it.
Arguments of methods that are like settings are checked here too.

Rules: durations are seconds; 0, None and negative numbers switch a limit off. A value that is
wrong raises here, where the name of the setting is known, and never later.
"""

from __future__ import annotations

import difflib
import inspect
import math
import typing as t
from dataclasses import dataclass, field, fields
from pathlib import PurePath

Func = t.TypeVar("Func", bound=t.Callable[..., object])
# What a decorator is given that stands with empty parentheses.
NO_FUNCTION: t.Any = None

SECONDS = "seconds"
BYTES = "bytes"
COUNT = "count"
PATH = "path"
SWITCH = "on or off"
_EXPECTED = {
    SECONDS: "a number of seconds",
    BYTES: "a whole number of bytes",
    COUNT: "a whole number",
    PATH: "a path",
    SWITCH: "True or False",
}
# So many seconds, nobody waits for.
FOR_EVER = 1e9
_WORDS = {"on": True, "off": False, "yes": True, "no": False, "true": True, "false": False}


# As many numbers fit in the memory that they share, two generations and a few that end included.
MOST_WORKERS = 64
MOST_PORT = 65535


def _setting(default: t.Any, unit: str, help: str) -> t.Any:
    return field(default=default, metadata={"unit": unit, "help": help})


@dataclass(frozen=True)
class Settings:
    """All settings of a server. Frozen: a running server never changes under a request.

    :raises TypeError: a setting is unknown or of the wrong type.
    :raises ValueError: a setting is out of range.
    """

    read_timeout: float = _setting(
        0, SECONDS, "time to read a whole request, its body included, from the first byte on"
    )
    read_header_timeout: float = _setting(
        0, SECONDS, "time to read the head of a request; off: read_timeout counts"
    )
    write_timeout: float = _setting(
        0, SECONDS, "time from the end of a request's head to the end of its response"
    )
    request_timeout: float = _setting(
        0, SECONDS, "time that the application gets to begin its response; then 503 is sent"
    )
    request_timeout_hard: float = _setting(
        0, SECONDS, "time after which a request that still runs has its process replaced"
    )
    idle_timeout: float = _setting(
        0, SECONDS, "time that a kept-alive connection may wait; off: read_timeout counts"
    )
    max_header_bytes: int = _setting(
        1 << 20, BYTES, "limit of a request's head; 4096 bytes more are tolerated, as in Go"
    )
    threads: int = _setting(32, COUNT, "most requests that run at the same time")
    listen_limit: int = _setting(
        0, COUNT, "most connections at the same time, others wait to be accepted; 0: any number"
    )
    tcp_keep_alive: float = _setting(
        15, SECONDS, "silence after which TCP asks whether the client still lives, and how often"
    )
    hammer_time: float = _setting(
        60,
        SECONDS,
        "time that requests in flight get when the process stops, then they are cut; off: never",
    )
    idle_grace: float = _setting(
        1, SECONDS, "time that idle connections may still send a request when the process stops"
    )
    shutdown_delay: float = _setting(
        0, SECONDS, "time to serve on as before when told to stop, for load balancers to notice"
    )
    boot_timeout: float = _setting(
        60, SECONDS, "time that a successor may take until it is ready; then it is killed"
    )
    old_generations: int = _setting(
        3, COUNT, "most old processes that still finish requests; beyond, the oldest cuts its own"
    )
    pid_file: str = _setting("", PATH, "file that holds the id of the process that serves")
    control_socket: str = _setting(
        "auto", PATH, "Unix socket by which commands reach it; auto: in the runtime directory"
    )
    workers: int = _setting(
        0, COUNT, "processes that serve, behind one whose pid never changes; 0: this one serves"
    )
    rolling: bool = _setting(
        False, SWITCH, "replace one worker after the other at a restart, where memory is tight"
    )

    def __post_init__(self) -> None:
        for row in fields(self):
            value = checked(row.name, row.metadata["unit"], getattr(self, row.name))
            object.__setattr__(self, row.name, value)
        if 0 < self.request_timeout_hard < self.request_timeout:
            raise ValueError(
                f"request_timeout_hard: expected at least request_timeout "
                f"({self.request_timeout:g}), got {self.request_timeout_hard:g}"
            )

    @classmethod
    def from_options(cls, options: t.Mapping[str, t.Any]) -> Settings:
        """Settings from keyword arguments, with a remedy for a misspelt name."""
        names = [row.name for row in fields(cls)]
        for name in options:
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
                raise TypeError(f"unknown setting {name!r}; {hint}")
        return cls(**options)


class Row(t.NamedTuple):
    """One setting as people read it. Its flag is `--` and the name with dashes."""

    name: str
    default: str
    unit: str
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def rows() -> list[Row]:
    """The table of settings, in its order."""
    return [
        Row(
            row.name,
            _default_text(row.metadata["unit"], row.default),
            row.metadata["unit"],
            row.metadata["help"],
        )
        for row in fields(Settings)
    ]


def markdown_rows() -> t.Iterator[str]:
    """The table of settings as the lines of a markdown table, for the documents."""
    yield "| setting | default | unit | |"
    yield "|---|---|---|---|"
    for row in rows():
        yield f"| `{row.name}` | {row.default} | {row.unit} | {row.help} |"


def from_text(name: str, text: str) -> float | int | str:
    """Read the value of a setting as people write it; `off` is 0 seconds, no path, and False.

    :raises ValueError: it is no number, or out of range; TypeError: it is a number of no use.
    """
    unit = next(row.unit for row in rows() if row.name == name)
    value: float | int | str = text
    try:
        if unit == PATH:
            value = "" if text == "off" else text
        elif unit == SECONDS:
            value = 0.0 if text == "off" else float(text)
        elif unit == SWITCH:
            value = switch_from_text(text)
        else:
            value = int(text)
    except ValueError:
        raise ValueError(f"{name}: expected {_EXPECTED[unit]}, got {text!r}") from None
    return checked(name, unit, value)


def switch_from_text(value: t.Any) -> t.Any:
    """True or False for the words that mean it; all else is returned as it is."""
    return _WORDS.get(value.lower(), value) if isinstance(value, str) else value


def checked_timeout(value: t.Any) -> float | None:
    """Seconds to wait; None: for ever.

    :raises TypeError: it is no number.
    """
    if value is not None:
        # The text of its error says all.
        checked("timeout", SECONDS, value)
    return None if value is None or value >= FOR_EVER else float(value)


def checked_function(func: Func, what: str) -> Func:
    """:raises TypeError: it can't be called; here, and not when it is to be."""
    if not callable(func):
        raise TypeError(f"{what}: expected a function, got {func!r}")
    return func


def checked_hook(func: Func, what: str, *arguments: str) -> Func:
    """
    :param arguments: what it will be called with, one after the other.
    :raises TypeError: it can't be called so; here, and not when it is to be.
    """
    if func is NO_FUNCTION:
        raise TypeError(f"{what}: expected a function, got None; a decorator takes no parentheses")
    checked_function(func, what)
    try:
        # Of the wrapper itself: it may give what it wraps other arguments.
        signature = inspect.signature(func, follow_wrapped=False)
    except (TypeError, ValueError):
        # Some builtins keep theirs to themselves.
        return func
    try:
        signature.bind(*arguments)
    except TypeError as error:
        how = f"with {', '.join(arguments)}" if arguments else "without arguments"
        name = function_name(func)
        raise TypeError(f"{what}: {name}() can't be called {how}: {error}") from None
    return func


def function_name(func: t.Callable[..., object]) -> str:
    """A function as a line of the log names it."""
    return getattr(func, "__name__", None) or repr(func)


def _default_text(unit: str, value: t.Any) -> str:
    if unit == SECONDS:
        return f"{value:g}" if value else "off"
    if unit == SWITCH:
        return "on" if value else "off"
    return str(value) or "off"


# The least and the most of each count.
_RANGES = {
    "threads": (1, 10_000),
    "listen_limit": (0, 1 << 31),
    "old_generations": (1, 100),
    "workers": (0, MOST_WORKERS),
}


def checked(name: str, unit: str, value: t.Any) -> float | int | str:
    """A value of this unit, as it is used.

    :param name: the setting's, for the message.
    :raises TypeError: it is of a wrong type; ValueError: it is out of range.
    """
    if unit == SECONDS:
        if value is None:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise TypeError(f"{name}: expected {_EXPECTED[unit]}, got {value!r}")
        # A limit that never comes is no limit.
        return float(value) if 0 <= value < FOR_EVER else 0.0
    if unit == PATH:
        return _checked_path(name, value)
    if unit == SWITCH:
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected {_EXPECTED[unit]}, got {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected {_EXPECTED[unit]}, got {value!r}")
    if name in _RANGES and not _RANGES[name][0] <= value <= _RANGES[name][1]:
        least, most = _RANGES[name]
        raise ValueError(f"{name}: expected {least} to {most}, got {value}")
    if name == "max_header_bytes" and value <= 0:
        return 1 << 20
    return value


def _checked_path(name: str, value: t.Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, (str, PurePath)):
        raise TypeError(f"{name}: expected {_EXPECTED[PATH]}, got {value!r}")
    if "\0" in str(value):
        raise ValueError(f"{name}: expected {_EXPECTED[PATH]}, got {value!r}")
    return str(value)
