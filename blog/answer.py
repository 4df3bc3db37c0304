"""The one shape of all answers, byte for byte as Go's encoder writes it."""

from __future__ import annotations

import json
from typing import Any

from flask import Response

from pkg.e import MESSAGES, Code

_MEDIA_TYPE = "application/json; charset=utf-8"
_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


def answer(code: Code, data: Any, status: int = 200) -> Response:
    # Keys in alphabetical order.
    body = {"code": code, "data": data, "msg": MESSAGES[code]}
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)
    return Response(text.encode(), status, content_type=_MEDIA_TYPE)
