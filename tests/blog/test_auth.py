"""Logins, tokens and the guard (blog.md, sections 3 and 4)."""

from __future__ import annotations

import base64
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest
from werkzeug.security import generate_password_hash

from blog import user
from tests.blog.api import SECRET, Api

HOUR = 3600


def login(api: Api, **params: str) -> Any:
    answer = api.raw("GET", f"/auth?{urlencode(params)}")
    assert answer.status == 200
    return answer


def test_good_login_gives_a_token(api: Api) -> None:
    before = int(time.time())
    answer = login(api, username="test", password="test123456")
    assert (answer.code, list(answer.data)) == (200, ["token"])
    token = answer.data["token"]
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    claims = jwt.decode(token, SECRET.ljust(32, "\0"), algorithms=["HS256"])
    assert before <= claims.pop("exp") - 3 * HOUR <= time.time()
    # No password: whoever sees the token can read the claims.
    assert claims == {"username": "test", "iss": "gin-blog"}
    assert api.raw("GET", f"/api/v1/tags?token={token}").code == 200


@pytest.mark.parametrize(
    ("username", "password", "code"),
    [
        ("test", "wrong", 20004),
        ("nobody", "test123456", 20004),
        ("test", "TEST123456", 20004),
        ("TEST", "test123456", 20004),
        ("tést", "test123456", 20004),
        ("test ", "test123456", 20004),
        ("test", "test123456 ", 20004),
        ("test🎉", "test123456", 20004),
        ("", "test123456", 400),
        ("test", "", 400),
        (" \t\u3000", "x", 400),
        ("a" * 50, "b" * 50, 20004),
        ("中" * 50, "中" * 50, 20004),
        ("a" * 51, "b", 400),
        ("a", "中" * 51, 400),
    ],
)
def test_bad_logins(api: Api, username: str, password: str, code: int) -> None:
    answer = login(api, username=username, password=password)
    assert (answer.code, answer.data) == (code, {})


def test_absent_parameters(api: Api) -> None:
    assert login(api).code == 400


def test_each_login_takes_the_time_of_one_hash(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    check = user.check_password_hash

    def count(stored: str, password: str) -> bool:
        checked.append(stored)
        return check(stored, password)

    monkeypatch.setattr(user, "check_password_hash", count)
    for username, password, code in (
        ("nobody", "test123456", 20004),
        ("nobody", "0", 20004),
        ("TEST", "test123456", 20004),
        ("test", "wrong", 20004),
        ("test", "test123456", 200),
    ):
        assert login(api, username=username, password=password).code == code
        assert len(checked) == 1, username
        # The same method and costs as everyone's.
        stored = checked.pop()
        assert stored.partition("$")[0] == generate_password_hash("x").partition("$")[0]
        assert len(stored.rpartition("$")[2]) == 128


def test_few_hashes_are_checked_at_once(sqlite: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()
    four = threading.Barrier(4, timeout=20)
    running, most = 0, 0

    def check(stored: str, password: str) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        # All of those that may run meet here; a fifth one would have been counted.
        four.wait()
        with lock:
            running -= 1
        return False

    monkeypatch.setattr(user, "check_password_hash", check)
    with ThreadPoolExecutor(32) as pool:
        answers = pool.map(lambda i: login(sqlite, username=f"u{i}", password="x"), range(32))
        assert {answer.code for answer in answers} == {20004}
    assert most == 4


def test_databases_of_ours_hold_a_hash(sqlite: Api, mariadb_api: Api) -> None:
    for api in (sqlite, mariadb_api):
        assert api.scalar("SELECT password FROM blog_auth").startswith("scrypt:")


def signed(claims: Any, key: str = SECRET, algorithm: str = "HS256", **header: Any) -> str:
    """A token of any content, made without the library's own checks."""
    jws = jwt.PyJWS()
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return jws.encode(payload, key.ljust(64, "\0"), algorithm, headers=header or None)


def guard(api: Api, token: str) -> tuple[int, int]:
    answer = api.raw("GET", f"/api/v1/tags?{urlencode({'token': token})}")
    if answer.status == 401:
        assert answer.data is None
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    return answer.status, answer.code


GOOD: dict[str, Any] = {"username": "test", "exp": 2**33, "iss": "gin-blog"}


@pytest.mark.parametrize(
    "claims",
    [
        GOOD,
        {"exp": 2**33},
        GOOD | {"iss": "x", "aud": "anyone", "password": "clear", "sub": "s", "jti": "j"},
        GOOD | {"iat": 1, "nbf": 1, "more": [1]},
        GOOD | {"aud": None, "username": None},
    ],
)
def test_accepted_claims(sqlite: Api, claims: dict[str, Any]) -> None:
    assert guard(sqlite, signed(claims)) == (200, 200)


@pytest.mark.parametrize("claims", [{}, {"exp": 0}, {"username": "test"}, {"exp": None}])
def test_token_that_never_expires(sqlite: Api, claims: dict[str, Any]) -> None:
    assert guard(sqlite, signed(claims)) == (401, 20002)


@pytest.mark.parametrize("age", [2, HOUR, 2**31])
def test_token_too_old(sqlite: Api, age: int) -> None:
    status, code = guard(sqlite, signed(GOOD | {"exp": int(time.time()) - age}))
    assert status == 401
    assert code in (20001, 20002)


def test_token_in_its_last_second(sqlite: Api) -> None:
    for _ in range(3):
        now = int(time.time())
        found = guard(sqlite, signed(GOOD | {"exp": now}))
        if int(time.time()) == now:
            assert found == (200, 200)
            return
    pytest.fail("three requests each took longer than what was left of a second")


@pytest.mark.parametrize(
    "claims",
    [
        *[GOOD | {name: 5} for name in ("username", "password", "aud", "iss", "sub", "jti")],
        *[GOOD | {"exp": exp} for exp in ("2147483647", 2.5, 1e10, 2**64, True, [], {})],
        GOOD | {"aud": ["a"]},
        GOOD | {"nbf": int(time.time()) + HOUR},
        GOOD | {"iat": int(time.time()) + HOUR},
        GOOD | {"nbf": "1"},
        b"[]",
        b"1",
        b"null",
        b"{",
        b"",
        b"\xff",
        b'{"exp":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"exp":4294967296}{}',
    ],
)
def test_refused_claims(sqlite: Api, claims: Any) -> None:
    assert guard(sqlite, signed(claims)) == (401, 20001)


def unsigned(header: Any) -> str:
    parts = [json.dumps(part).encode() for part in (header, GOOD)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def test_refused_tokens(sqlite: Api) -> None:
    good = signed(GOOD)
    head, payload, signature = good.split(".")
    forged = base64.urlsafe_b64encode(json.dumps(GOOD | {"x": 1}).encode()).rstrip(b"=").decode()
    bad = [
        "x",
        ".",
        "..",
        "a.b.c",
        f"{head}.{payload}",
        f"{good}.x",
        f"{head}.{payload}.",
        f"{good}=",
        f"{good}!",
        f"{good}\n",
        f" {good}",
        f"{head}.{forged}.{signature}",
        f"中{good}",
        signed(GOOD, key="another key"),
        signed(GOOD, algorithm="HS384"),
        signed(GOOD, algorithm="HS512"),
        f"{unsigned({'alg': 'none', 'typ': 'JWT'})}.",
        f"{unsigned({'alg': 'none', 'typ': 'JWT'})}.{signature}",
        *(f"{unsigned({'alg': alg})}.{signature}" for alg in ("RS256", "XX", 5, [], {}, None)),
        f"{unsigned([])}.{signature}",
        f"{base64.urlsafe_b64encode(b'[' * 99_999).decode()}.{payload}.{signature}",
        "a" * 100_000,
    ]
    assert guard(sqlite, good) == (200, 200)
    for token in bad:
        assert guard(sqlite, token) == (401, 20001), token[:200]


def test_missing_token(sqlite: Api) -> None:
    for query in ("", "?token=", "?token"):
        answer = sqlite.raw("GET", f"/api/v1/tags{query}")
        assert (answer.status, answer.code, answer.data) == (401, 400, None)


def test_guard_runs_before_validation(sqlite: Api) -> None:
    for method, path in (("PUT", "/tags/0"), ("POST", "/articles"), ("GET", "/articles/x")):
        assert sqlite.raw(method, f"/api/v1{path}").status == 401
        assert sqlite.raw(method, f"/api/v1{path}?token=x").code == 20001
    assert sqlite.file_log() == []
