"""Requests that fail for a reason of ours: one answer for all, the reason in the log."""

from __future__ import annotations

import traceback

from flask import Flask, Response, current_app, request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from blog.answer import answer
from blog.context import context
from pkg.e import Code
from pkg.logging import mask, printable


def init_app(app: Flask) -> None:
    app.register_error_handler(DBAPIError, _database_failed)
    app.register_error_handler(PoolTimeout, _database_failed)
    app.register_error_handler(Exception, _handler_failed)


def _database_failed(error: Exception) -> Response:
    name = context().settings.database.name
    current_app.logger.error("%s: database %s: %s", _request(), name, mask(reason(error)))
    return _failed()


def _handler_failed(error: Exception) -> Response:
    trace = "".join(traceback.format_exception(error))
    current_app.logger.error("%s\n%s", _request(), mask(trace))
    return _failed()


def _failed() -> Response:
    return answer(Code.ERROR, None, status=500)


def _request() -> str:
    environ = request.environ
    return mask(printable(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"))


def reason(error: Exception) -> str:
    """What the database said, in one line, without the statement and its values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    code, *text = cause.args or (type(cause).__name__,)
    line = f"{text[0]} ({code})" if text else str(code)
    return " ".join(line.split())
