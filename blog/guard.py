"""The token guard of the API's routes."""

from __future__ import annotations

from flask import Response

from blog.answer import answer
from blog.context import context
from blog.query import params
from pkg.e import Code
from pkg.util.jwt import ExpiredToken, InvalidToken, parse_token


def require_token() -> Response | None:
    """Runs before the handler; an answer from here is all that the client gets."""
    token = params().get("token")
    if not token:
        return _refuse(Code.INVALID_PARAMS)
    try:
        parse_token(token, context().settings.app.jwt_secret)
    except ExpiredToken:
        return _refuse(Code.ERROR_AUTH_CHECK_TOKEN_TIMEOUT)
    except InvalidToken:
        return _refuse(Code.ERROR_AUTH_CHECK_TOKEN_FAIL)
    return None


def _refuse(code: Code) -> Response:
    return answer(code, None, status=401)
