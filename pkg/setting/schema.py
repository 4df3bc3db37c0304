"""The settings and the rule of each key.

A rule turns text into a value, or raises ValueError saying what it expects instead. The fields
are the keys in lower case; a field without a default is a key that must be given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MYSQL_PORT = 3306
_ADDRESS = "host, host:port or unix:/path/to/socket"

# Printed in the tutorial, its repository, or its source as the default: no secret to anyone.
PUBLISHED_SECRETS = frozenset({"23347$040412", "233", "!@)*#)!@U#@*!@!)"})


class SettingsError(Exception):
    """What is wrong with the settings, in one line fit for a terminal."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True)
class Rule:
    expected: str
    accepts: Callable[[str], object]
    convert: Callable[[str], Any] = str

    def __call__(self, text: str) -> Any:
        if not self.accepts(text):
            raise ValueError(self.expected)
        return self.convert(text)


def _integer(low: int, high: int) -> Rule:
    def accepts(text: str) -> bool:
        # int() alone would also take 8_000 and full-width digits.
        return bool(re.fullmatch(r"[+-]?[0-9]{1,18}", text)) and low <= int(text) <= high

    return Rule(f"a whole number from {low} to {high}", accepts, int)


def _choice(*words: str) -> Rule:
    return Rule(" or ".join(words), words.__contains__)


def _matching(pattern: str, expected: str) -> Rule:
    return Rule(expected, re.compile(pattern).fullmatch)


def parse_address(host: str) -> dict[str, Any]:
    """HOST as keyword arguments for PyMySQL: a host with or without port, or unix:/path.

    :raises ValueError: it is none of them.
    """
    if host.startswith("unix:/"):
        return {"unix_socket": host.removeprefix("unix:")}
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+)(?::([0-9]{1,5}))?", host)
    port = int(found[2] or MYSQL_PORT) if found else 0
    if not found or not 0 < port < 65536:
        raise ValueError(_ADDRESS)
    return {"host": found[1].strip("[]"), "port": port}


def _is_address(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True


def _key(rule: Rule, *, secret: bool = False, **default: Any) -> Any:
    return field(metadata={"rule": rule, "secret": secret}, repr=not secret, **default)


_text = _matching(r".*", "a text")
_some_text = _matching(r".+", "a text that is not empty")
_seconds = _integer(0, 86_400)


@dataclass(frozen=True, kw_only=True)
class App:
    page_size: int = _key(_integer(1, 10_000), default=10)
    jwt_secret: str = _key(_some_text, secret=True)


@dataclass(frozen=True, kw_only=True)
class Server:
    http_port: int = _key(_integer(0, 65_535), default=8000)
    workers: int = _key(_integer(0, 64), default=0)
    read_timeout: int = _key(_seconds, default=60)
    write_timeout: int = _key(_seconds, default=60)

    def share(self, total: int) -> int:
        """What one process may take of what all of them have together; at least 1."""
        return max(1, total // max(1, self.workers))


@dataclass(frozen=True, kw_only=True)
class Database:
    type: str = _key(_choice("sqlite", "mysql"))
    user: str = _key(_text, default="")
    password: str = _key(_text, secret=True, default="")
    host: str = _key(Rule(_ADDRESS, _is_address), default="127.0.0.1")
    name: str = _key(_some_text)
    # Becomes part of identifiers, which MySQL cuts off at 64 characters.
    table_prefix: str = _key(
        _matching(r"[A-Za-z0-9_]{0,32}", "at most 32 letters, digits and _"), default="blog_"
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    run_mode: str = _key(_choice("debug", "release"), default="debug")
    app: App
    server: Server
    database: Database
