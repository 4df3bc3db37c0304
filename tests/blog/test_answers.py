"""The shape of every answer, and how parameters are read (blog.md, section 1)."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from blog.query import parse
from pkg.util.number import to_int
from tests.blog.api import Api

NOT_FOUND = "该标签不存在"


def test_body_is_written_as_go_writes_it(sqlite: Api) -> None:
    sqlite.add_tag("<a> & 'b' 中文 \u2028")
    answer = sqlite("GET", "/tags")
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    start, end = answer.body.decode().split(str(answer.data["lists"][0]["created_on"]))
    assert start.startswith('{"code":200,"data":{"lists":[{"id":')
    assert end == (
        ',"modified_on":0,"name":"\\u003ca\\u003e \\u0026 \'b\' 中文 \\u2028","created_by":"me",'
        '"modified_by":"","state":0}],"total":1},"msg":"ok"}'
    )


def test_empty_list_and_failures(api: Api) -> None:
    assert api("GET", "/tags").body == b'{"code":200,"data":{"lists":[],"total":0},"msg":"ok"}'
    assert api("DELETE", "/tags/9").body.decode() == (
        f'{{"code":10002,"data":{{}},"msg":"{NOT_FOUND}"}}'
    )
    assert api("GET", "/articles/9").body.decode() == (
        '{"code":10003,"data":null,"msg":"该文章不存在"}'
    )


def test_parameters_are_read_from_the_query_only(sqlite: Api) -> None:
    answer = sqlite.raw(
        "POST",
        "/api/v1/tags",
        CONTENT_TYPE="application/x-www-form-urlencoded",
        CONTENT_LENGTH="9",
        HTTP_COOKIE="token=x",
        HTTP_TOKEN=sqlite.token,
    )
    assert (answer.status, answer.code) == (401, 400)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("&&", {}),
        ("a=1&a=2", {"a": "1"}),
        ("a=&a=2", {"a": ""}),
        ("a", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("A=1", {"A": "1"}),
        ("a=x+y%20z%2B", {"a": "x y z+"}),
        ("%61=1", {"a": "1"}),
        ("a=1;b=2&c=3", {"c": "3"}),
        ("a=%zz&b=%4&c=%&d=4", {"d": "4"}),
        ("%zz=1&a=%zz&a=2", {"a": "2"}),
        ("a=%E4%B8%AD", {"a": "中"}),
        ("a=\xe4\xb8\xad+", {"a": "中 "}),
        ("a=%FF", {"a": "\udcff"}),
    ],
)
def test_query_is_parsed_as_go_does(query: str, expected: dict[str, str]) -> None:
    assert parse(query) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("2", 2), ("+2", 2), ("02", 2), ("-1", -1), ("-0", 0)],
        *[("", 0), (" 2", 0), ("2 ", 0), ("2\n", 0), ("２", 0), ("0_2", 0), ("2.0", 0)],
        *[("0x2", 0), ("abc", 0), ("+", 0), ("--2", 0), ("1e3", 0)],
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", 2**63 - 1),
        ("-9223372036854775809", -(2**63)),
        ("9" * 100_000, 2**63 - 1),
        ("0" * 100_000 + "7", 7),
    ],
)
def test_numbers_are_read_as_go_does(text: str, number: int) -> None:
    assert to_int(text) == number


def test_bytes_that_are_no_utf8_are_refused(api: Api) -> None:
    for path in ("/tags?name=%ff&created_by=a", "/tags?name=a&created_by=%ed%a0%80"):
        answer = api.raw("POST", f"/api/v1{path}&token={api.token}")
        assert (answer.status, answer.code, answer.data) == (200, 400, {})
    assert api.raw("GET", f"/api/v1/tags?name=%ff&token={api.token}").code == 400
    assert api.raw("GET", "/auth?username=%ff&password=x").code == 400
    assert api.raw("GET", "/api/v1/tags?token=%ff").code == 20001
    assert api.raw("GET", f"/api/v1/tags?page=%ff&state=%ff&token={api.token}").code == 200
    assert api.tags() == []


def test_names_of_parameters_are_case_sensitive(sqlite: Api) -> None:
    answer = sqlite.raw("GET", f"/api/v1/tags?Token={quote(sqlite.token)}")
    assert (answer.status, answer.code, answer.data) == (401, 400, None)
