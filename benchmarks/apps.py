"""The applications that every server of the benchmark serves."""

from __future__ import annotations

import time
import typing as t

BODY = b"Hello, World!"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))]


def bare(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    start_response("200 OK", HEADERS)
    return [BODY]


def sleeping(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    time.sleep(0.01)
    return bare(environ, start_response)


def mixed(environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
    """Fast, but for the requests to /slow."""
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.1)
    return bare(environ, start_response)


def _flask() -> t.Any:
    from flask import Flask, jsonify

    app = Flask(__name__)

    @app.get("/")
    def index() -> t.Any:
        return jsonify(message="Hello, World!", numbers=[1, 2, 3])

    return app


def get(name: str) -> t.Any:
    return _flask() if name == "flask" else globals()[name]
