"""What the router answers by itself (blog.md, section 2)."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.blog.api import Api

ROUTES = [
    ("GET", "/auth"),
    ("GET", "/api/v1/tags"),
    ("POST", "/api/v1/tags"),
    ("PUT", "/api/v1/tags/1"),
    ("DELETE", "/api/v1/tags/1"),
    ("GET", "/api/v1/articles"),
    ("GET", "/api/v1/articles/1"),
    ("POST", "/api/v1/articles"),
    ("PUT", "/api/v1/articles/1"),
    ("DELETE", "/api/v1/articles/1"),
]
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "get", "BREW"]
PATHS = sorted({path for _, path in ROUTES})


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_each_method_of_each_path(sqlite: Api, method: str, path: str) -> None:
    answer = sqlite.raw(method, path)
    slashed = sqlite.raw(method, f"{path}/?a=%41+b&c=[\"|']")
    if (method, path) in ROUTES:
        # Without a token the guard answers, /auth excepted.
        assert answer.status == (200 if path == "/auth" else 401)
        assert slashed.status == (301 if method == "GET" else 307)
        assert slashed.headers["Location"] == f"{path}?a=%41+b&c=[\"|']"
        return
    for found in (answer, slashed):
        assert found.status == 404
        assert found.headers["Content-Type"] == "text/plain"
        assert "Allow" not in found.headers
        assert found.body == (b"" if method == "HEAD" else b"404 page not found")


@pytest.mark.parametrize(
    "path",
    [
        *["/", "", "*", "/nope", "/api/v1", "/api/v1/", "/api/v1/nope", "/static/x"],
        *["//auth", "/auth//", "//", "/api//v1/tags", "/api/v1//tags", "/api/v1/tags//"],
        *["/./auth", "/api/../auth", "/api/v1/./tags", "/Auth", "/API/v1/tags", "/auth/x"],
        *["/api/v1/tags/1/2", "/api/v1/articles/1%2F2", "/api/v1/tags%00", "/auth%0A"],
    ],
)
def test_paths_are_neither_cleaned_nor_folded(sqlite: Api, path: str) -> None:
    answer = sqlite.raw("GET", f"{path}?token={sqlite.token}")
    assert (answer.status, answer.body) == (404, b"404 page not found")


def test_path_is_matched_after_decoding(sqlite: Api) -> None:
    id = sqlite.add_article(sqlite.add_tag())
    encoded = "".join(f"%{ord(digit):x}" for digit in str(id))
    assert sqlite("GET", f"/articles/{encoded}").data["id"] == id
    assert sqlite.raw("GET", "/%61uth").code == 400
    assert sqlite.raw("GET", "/api/v1/tags%2F").headers["Location"] == "/api/v1/tags"
    assert sqlite("GET", "/articles/%31%0A").code == 400
    assert sqlite("GET", "/articles/%ff").code == 400


@pytest.mark.parametrize("id", ["a b", "中", "%", "?", "<&>", "\r\nSet-Cookie: a"])
def test_location_is_encoded(sqlite: Api, id: str) -> None:
    answer = sqlite.raw("PUT", f"/api/v1/tags/{quote(id)}/")
    assert answer.status == 307
    assert answer.headers["Location"] == f"/api/v1/tags/{quote(id, safe='&:')}"


def test_redirects_carry_a_link_or_nothing(sqlite: Api) -> None:
    found = sqlite.raw("GET", "/auth/?a=<b>&c")
    assert found.headers["Content-Type"] == "text/html; charset=utf-8"
    assert found.body == b'<a href="/auth?a=&lt;b&gt;&amp;c">Moved Permanently</a>.\n\n'
    found = sqlite.raw("POST", "/api/v1/tags/")
    assert found.body == b""
    assert "Content-Type" not in found.headers
    assert sqlite.tags() == []


def test_host_names_no_route(sqlite: Api) -> None:
    for host in ("", "a..b", "x" * 100, "[", "user@host:port"):
        assert sqlite.raw("GET", "/auth", HTTP_HOST=host).status == 200
