"""Access log, debug lines, file log, and what no log may show (blog.md, section 9)."""

from __future__ import annotations

import io
import logging
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import pytest

from pkg.logging import mask, mask_query, open_file_log, printable
from pkg.logging.access import format_line, go_duration
from tests.blog.api import Api
from tests.blog.conftest import MakeApi

LINE = re.compile(
    r"\[GIN\] (\d{4}/\d\d/\d\d - \d\d:\d\d:\d\d) \| (\d{3}) \| (.{13,}) \| (.{15,}) \| (.{7,}) (.*)"
)
NOW = time.struct_time((2018, 3, 15, 13, 0, 16, 3, 74, 0))


def logged(
    api: Api, capsys: pytest.CaptureFixture[str], method: str, target: str, **env: str
) -> str:
    capsys.readouterr()
    api.raw(method, target, **env)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 1
    return lines[0] if lines else ""


def test_access_line(sqlite: Api, capsys: pytest.CaptureFixture[str]) -> None:
    line = logged(sqlite, capsys, "GET", "/api/v1/tags?page=1&x=%41")
    found = LINE.fullmatch(line)
    assert found
    stamp, status, latency, client, method, target = found.groups()
    age = time.time() - time.mktime(time.strptime(stamp, "%Y/%m/%d - %H:%M:%S"))
    assert 0 <= age < 60
    assert (status, client, method) == ("401", "  192.168.111.1", "GET    ")
    assert target == "/api/v1/tags?page=1&x=%41"
    assert re.fullmatch(r" *\d+(\.\d+)?(µs|ms|s)", latency)


def test_access_line_to_the_letter() -> None:
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/auth", "REMOTE_ADDR": "::1"}
    assert format_line(environ, "200", 188_096, NOW) == (
        "[GIN] 2018/03/15 - 13:00:16 | 200 |     188.096µs |             ::1 | GET     /auth\n"
    )
    assert format_line(environ | {"REQUEST_METHOD": "DELETE"}, "404", 5, NOW, True) == (
        "[GIN] 2018/03/15 - 13:00:16 |\033[97;43m 404 \033[0m|           5ns |             ::1 "
        "|\033[97;41m DELETE \033[0m /auth\n"
    )


@pytest.mark.parametrize(
    ("environ", "client"),
    [
        ({}, "192.168.111.1"),
        ({"HTTP_X_REAL_IP": " 10.0.0.2 "}, "10.0.0.2"),
        ({"HTTP_X_FORWARDED_FOR": " 10.0.0.1 , 10.0.0.3", "HTTP_X_REAL_IP": "x"}, "10.0.0.1"),
        ({"HTTP_X_FORWARDED_FOR": ", 10.0.0.3"}, "192.168.111.1"),
        ({"HTTP_X_FORWARDED_FOR": "\x1b[2J"}, "\\x1b[2J"),
        ({"REMOTE_ADDR": ""}, ""),
    ],
)
def test_client(
    sqlite: Api, capsys: pytest.CaptureFixture[str], environ: dict[str, str], client: str
) -> None:
    found = LINE.fullmatch(logged(sqlite, capsys, "GET", "/auth", **environ))
    assert found and found[4].strip() == client


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0ns"),
        (531, "531ns"),
        (1_000, "1µs"),
        (115_180, "115.18µs"),
        (2_079_534, "2.079534ms"),
        (1_200_000_000, "1.2s"),
        (60_500_000_000, "1m0.5s"),
        (3_600_000_000_001, "1h0m0.000000001s"),
    ],
)
def test_durations(nanoseconds: int, text: str) -> None:
    assert go_duration(nanoseconds) == text


def test_what_is_logged(sqlite: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert " 404 " in logged(sqlite, capsys, "GET", "/nope")
    assert " 404 " in logged(sqlite, capsys, "HEAD", "/auth")
    assert logged(sqlite, capsys, "GET", "/auth/") == ""
    assert logged(sqlite, capsys, "PUT", "/api/v1/tags/1/") == ""


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "query",
    [
        "username=a&password=s3cr3t",
        "token=s3cr3t&page=1",
        "token=a&token=s3cr3t",
        "TOKEN=s3cr3t&Password=s3cr3t",
        "%74oken=s3cr3t&tok%65n=s3cr3t&%54OKEN=s3cr3t",
        "p%61ssword=s3cr3t",
        "token=s3cr3t;x&a=1",
        "a=1;token=s3cr3t",
        "token=a;s3cr3t",
        "token==s3cr3t",
        "token=%zzs3cr3t",
        "&&token=s3cr3t&&",
    ],
)
def test_secrets_are_masked(sqlite: Api, capsys: pytest.CaptureFixture[str], query: str) -> None:
    line = logged(sqlite, capsys, "GET", f"/auth?{query}")
    assert "=***" in line and SECRET not in line
    # Also where the client encoded the question mark, and in the lines of a redirect.
    line = logged(sqlite, capsys, "GET", f"/auth%3F{query}")
    assert SECRET not in line
    sqlite.raw("GET", f"/auth/?{query}")
    redirect = capsys.readouterr().err
    assert "[GIN-debug] redirecting request 301: /auth/ --> /auth?" in redirect
    assert "=***" in redirect and SECRET not in redirect


def test_other_values_are_not_masked() -> None:
    query = "tokens=1&my_token=2&page=3&x=token&token&a=%26token%3D4"
    assert mask_query(query) == query
    assert mask("see /auth?password=x&y=1 here") == "see /auth?password=***&y=1 here"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/a%0A[GIN]%20forged", "/a\\n[GIN] forged"),
        ("/a%0D%1B[2J%00", "/a\\r\\x1b[2J\\x00"),
        ("/%E4%B8%AD%20x", "/中 x"),
        ("/%FF", "/\\xff"),
        ("/%C2%85%E2%80%A8%E2%80%AE", "/\\x85\\u2028\\u202e"),
        ("/?a=\x1b\x85\xe4\xb8\xad", "/?a=\\x1b\\x85中"),
    ],
)
def test_lines_cannot_be_forged(
    sqlite: Api, capsys: pytest.CaptureFixture[str], path: str, shown: str
) -> None:
    assert logged(sqlite, capsys, "GET", path).endswith(f" {shown}")


def test_redirect_lines_cannot_be_forged(sqlite: Api, capsys: pytest.CaptureFixture[str]) -> None:
    sqlite.raw("PUT", "/api/v1/tags/%0A[GIN-debug]%20x/?a=\n")
    assert capsys.readouterr().err == (
        "[GIN-debug] redirecting request 307: /api/v1/tags/\\n[GIN-debug] x/ "
        "--> /api/v1/tags/%0A%5BGIN-debug%5D%20x?a=%0A\n"
    )


def test_printable_keeps_what_is() -> None:
    assert printable("/a b?c=\\n") == "/a b?c=\\n"


HEAD = '[GIN-debug] [WARNING] Running in "debug" mode. Switch to "release" mode in production.'
TABLE = """\
[GIN-debug] GET    /auth                     --> routers.api.auth.get_auth (3 handlers)
[GIN-debug] GET    /api/v1/tags              --> routers.api.v1.tag.get_tags (4 handlers)
[GIN-debug] POST   /api/v1/tags              --> routers.api.v1.tag.add_tag (4 handlers)
[GIN-debug] PUT    /api/v1/tags/:id          --> routers.api.v1.tag.edit_tag (4 handlers)
[GIN-debug] DELETE /api/v1/tags/:id          --> routers.api.v1.tag.delete_tag (4 handlers)
[GIN-debug] GET    /api/v1/articles          --> routers.api.v1.article.get_articles (4 handlers)
[GIN-debug] GET    /api/v1/articles/:id      --> routers.api.v1.article.get_article (4 handlers)
[GIN-debug] POST   /api/v1/articles          --> routers.api.v1.article.add_article (4 handlers)
[GIN-debug] PUT    /api/v1/articles/:id      --> routers.api.v1.article.edit_article (4 handlers)
[GIN-debug] DELETE /api/v1/articles/:id      --> routers.api.v1.article.delete_article (4 handlers)
"""


def test_debug_mode_shows_its_routes(make_api: MakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    make_api()
    out, err = capsys.readouterr()
    head, env, code, rest = err.split("\n", 3)
    assert head == HEAD
    assert env.startswith(" - using env:\t")
    assert code.startswith(" - using code:\t")
    assert rest == "\n" + TABLE
    assert out == ""


def test_release_mode(
    make_api: MakeApi, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    api = make_api(BLOG_RUN_MODE="release", BLOG_APP_JWT_SECRET="my own")
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.endswith("set another: python -m blog.user test")
    assert api.raw("GET", "/auth/").status == 301
    assert capsys.readouterr() == ("", "")
    assert " 404 " in logged(api, capsys, "GET", "/nope")


FILE_LINE = re.compile(
    r"\[INFO\]\[(auth|tag|article)\.py:\d+\](\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) \[(.*)\]"
)
LONG = "a" * 101


@pytest.mark.parametrize(
    ("method", "path", "params", "expected"),
    [
        (
            "POST",
            "/tags",
            {"state": 2},
            "name 名称不能为空; created_by 创建人不能为空; state 状态只允许0或1",
        ),
        (
            "POST",
            "/tags",
            {"name": LONG, "created_by": LONG},
            "name 名称最长为100字符; created_by 创建人最长为100字符",
        ),
        (
            "POST",
            "/tags",
            {"name": " " * 101, "created_by": "a"},
            "name 名称不能为空; name 名称最长为100字符",
        ),
        (
            "PUT",
            "/tags/0",
            {"state": 2, "name": LONG},
            "state 状态只允许0或1; id ID不能为空; modified_by 修改人不能为空; "
            "name 名称最长为100字符",
        ),
        ("PUT", "/tags/1", {"modified_by": LONG}, "modified_by 修改人最长为100字符"),
        ("DELETE", "/tags/-1", {}, "id ID必须大于0"),
        (
            "GET",
            "/articles",
            {"state": 2, "tag_id": -1},
            "state 状态只允许0或1; tag_id 标签ID必须大于0",
        ),
        ("GET", "/articles/0", {}, "id ID必须大于0"),
        (
            "POST",
            "/articles",
            {"state": 2},
            "tag_id 标签ID必须大于0; title 标题不能为空; desc 简述不能为空; content 内容不能为空; "
            "created_by 创建人不能为空; state 状态只允许0或1",
        ),
        (
            "PUT",
            "/articles/0",
            {"state": -1, "title": LONG, "desc": "a" * 256, "content": "a" * 65536},
            "state 状态只允许0或1; id ID必须大于0; title 标题最长为100字符; "
            "desc 简述最长为255字符; content 内容最长为65535字符; modified_by 修改人不能为空",
        ),
        ("DELETE", "/articles/x", {}, "id ID必须大于0"),
    ],
)
def test_file_log_tells_every_broken_rule(
    sqlite: Api, method: str, path: str, params: dict[str, object], expected: str
) -> None:
    assert sqlite(method, path, **params).code == 400
    found = [FILE_LINE.fullmatch(line) for line in sqlite.file_log()]
    assert [line and line[3] for line in found] == expected.split("; ")
    assert all(line and line[1] == path.split("/")[1].rstrip("s") for line in found)


def test_file_log_of_a_login(sqlite: Api) -> None:
    sqlite.raw("GET", f"/auth?{urlencode({'username': ' ' * 51})}")
    assert [line.partition(" [")[2] for line in sqlite.file_log()] == [
        "Username.Required Can not be empty]",
        "Username.MaxSize Maximum size is 50]",
        "Password.Required Can not be empty]",
    ]


def test_file_log_is_named_after_the_day(sqlite: Api) -> None:
    sqlite("GET", "/articles/0")
    [file] = (sqlite.directory / "runtime/logs").iterdir()
    assert re.fullmatch(r"log\d{8}\.log", file.name)
    assert file.stat().st_mode & 0o777 == 0o644
    sqlite("GET", "/articles/0")
    assert len(file.read_text().splitlines()) == 2


def test_nothing_else_is_in_the_file_log(sqlite: Api) -> None:
    sqlite.add_article(sqlite.add_tag())
    sqlite("DELETE", "/tags/99999")
    sqlite.raw("GET", "/api/v1/tags?token=x")
    assert sqlite.file_log() == []


def test_standard_output_that_fails(sqlite: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is answered all the same; what an encoding lacks is escaped."""
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert sqlite.raw("GET", "/%E4%B8%AD").status == 404
    assert ascii_only.buffer.getvalue().endswith(b" /\\u4e2d\n")  # type: ignore[attr-defined]
    ascii_only.close()
    assert sqlite.raw("GET", "/auth").status == 200
    full = open("/dev/full", "w")
    monkeypatch.setattr(sys, "stdout", full)
    answer = sqlite.raw("GET", "/auth")
    with suppress(OSError):
        full.close()
    assert answer.status == 200


def test_file_log_that_cannot_be_written(
    make_api: MakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api = make_api()
    (api.directory / "runtime/logs").write_text("in the way")
    assert api("GET", "/articles/0").code == 400
    assert "FileExistsError" in capsys.readouterr().err


def test_levels_of_the_file_log(tmp_path: Path) -> None:
    log = open_file_log(tmp_path / "logs")
    for level in (logging.DEBUG, logging.WARNING, logging.ERROR, logging.CRITICAL):
        log.log(level, "x")
    [file] = (tmp_path / "logs").iterdir()
    levels = [line.partition("]")[0] for line in file.read_text().splitlines()]
    assert levels == ["[DEBUG", "[WARN", "[ERROR", "[FATAL"]


def test_unexpected_exception(
    make_api: MakeApi, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    api = make_api()

    def broken() -> str:
        raise LookupError(f"GET /auth?token={SECRET}&x=1")

    api.app.add_url_rule("/broken/<path:more>", view_func=broken)
    api.app.add_url_rule("/broken", view_func=broken)
    answer = api.raw("GET", f"/broken?password={SECRET}")
    assert (answer.status, answer.body) == (500, b'{"code":500,"data":null,"msg":"fail"}')
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert "Traceback" in caplog.text and "LookupError: GET /auth?token=***&x=1" in caplog.text
    assert SECRET not in caplog.text
    assert " | 500 | " in capsys.readouterr().out
    caplog.clear()
    api.raw("GET", f"/broken/%0Aforged?token={SECRET}")
    assert caplog.records[0].getMessage().startswith("GET /broken/\\nforged\nTraceback")
