"""Makes text from a request fit for a log: no secret in it, and no way to forge a line."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

SECRETS = frozenset({"token", "password"})


def _spelled(name: str) -> str:
    """A pattern for a name any letter of which may be percent-encoded."""
    return "".join(f"(?:{c}|%{ord(c):x}|%{ord(c.upper()):x})" for c in name)


_ANYWHERE = re.compile(rf"(?i)(?<!\w)({'|'.join(map(_spelled, sorted(SECRETS)))})=[^&\n]*")


def mask(text: str) -> str:
    """Text of any kind, a traceback for one, with the secrets of the URLs in it masked."""
    return _ANYWHERE.sub(r"\1=***", text)


def mask_query(query: str) -> str:
    """A raw query with its secrets masked; much faster than `mask` on a long one."""
    return "&".join([_mask_pair(pair) for pair in query.split("&")])


def _mask_pair(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    if name.lower() in SECRETS and equals:
        return f"{name}=***"
    # A pair with a semicolon is dropped by the parser, but may well hold the secret.
    if ";" in pair:
        return mask(pair)
    if "%" in name and unquote_plus(name).lower() in SECRETS:
        return f"{name}=***"
    return pair


def printable(text: str) -> str:
    """A WSGI string as the UTF-8 that it stands for, with all that could move the cursor escaped.

    Bytes that are no UTF-8 show as backslash escapes.
    """
    if not text.isascii():
        text = text.encode("latin-1", "replace").decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
