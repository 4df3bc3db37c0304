"""Articles (blog.md, sections 6 and 7)."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.blog.api import Api

KEYS = (
    "id created_on modified_on tag_id tag title desc content created_by modified_by state".split()
)
NO_TAG = {
    "id": 0,
    "created_on": 0,
    "modified_on": 0,
    "name": "",
    "created_by": "",
    "modified_by": "",
    "state": 0,
}


def test_new_article(api: Api) -> None:
    tag_id = api.add_tag()
    before = int(time.time())
    id = api.add_article(tag_id, title="T", desc="D", content="C", created_by="me", state=1)
    article = api.article(id)
    assert list(article) == KEYS
    assert before <= article["created_on"] <= time.time()
    assert article["tag"] == api.tags()[0]
    expected = {"id": id, "tag_id": tag_id, "title": "T", "desc": "D", "content": "C", "state": 1}
    expected |= {"created_by": "me", "modified_by": "", "modified_on": 0}
    assert {key: article[key] for key in expected} == expected
    assert api("GET", "/articles").data == {"lists": [article], "total": 1}


def test_tag_that_is_gone_shows_as_zeros(api: Api) -> None:
    tag_id = api.add_tag()
    id = api.add_article(tag_id)
    assert api("DELETE", f"/tags/{tag_id}").code == 200
    assert api.article(id)["tag"] == NO_TAG
    assert api.article(id)["tag_id"] == tag_id
    assert api("GET", "/articles").data["lists"] == [api.article(id)]


def test_empty_columns_show_as_zeros(api: Api) -> None:
    api.sql("INSERT INTO blog_article (tag_id, title, state, created_by) VALUES (1, NULL, 0, 'x')")
    [article] = api("GET", "/articles").data["lists"]
    assert (article["title"], article["content"], article["created_on"]) == ("", "", 0)


@pytest.mark.parametrize("missing", ["tag_id", "title", "desc", "content", "created_by"])
@pytest.mark.parametrize("value", [None, "", " \u3000"])
def test_required_of_a_new_article(api: Api, missing: str, value: str | None) -> None:
    params = {"tag_id": api.add_tag(), "title": "t", "desc": "d", "content": "c", "created_by": "m"}
    del params[missing]
    if value is not None:
        params[missing] = value
    answer = api("POST", "/articles", **params)
    assert (answer.code, answer.data) == (400, {})
    assert api("GET", "/articles").data["total"] == 0


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"tag_id": 0}, 400),
        ({"tag_id": -1}, 400),
        ({"tag_id": "abc"}, 400),
        ({"tag_id": 999999999}, 10002),
        ({"tag_id": "9" * 30}, 10002),
        ({"state": ""}, 200),
        ({"state": "abc"}, 200),
        ({"state": 2}, 400),
        ({"state": -1}, 400),
        ({"title": "中" * 100, "desc": "中" * 255, "created_by": "中" * 100}, 200),
        ({"title": "a" * 101}, 400),
        ({"desc": "a" * 256}, 400),
        ({"created_by": "a" * 101}, 400),
        ({"content": "a" * 65535}, 200),
        ({"content": "a" * 65536}, 400),
    ],
)
def test_rules_of_a_new_article(api: Api, params: dict[str, Any], code: int) -> None:
    good = {"tag_id": api.add_tag(), "title": "t", "desc": "d", "content": "c", "created_by": "m"}
    answer = api("POST", "/articles", **(good | params))
    assert (answer.code, answer.data) == (code, {})
    articles = api("GET", "/articles").data["lists"]
    assert len(articles) == (code == 200)
    if articles:
        assert articles[0]["state"] == 0
        stored = good | {key: value for key, value in params.items() if key != "state"}
        assert stored == {key: articles[0][key] for key in stored}


@pytest.mark.parametrize("character", ["中", "🎉"])
def test_as_many_characters_as_allowed(sqlite: Api, mariadb_api: Api, character: str) -> None:
    mariadb_api.clear()
    for api in (sqlite, mariadb_api):
        content = character * 65535
        id = api.add_article(api.add_tag(), content=content)
        assert api.article(id)["content"] == content
        assert api("PUT", f"/articles/{id}", tag_id=1, content=content + "x").code == 400


def test_more_bytes_than_the_tutorials_column_holds(tutorial_api: Api) -> None:
    api = tutorial_api
    api.clear()
    tag_id = api.add_tag()
    id = api.add_article(tag_id, content="old")
    long = "中".encode().hex("%", 1).replace("e4", "%e4", 1) * 21846
    query = f"token={api.token}&tag_id={tag_id}&title=t&desc=d&created_by=m&modified_by=m"
    for method, path in (("POST", "/articles"), ("PUT", f"/articles/{id}")):
        answer = api.raw(method, f"/api/v1{path}?{query}&content={long}")
        assert (answer.status, answer.body) == (500, b'{"code":500,"data":null,"msg":"fail"}')
    data = api("GET", "/articles").data
    assert (data["total"], data["lists"][0]["content"]) == (1, "old")
    assert data["lists"][0]["modified_on"] == 0


@pytest.mark.parametrize("id", ["0", "-1", "abc", "+", "-" + "9" * 30])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_bad_ids(api: Api, method: str, id: str) -> None:
    answer = api(method, f"/articles/{id}", modified_by="m", tag_id=1)
    assert (answer.code, answer.data) == (400, None if method == "GET" else {})


@pytest.mark.parametrize("id", ["999999999", "9" * 30])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_ids_not_found(api: Api, method: str, id: str) -> None:
    answer = api(method, f"/articles/{id}", modified_by="m")
    assert (answer.code, answer.data) == (10003, None if method == "GET" else {})


def test_filters_and_pages(api: Api) -> None:
    tags = [api.add_tag(name) for name in ("a", "b")]
    for number in range(12):
        api.add_article(tags[0], title=f"title {number}", state=number % 2)
    last = api.add_article(tags[1], title="last")

    def found(**params: object) -> tuple[int, int]:
        data = api("GET", "/articles", **params).data
        return len(data["lists"]), data["total"]

    assert found() == found(page=1) == found(state="", tag_id="") == (10, 13)
    assert found(title="last", created_by="x") == (10, 13)
    assert found(page=2) == (3, 13)
    assert found(page=3) == (0, 13)
    assert found(page="9" * 30) == (0, 13)
    assert found(state=1) == (6, 6)
    assert found(state="abc", tag_id=tags[0]) == (6, 6)
    assert found(tag_id=tags[1]) == (1, 1)
    assert found(tag_id=999) == (0, 0)
    assert api("GET", "/articles", page=2).data["lists"][-1]["id"] == last
    for bad in ({"state": 2}, {"state": -1}, {"tag_id": 0}, {"tag_id": -1}, {"tag_id": "abc"}):
        answer = api("GET", "/articles", **bad)
        assert (answer.code, answer.data) == (400, {}), bad


def test_edit(api: Api) -> None:
    tags = [api.add_tag(name) for name in ("a", "b")]
    id = api.add_article(tags[0], title="T", desc="D", content="C", state=0)
    old = api.article(id)
    before = int(time.time())
    assert api("PUT", f"/articles/{id}", tag_id=tags[1], modified_by="you").data == {}
    new = api.article(id)
    assert before <= new["modified_on"] <= time.time()
    changed = {key for key in KEYS if old[key] != new[key]}
    assert changed == {"tag_id", "tag", "modified_on", "modified_by"}
    texts = {"title": "中" * 100, "desc": "中" * 255, "content": "x", "modified_by": "中" * 100}
    assert api("PUT", f"/articles/{id}", tag_id=tags[0], state=1, **texts).code == 200
    new = api.article(id)
    assert new["state"] == 1
    assert {key: new[key] for key in texts} == texts
    assert api("PUT", f"/articles/{id}", tag_id=tags[0], state="", **texts).code == 200
    assert api.article(id)["state"] == 1


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"modified_by": ""}, 400),
        ({"modified_by": "a" * 101}, 400),
        ({"title": "a" * 101}, 400),
        ({"desc": "a" * 256}, 400),
        ({"content": "a" * 65536}, 400),
        ({"state": "2"}, 400),
        ({"state": "-1"}, 400),
        ({"tag_id": ""}, 10002),
        ({"tag_id": "abc"}, 10002),
        ({"tag_id": "-1"}, 10002),
        ({"tag_id": "999999999"}, 10002),
    ],
)
def test_rules_of_an_edit(api: Api, params: dict[str, Any], code: int) -> None:
    tag_id = api.add_tag()
    id = api.add_article(tag_id)
    old = api.article(id)
    answer = api("PUT", f"/articles/{id}", **({"tag_id": tag_id, "modified_by": "you"} | params))
    assert (answer.code, answer.data) == (code, {})
    assert api.article(id) == old


def test_article_is_looked_for_before_its_tag(api: Api) -> None:
    assert api("PUT", "/articles/99", tag_id=99, modified_by="you").code == 10003


def test_delete(api: Api) -> None:
    id = api.add_article(api.add_tag())
    assert api("DELETE", f"/articles/{id}").data == {}
    assert api.scalar("SELECT count(*) FROM blog_article") == 0
    assert api("DELETE", f"/articles/{id}").code == 10003
