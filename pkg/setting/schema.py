"""The settings and the rule of each key.

A rule turns text into a value, or raises ValueError saying what it expects instead. The fields
are the keys in lower case; a field without a default is a key that must be given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Rule = Callable[[str], Any]

MYSQL_PORT = 3306

# Printed in the tutorial, its repository, or its source as the default: no secret to anyone.
PUBLISHED_SECRETS = frozenset({"23347$040412", "233", "!@)*#)!@U#@*!@!)"})


class SettingsError(Exception):
    """What is wrong with the settings, in one line fit for a terminal."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def _integer(low: int, high: int) -> Rule:
    def rule(text: str) -> int:
        # int() alone would also take 8_000 and full-width digits.
        if re.fullmatch(r"[+-]?[0-9]{1,18}", text) and low <= int(text) <= high:
            return int(text)
        raise ValueError(f"a whole number from {low} to {high}")

    return rule


def _choice(*words: str) -> Rule:
    def rule(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return rule


def _matching(pattern: str, expected: str) -> Rule:
    def rule(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(expected)
        return text

    return rule


def _address(text: str) -> str:
    parse_address(text)
    return text


def parse_address(host: str) -> dict[str, Any]:
    """HOST as keyword arguments for PyMySQL: a host with or without port, or unix:/path."""
    if host.startswith("unix:/"):
        return {"unix_socket": host.removeprefix("unix:")}
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+)(?::([0-9]{1,5}))?", host)
    port = int(found[2] or MYSQL_PORT) if found else 0
    if not found or not 0 < port < 65536:
        raise ValueError("host, host:port or unix:/path/to/socket")
    return {"host": found[1].strip("[]"), "port": port}


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
    read_timeout: int = _key(_seconds, default=60)
    write_timeout: int = _key(_seconds, default=60)


@dataclass(frozen=True, kw_only=True)
class Database:
    type: str = _key(_choice("sqlite", "mysql"))
    user: str = _key(_text, default="")
    password: str = _key(_text, secret=True, default="")
    host: str = _key(_address, default="127.0.0.1")
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
