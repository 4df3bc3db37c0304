"""The blog on its server, as people run it: `python app.py`, requests, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import typing as t
from pathlib import Path
from urllib.parse import urlencode

import pytest
from conftest import ROOT, Client, Live, wait_until
from load import Load


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project that the test may break, without its user's settings."""
    for name in ("app.py", "blog", "routers"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / "conf").mkdir()
    shutil.copy(ROOT / "tests/blog/app.ini", tmp_path / "conf")
    for name in os.environ:
        if name.startswith("BLOG_"):
            monkeypatch.delenv(name)
    shutil.copytree(ROOT / "pkg", tmp_path / "pkg", ignore=shutil.ignore_patterns("flask_graceful"))
    return tmp_path


@pytest.fixture
def blog(project: Path, live: t.Callable[..., Live]) -> t.Callable[..., Live]:
    def start(**env: str) -> Live:
        return live("app.py", cwd=project, env={"BLOG_SERVER_HTTP_PORT": "0", **env})

    return start


def ask(port: int, method: str, path: str, **query: object) -> t.Any:
    target = f"{path}?{urlencode(query)}" if query else path
    with Client(("127.0.0.1", port)) as client:
        client.send(f"{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        code, _, body = client.response()
    assert code == 200, body
    return json.loads(body)


def get_token(port: int) -> str:
    answer = ask(port, "GET", "/auth", username="test", password="test123456")
    assert answer["code"] == 200
    token = answer["data"]["token"]
    assert isinstance(token, str)
    return token


def test_ten_routes_before_and_after_kill_1(blog: t.Callable[..., Live]) -> None:
    one = blog()
    port = one.port
    (old,) = one.wait_pids(1)
    token = get_token(port)

    def ok(method: str, path: str, **query: object) -> t.Any:
        answer = ask(port, method, path, token=token, **query)
        assert answer["code"] == 200, answer
        return answer["data"]

    ok("POST", "/api/v1/tags", name="go", created_by="me", state=1)
    article = {"tag_id": 1, "title": "标题", "desc": "d", "content": "c", "state": 1}
    ok("POST", "/api/v1/articles", created_by="me", **article)
    os.kill(old, signal.SIGHUP)
    old, new = one.wait_pids(2)
    one.wait_for("Server err: ")
    assert new != old
    ok("PUT", "/api/v1/tags/1", name="python", modified_by="you")
    assert ok("GET", "/api/v1/tags")["lists"][0]["name"] == "python"
    ok("PUT", "/api/v1/articles/1", tag_id=1, title="new", modified_by="you")
    assert ok("GET", "/api/v1/articles")["total"] == 1
    assert ok("GET", "/api/v1/articles/1")["title"] == "new"
    ok("DELETE", "/api/v1/articles/1")
    ok("DELETE", "/api/v1/tags/1")
    os.kill(new, signal.SIGTERM)
    one.wait_for("Server err: ", 2)
    # What stands in the logs: no password, no token.
    assert "test123456" not in one.log
    assert token not in one.log
    assert "| 200 |" in one.log


def test_workers_behind_a_pid_that_never_changes(blog: t.Callable[..., Live]) -> None:
    one = blog(BLOG_SERVER_WORKERS="2")
    one.wait_for(rf"^{one.pid} Generation 1 serves with workers \d+ \d+\.")
    token = get_token(one.port)
    path = f"/api/v1/tags?token={token}"
    with Load(one.port, clients=4, path=path) as load:
        for generation in (2, 3):
            name = f"before {generation}"
            ask(one.port, "POST", "/api/v1/tags", name=name, created_by="me", token=token)
            os.kill(one.pid, signal.SIGHUP)
            one.wait_for(rf"^{one.pid} Generation {generation} serves with workers \d+ \d+\.")
            load.wait_count(load.count + 50)
    assert load.failed == []
    assert ask(one.port, "GET", "/api/v1/tags", token=token)["data"]["total"] == 2
    assert len(set(one.wait_pids(6))) == 6
    os.kill(one.pid, signal.SIGTERM)
    assert one.process.wait(60) == 0
    assert "ERROR" not in one.log and "Traceback" not in one.log


def test_the_api_answers_all_the_while(blog: t.Callable[..., Live]) -> None:
    one = blog()
    token = get_token(one.port)
    with Load(one.port, clients=4, path=f"/api/v1/tags?token={token}") as load:
        for generation in range(1, 4):
            pids = one.wait_pids(generation)
            os.kill(pids[-1], signal.SIGHUP)
            one.wait_for("Server err: ", generation)
            load.wait_count(load.count + 20)
    assert load.failed == []


def test_a_broken_change_leaves_the_old_code_serving(
    blog: t.Callable[..., Live], project: Path
) -> None:
    one = blog()
    (old,) = one.wait_pids(1)
    source = project / "routers" / "api" / "auth.py"
    good = source.read_text()
    source.write_text(good + "\ndef broken(:\n")
    os.kill(old, signal.SIGHUP)
    one.wait_for(f"{old} Restart failed: .* this process goes on serving")
    assert "SyntaxError" in one.log
    get_token(one.port)
    source.write_text(good)
    os.kill(old, signal.SIGHUP)
    one.wait_for("Server err: ")
    get_token(one.port)


def test_an_article_of_65535_chinese_characters(blog: t.Callable[..., Live]) -> None:
    one = blog()
    token = get_token(one.port)
    content = "优" * 65535
    ask(one.port, "POST", "/api/v1/tags", name="t", created_by="me", token=token)
    answer = ask(
        one.port, "POST", "/api/v1/articles",
        tag_id=1, title="t", desc="d", content=content, created_by="me", token=token,
    )  # fmt: skip
    assert answer["code"] == 200, answer
    assert ask(one.port, "GET", "/api/v1/articles/1", token=token)["data"]["content"] == content


def test_a_head_over_the_limit_is_431_and_a_bad_escape_400(blog: t.Callable[..., Live]) -> None:
    one = blog()
    for target, expected in (("/?" + "a" * (1 << 21), 431), ("/%zz", 400)):
        with Client(("127.0.0.1", one.port)) as client:
            client.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert client.response()[0] == expected


def test_port_taken_is_one_line_that_names_the_holder(blog: t.Callable[..., Live]) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as holder:
        port = holder.getsockname()[1]
        one = blog(BLOG_SERVER_HTTP_PORT=str(port))
        assert one.process.wait(60) == 1
        one.wait_for("address already in use")
    assert "Traceback" not in one.log
    last = one.log.splitlines()[-1]
    assert last.startswith(f"listen tcp :{port}: bind: address already in use")
    if os.path.isdir("/proc/net"):
        assert f"(held by pid {os.getpid()}: " in last


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"BLOG_CONF": "conf/none.ini"}, "conf/none.ini"),
        ({"BLOG_SERVER_HTTP_PORT": "80a"}, "BLOG_SERVER_HTTP_PORT"),
        ({"BLOG_SERVER_HTTP_PORT": "65536"}, "BLOG_SERVER_HTTP_PORT"),
        ({"BLOG_SERVER_WORKERS": "-1"}, "BLOG_SERVER_WORKERS"),
        ({"BLOG_RUN_MODE": "release"}, "JWT_SECRET"),
    ],
)
def test_wrong_configuration_is_one_line_and_status_2(
    blog: t.Callable[..., Live], env: dict[str, str], expected: str
) -> None:
    one = blog(**env)
    assert one.process.wait(60) == 2
    wait_until(lambda: expected in one.log, "the reason")
    assert len(one.log.splitlines()) == 1, one.log
