"""Tags (blog.md, sections 5 and 7)."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.blog.api import Api


def test_new_tag(api: Api) -> None:
    before = int(time.time())
    assert api("POST", "/tags", name="go", created_by="me", state=1).body == (
        b'{"code":200,"data":{},"msg":"ok"}'
    )
    answer = api("GET", "/tags")
    [tag] = answer.data["lists"]
    assert list(tag) == "id created_on modified_on name created_by modified_by state".split()
    assert before <= tag.pop("created_on") <= time.time()
    assert tag.pop("id") > 0
    assert tag == {
        "modified_on": 0,
        "name": "go",
        "created_by": "me",
        "modified_by": "",
        "state": 1,
    }


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({}, 400),
        ({"name": "", "created_by": "a"}, 400),
        ({"name": " \t\n", "created_by": "a"}, 400),
        ({"name": "\u3000\u00a0", "created_by": "a"}, 400),
        ({"name": "a"}, 400),
        ({"name": "a", "created_by": " "}, 400),
        ({"name": "中" * 100, "created_by": "中" * 100}, 200),
        ({"name": "a" * 101, "created_by": "a"}, 400),
        ({"name": "a", "created_by": "a" * 101}, 400),
        ({"name": "a", "created_by": "a", "state": "0"}, 200),
        ({"name": "a", "created_by": "a", "state": "1"}, 200),
        ({"name": "a", "created_by": "a", "state": ""}, 200),
        ({"name": "a", "created_by": "a", "state": "abc"}, 200),
        ({"name": "a", "created_by": "a", "state": "2"}, 400),
        ({"name": "a", "created_by": "a", "state": "-1"}, 400),
        ({"name": "a", "created_by": "a", "state": "9" * 30}, 400),
        ({"name": "' OR 1=1 -- %_\\", "created_by": "\"'"}, 200),
    ],
)
def test_rules_of_a_new_tag(api: Api, params: dict[str, Any], code: int) -> None:
    answer = api("POST", "/tags", **params)
    assert (answer.code, answer.data) == (code, {})
    tags = api.tags()
    assert [tag["name"] for tag in tags] == ([params["name"]] if code == 200 else [])
    if code == 200:
        assert tags[0]["state"] == int(params.get("state") == "1")


SAME = ["go", "Go", "GO", "gö", "go ", "go   ", "ĜŐ"]
OTHER = ["g", "goo", " go", "go\t", "g%", "g_", "go.", "ｇｏ", "gо"]


def test_names_compare_as_in_the_tutorial(api: Api) -> None:
    api.add_tag("Go")
    for name in SAME:
        assert api("POST", "/tags", name=name, created_by="me").code == 10001, name
        assert [tag["name"] for tag in api.tags(name=name)] == ["Go"], name
    for name in OTHER:
        assert api.tags(name=name) == [], name


@pytest.mark.parametrize(
    ("stored", "same", "other"),
    [
        ("straße", "STRASE", "strasse"),
        ("Йод", "йОД", "Иод"),
        ("ἄλφα", "ΑΛΦΑ", "βλφα"),
        ("中文", "中文", "中"),
        ("가", "가", "ᄀ"),
        ("أ", "أ", "ا"),
        ("œ", "Œ", "oe"),
    ],
)
def test_names_of_other_scripts(api: Api, stored: str, same: str, other: str) -> None:
    api.add_tag(stored)
    assert len(api.tags(name=same)) == 1
    assert api.tags(name=other) == []


def test_characters_beyond_the_first_plane(sqlite: Api, mariadb_api: Api) -> None:
    mariadb_api.clear()
    for api in (sqlite, mariadb_api):
        api.add_tag("party🎉")
        assert len(api.tags(name="PARTY🎉")) == 1
        assert api.tags(name="party🎈") == []
        api.add_tag("party🎈")


def test_what_the_tutorials_columns_cannot_hold_is_reported(tutorial_api: Api) -> None:
    api = tutorial_api
    api.clear()
    assert api.tags(name="🎉") == []
    query = f"token={api.token}&name=%F0%9F%8E%89&created_by=me"
    answer = api.raw("POST", f"/api/v1/tags?{query}")
    assert (answer.status, answer.body) == (500, b'{"code":500,"data":null,"msg":"fail"}')
    assert api.tags() == []


def test_filters(api: Api) -> None:
    ids = [api.add_tag(name, state=state) for name, state in (("a", 0), ("b", 1), ("c", 1))]

    def found(**params: object) -> list[int]:
        data = api("GET", "/tags", **params).data
        assert data["total"] == len(data["lists"])
        return [ids.index(tag["id"]) for tag in data["lists"]]

    assert found() == found(name="", state="") == [0, 1, 2]
    assert found(state=1) == [1, 2]
    assert found(state=0) == found(state="abc") == [0]
    assert found(state=2) == found(state=-1) == found(state="9" * 30) == []
    assert found(name="b") == found(name="b", state=1) == [1]
    assert found(name="b", state=0) == found(name="%") == []


def test_pages(api: Api) -> None:
    ids = [api.add_tag(f"tag {number}") for number in range(23)]

    def page(number: object) -> list[int]:
        data = api("GET", "/tags", page=number).data
        assert data["total"] == 23
        return [tag["id"] for tag in data["lists"]]

    for first in ("", "0", "-1", "abc", "1", "+1", "-" + "9" * 30):
        assert page(first) == ids[:10], first
    assert page(2) == ids[10:20]
    assert page(3) == ids[20:]
    for beyond in (4, 2**31, 2**62, 2**63, "9" * 30):
        assert page(beyond) == [], beyond


def test_edit(api: Api) -> None:
    id = api.add_tag("old", state=1)
    before = int(time.time())
    assert api("PUT", f"/tags/{id}", modified_by="you").data == {}
    [tag] = api.tags()
    assert before <= tag["modified_on"] <= time.time()
    assert (tag["name"], tag["state"], tag["modified_by"]) == ("old", 1, "you")
    # The same again changes nothing, and yet the row is there.
    assert api("PUT", f"/tags/{id}", modified_by="you").code == 200
    assert api("PUT", f"/tags/{id}", modified_by="you", name="new", state="abc").code == 200
    [tag] = api.tags()
    assert (tag["name"], tag["state"], tag["created_by"]) == ("new", 0, "me")


def test_edit_may_give_a_name_twice(api: Api) -> None:
    api.add_tag("one")
    id = api.add_tag("two")
    assert api("PUT", f"/tags/{id}", modified_by="you", name="one").code == 200
    assert [tag["name"] for tag in api.tags()] == ["one", "one"]


@pytest.mark.parametrize(
    ("id", "params", "code"),
    [
        ("-1", {"modified_by": "a"}, 10002),
        ("999999999", {"modified_by": "a"}, 10002),
        ("9" * 30, {"modified_by": "a"}, 10002),
        ("-" + "9" * 30, {"modified_by": "a"}, 10002),
        ("0", {"modified_by": "a"}, 400),
        ("abc", {"modified_by": "a"}, 400),
        ("..", {"modified_by": "a"}, 400),
        ("ID", {}, 400),
        ("ID", {"modified_by": " "}, 400),
        ("ID", {"modified_by": "中" * 100}, 200),
        ("ID", {"modified_by": "a" * 101}, 400),
        ("ID", {"modified_by": "a", "name": "中" * 100}, 200),
        ("ID", {"modified_by": "a", "name": "a" * 101}, 400),
        ("ID", {"modified_by": "a", "state": "-1"}, 400),
        ("ID", {"modified_by": "a", "state": "2"}, 400),
        ("ID", {"modified_by": "a", "state": ""}, 200),
        ("ID", {"modified_by": "a", "id": "0"}, 200),
    ],
)
def test_rules_of_an_edit(api: Api, id: str, params: dict[str, Any], code: int) -> None:
    path = id.replace("ID", str(api.add_tag("old")))
    answer = api("PUT", f"/tags/{path}", **params)
    assert (answer.code, answer.data) == (code, {})
    assert (api.tags()[0]["modified_on"] > 0) == (code == 200)


@pytest.mark.parametrize(
    ("id", "code"),
    [("-1", 400), ("0", 400), ("abc", 400), ("999999999", 10002), ("9" * 30, 10002)],
)
def test_rules_of_deletion(api: Api, id: str, code: int) -> None:
    api.add_tag()
    answer = api("DELETE", f"/tags/{id}")
    assert (answer.code, answer.data) == (code, {})
    assert len(api.tags()) == 1


def test_delete(api: Api) -> None:
    id = api.add_tag()
    assert api("DELETE", f"/tags/{id}").code == 200
    assert api.scalar("SELECT count(*) FROM blog_tag") == 0
    assert api("DELETE", f"/tags/{id}").code == 10002
    assert api.add_tag("next") > id
