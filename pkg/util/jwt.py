"""Tokens: HS256 only, good for three hours, naming the user but carrying no password."""

from __future__ import annotations

import re
import time
from typing import Any

import jwt

from pkg.util.number import INT64_MAX, INT64_MIN

ISSUER = "gin-blog"
LIFETIME = 3 * 60 * 60

_ALGORITHM = "HS256"
_THREE_SEGMENTS = re.compile(r"(?:[A-Za-z0-9_-]+\.){2}[A-Za-z0-9_-]+")
_CLAIM_TYPES = {
    "username": str,
    "password": str,
    "aud": str,
    "exp": int,
    "jti": str,
    "iat": int,
    "iss": str,
    "nbf": int,
    "sub": str,
}
# The library checks the signature alone; its rules for the claims differ from the tutorial's.
_SIGNATURE_ONLY: Any = {
    f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")
}


class InvalidToken(Exception):
    pass


class ExpiredToken(InvalidToken):
    pass


def _key(secret: str) -> bytes:
    # HMAC fills a short key with zeros anyway (RFC 2104). Filled already, the tutorial's secret
    # of 13 bytes gives the same tokens without the library's warning about its length.
    return secret.encode().ljust(32, b"\0")


def generate_token(username: str, secret: str) -> str:
    claims = {"username": username, "exp": int(time.time()) + LIFETIME, "iss": ISSUER}
    return jwt.encode(claims, _key(secret), algorithm=_ALGORITHM)


def parse_token(token: str, secret: str) -> dict[str, Any]:
    """The claims of a token that is good now."""
    # The library skips over what is no base64.
    if not _THREE_SEGMENTS.fullmatch(token):
        raise InvalidToken
    try:
        claims: dict[str, Any] = jwt.decode(
            token, _key(secret), algorithms=[_ALGORITHM], options=_SIGNATURE_ONLY
        )
    except (jwt.PyJWTError, ValueError, RecursionError) as err:
        # The last two come from JSON with huge numbers or deep nesting.
        raise InvalidToken from err
    if not all(_has_type(claims.get(name), kind) for name, kind in _CLAIM_TYPES.items()):
        raise InvalidToken
    _check_times(claims)
    return claims


def _has_type(value: Any, kind: type) -> bool:
    if value is None:
        return True
    # A bool is an int to isinstance.
    if type(value) is not kind:
        return False
    return not isinstance(value, int) or INT64_MIN <= value <= INT64_MAX


def _check_times(claims: dict[str, Any]) -> None:
    now = int(time.time())
    if (claims.get("nbf") or 0) > now or (claims.get("iat") or 0) > now:
        raise InvalidToken
    # Without exp a token is taken for one that ran out long ago.
    if (claims.get("exp") or 0) < now:
        raise ExpiredToken
