"""Flask with the eyes of gin's router: a method and a decoded path, each taken literally."""

from __future__ import annotations

from typing import Any

from flask import Flask, Request
from werkzeug.exceptions import NotFound
from werkzeug.routing import MapAdapter, Rule


class _Rule(Rule):
    """A route for its own methods only: GET does not answer HEAD."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.methods:
            self.methods.discard("HEAD")


class Application(Flask):
    url_rule_class = _Rule

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url_map.merge_slashes = False

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return super().create_url_adapter(None)
        return self.bind_exactly(request.environ["REQUEST_METHOD"], wsgi_path(request))

    def bind_exactly(self, method: str, path: str) -> MapAdapter:
        """Matches without the Host header, which names no route here and may be malformed."""
        # Werkzeug would fold the leading slashes into one and the method to upper case.
        if path.startswith("//") or method != method.upper():
            raise NotFound
        return self.url_map.bind("", path_info=path, default_method=method)


def wsgi_path(request: Request) -> str:
    path: str = request.environ["PATH_INFO"]
    return path.encode("latin-1").decode("utf-8", "replace")
