"""The blog as a WSGI server sees it: raw targets in, bytes out."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlencode

from flask import Flask
from sqlalchemy import text
from werkzeug.datastructures import Headers
from werkzeug.test import run_wsgi_app

from blog.database import db
from pkg.util.jwt import generate_token

SECRET = "23347$040412"


@dataclass
class Answer:
    status: int
    headers: Headers
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> Any:
        return self.json["code"]

    @property
    def data(self) -> Any:
        return self.json["data"]


class Api:
    def __init__(self, app: Flask, directory: Path) -> None:
        self.app = app
        self.directory = directory
        self.token = generate_token("test", SECRET)

    def raw(self, method: str, target: str, **environ: str) -> Answer:
        """One request with the target as it stands, latin-1 for bytes, and no token added."""
        path, _, query = target.partition("?")
        request = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path.encode("latin-1")).decode("latin-1"),
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "8000",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "192.168.111.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            **environ,
        }
        body, status, headers = run_wsgi_app(self.app, request)
        return Answer(int(status.split()[0]), headers, b"".join(body))

    def __call__(self, method: str, path: str, **params: object) -> Answer:
        """One request to /api/v1 with a good token."""
        query = urlencode({"token": self.token, **params})
        answer = self.raw(method, f"/api/v1{path}?{query}")
        assert answer.status == 200, answer
        return answer

    def add_tag(self, name: str = "go", **params: object) -> int:
        """A new tag's id."""
        assert self("POST", "/tags", name=name, created_by="me", **params).code == 200
        return int(self.scalar("SELECT max(id) FROM blog_tag"))

    def add_article(self, tag_id: int, **params: object) -> int:
        given = {"title": "t", "desc": "d", "content": "c", "created_by": "me", **params}
        assert self("POST", "/articles", tag_id=tag_id, **given).code == 200
        return int(self.scalar("SELECT max(id) FROM blog_article"))

    def article(self, id: int) -> Any:
        return self("GET", f"/articles/{id}").data

    def tags(self, **params: object) -> Any:
        return self("GET", "/tags", **params).data["lists"]

    def sql(self, statement: str, **values: object) -> Any:
        with self.app.app_context(), db.engine.connect() as connection:
            found = connection.execution_options(writes=True).execute(text(statement), values)
            rows = found.fetchall() if found.returns_rows else None
            connection.commit()
            return rows

    def scalar(self, statement: str, **values: object) -> Any:
        return self.sql(statement, **values)[0][0]

    def clear(self) -> None:
        self.sql("DELETE FROM blog_tag")
        self.sql("DELETE FROM blog_article")
        for file in self._log_files():
            file.unlink()

    def file_log(self) -> list[str]:
        return [line for file in self._log_files() for line in file.read_text().splitlines()]

    def _log_files(self) -> list[Path]:
        return sorted((self.directory / "runtime/logs").glob("*"))

    def close(self) -> None:
        with self.app.app_context():
            db.engine.dispose()
