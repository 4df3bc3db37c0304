"""The URL map, and gin's answers to what is not on it."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any, cast
from urllib.parse import quote

from flask import Blueprint, Flask, Response, current_app, request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from blog.application import Application, wsgi_path
from blog.context import context
from blog.guard import require_token
from pkg.logging import redirecting, registered
from routers.api.auth import get_auth
from routers.api.v1 import article, tag

API_V1: list[tuple[str, str, Callable[..., Response]]] = [
    ("GET", "/tags", tag.get_tags),
    ("POST", "/tags", tag.add_tag),
    ("PUT", "/tags/<id>", tag.edit_tag),
    ("DELETE", "/tags/<id>", tag.delete_tag),
    ("GET", "/articles", article.get_articles),
    ("GET", "/articles/<id>", article.get_article),
    ("POST", "/articles", article.add_article),
    ("PUT", "/articles/<id>", article.edit_article),
    ("DELETE", "/articles/<id>", article.delete_article),
]

# What a query may hold as it is.
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))

# Each request passes the access log and the recovery from failures before its handler.
_HANDLERS = 3


def init_router(app: Flask) -> None:
    app.add_url_rule("/auth", view_func=get_auth, methods=["GET"], provide_automatic_options=False)
    v1 = Blueprint("v1", __name__, url_prefix="/api/v1")
    v1.before_request(require_token)
    for method, path, view in API_V1:
        v1.add_url_rule(path, view_func=view, methods=[method], provide_automatic_options=False)
    app.register_blueprint(v1)
    app.register_error_handler(NotFound, _not_on_the_map)
    app.register_error_handler(MethodNotAllowed, _not_on_the_map)
    if app.extensions["blog"].settings.run_mode == "debug":
        _show_routes()


def _show_routes() -> None:
    registered("GET", "/auth", f"{get_auth.__module__}.{get_auth.__name__}", _HANDLERS)
    for method, path, view in API_V1:
        path = "/api/v1" + path.replace("<id>", ":id")
        # The token guard comes on top.
        registered(method, path, f"{view.__module__}.{view.__name__}", _HANDLERS + 1)


def _not_on_the_map(_error: HTTPException) -> Response:
    method, path = request.environ["REQUEST_METHOD"], wsgi_path(request)
    if path.endswith("/") and _is_route(method, path[:-1]):
        return _redirect(method, path[:-1])
    return Response("404 page not found", 404, content_type="text/plain")


def _is_route(method: str, path: str) -> bool:
    try:
        cast(Application, current_app).bind_exactly(method, path).match()
    except HTTPException:
        return False
    return True


def _redirect(method: str, path: str) -> Response:
    """To the path without its last slash, with the query as it is."""
    location = quote(path, safe="/$&+,:;=@")
    if query := request.environ.get("QUERY_STRING"):
        location += f"?{quote(query, safe=_PRINTABLE, encoding='latin-1')}"
    status = 301 if method == "GET" else 307
    if context().settings.run_mode == "debug":
        redirecting(status, request.environ["PATH_INFO"], location)
    return _Redirect(location, status)


class _Redirect(Response):
    def __init__(self, location: str, status: int) -> None:
        super().__init__(status=status, content_type="text/html; charset=utf-8")
        self._location = location
        if status == 301:
            self.set_data(f'<a href="{escape(location)}">Moved Permanently</a>.\n\n')
        else:
            del self.headers["Content-Type"]

    def get_wsgi_headers(self, environ: dict[str, Any]) -> Headers:
        headers = super().get_wsgi_headers(environ)
        # Set last: Werkzeug would encode a location's brackets and quotes.
        headers["Location"] = self._location
        return headers
