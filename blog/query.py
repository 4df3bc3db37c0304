"""The parameters of a request, read from its query as Go reads them.

Of a name given twice the first value counts. A pair with a semicolon or a broken escape is dropped,
and only that pair. Bytes that are no UTF-8 become lone surrogates, for validation to refuse.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from flask import g, request

_BROKEN_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


def params() -> dict[str, str]:
    """The parameters of the current request."""
    if "params" not in g:
        g.params = parse(request.environ.get("QUERY_STRING", ""))
    found: dict[str, str] = g.params
    return found


def parse(query: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for pair in query.split("&"):
        if pair and ";" not in pair and not _BROKEN_ESCAPE.search(pair):
            name, _, value = pair.partition("=")
            values.setdefault(_unescape(name), _unescape(value))
    return values


def _unescape(text: str) -> str:
    if "%" not in text and text.isascii():
        return text.replace("+", " ")
    raw = text.replace("+", " ").encode("latin-1")
    return unquote_to_bytes(raw).decode("utf-8", "surrogateescape")
