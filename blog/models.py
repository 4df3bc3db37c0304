"""The three tables and the JSON of their rows.

The table prefix is a setting, so the classes here hold columns only; `map_models` maps them to the
tables of one prefix. Columns may be NULL as in the tutorial's own SQL, and show as 0 or "" then.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Integer, MetaData, SmallInteger, String, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# The tutorial's collation, which names are compared by; blog.collation brings it to SQLite.
GENERAL_CI = "utf8mb4_general_ci"

_UNSIGNED = Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb")
_TINY = SmallInteger().with_variant(mysql.TINYINT(unsigned=True), "mysql", "mariadb")
# 65535 characters are allowed, which is more bytes than TEXT holds.
_CONTENT = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")

_TABLE = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": GENERAL_CI,
    # The id of a deleted row is not given out again, as in MySQL.
    "sqlite_autoincrement": True,
}

# Keys in the order of the JSON, with what a missing value shows as.
_TAG_KEYS = {
    "id": 0,
    "created_on": 0,
    "modified_on": 0,
    "name": "",
    "created_by": "",
    "modified_by": "",
    "state": 0,
}
_ARTICLE_KEYS = {
    "id": 0,
    "created_on": 0,
    "modified_on": 0,
    "tag_id": 0,
    "tag": None,
    "title": "",
    "desc": "",
    "content": "",
    "created_by": "",
    "modified_by": "",
    "state": 0,
}


def _number(default: int = 0) -> Any:
    return mapped_column(_UNSIGNED, server_default=str(default))


def _string(length: int) -> Any:
    return mapped_column(String(length), server_default="")


class Tag:
    id: Mapped[int] = mapped_column(_UNSIGNED, primary_key=True)
    name: Mapped[str | None] = _string(100)
    created_on: Mapped[int | None] = _number()
    created_by: Mapped[str | None] = _string(100)
    modified_on: Mapped[int | None] = _number()
    modified_by: Mapped[str | None] = _string(100)
    deleted_on: Mapped[int | None] = _number()
    state: Mapped[int | None] = mapped_column(_TINY, server_default="1")


class Article:
    id: Mapped[int] = mapped_column(_UNSIGNED, primary_key=True)
    tag_id: Mapped[int | None] = _number()
    title: Mapped[str | None] = _string(100)
    desc: Mapped[str | None] = _string(255)
    content: Mapped[str | None] = mapped_column(_CONTENT)
    created_on: Mapped[int | None] = mapped_column(Integer)
    created_by: Mapped[str | None] = _string(100)
    modified_on: Mapped[int | None] = _number()
    modified_by: Mapped[str | None] = _string(255)
    deleted_on: Mapped[int | None] = _number()
    state: Mapped[int | None] = mapped_column(_TINY, server_default="1")


class Auth:
    id: Mapped[int] = mapped_column(_UNSIGNED, primary_key=True)
    username: Mapped[str | None] = _string(50)
    # Wide enough for a hash; the tutorial's own column has 50 characters of plain text.
    password: Mapped[str | None] = _string(255)


@dataclass(frozen=True)
class Models:
    metadata: MetaData
    tag: type[Tag]
    article: type[Article]
    auth: type[Auth]


_Columns = TypeVar("_Columns")


@functools.cache
def map_models(prefix: str) -> Models:
    class Base(DeclarativeBase):
        pass

    def mapped(columns: type[_Columns]) -> type[_Columns]:
        table = prefix + columns.__name__.lower()
        attributes = {"__tablename__": table, "__table_args__": _TABLE}
        return type(columns.__name__, (columns, Base), attributes)

    return Models(Base.metadata, mapped(Tag), mapped(Article), mapped(Auth))


def tag_json(tag: Tag | None) -> dict[str, Any]:
    return _json(tag, _TAG_KEYS)


def article_json(article: Article, tag: Tag | None) -> dict[str, Any]:
    return _json(article, _ARTICLE_KEYS) | {"tag": tag_json(tag)}


def _json(row: object, keys: dict[str, Any]) -> dict[str, Any]:
    return {key: getattr(row, key, None) or zero for key, zero in keys.items()}
