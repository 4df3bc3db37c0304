"""Articles in the database, each shown with its tag; a tag that is gone shows as zeros."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from blog.context import context
from blog.database import reading, writing
from blog.models import Article, Tag, article_json
from pkg.e import Code
from pkg.util.pagination import page_offset


def _articles() -> Select[Article, Tag]:
    models = context().models
    return select(models.article, models.tag).outerjoin(
        models.tag, models.tag.id == models.article.tag_id
    )


def _has_tag(connection: Connection, id: int) -> bool:
    tag = context().models.tag
    return connection.scalar(select(tag.id).where(tag.id == id)) is not None


def get_articles(*, state: int | None, tag_id: int | None, page: int) -> dict[str, Any]:
    article = context().models.article
    size = context().settings.app.page_size
    filters = []
    if state is not None:
        filters.append(article.state == state)
    if tag_id is not None:
        filters.append(article.tag_id == tag_id)
    rows = _articles().where(*filters).order_by(article.id)
    session = reading()
    return {
        "lists": [
            article_json(row, tag)
            for row, tag in session.execute(rows.limit(size).offset(page_offset(page, size)))
        ],
        "total": session.scalar(select(func.count(article.id)).where(*filters)),
    }


def get_article(*, id: int) -> dict[str, Any] | None:
    found = reading().execute(_articles().where(context().models.article.id == id)).first()
    return article_json(*found) if found else None


def add_article(*, tag_id: int, **values: Any) -> Code:
    with writing() as connection:
        if not _has_tag(connection, tag_id):
            return Code.ERROR_NOT_EXIST_TAG
        row = {"tag_id": tag_id, "created_on": int(time.time()), **values}
        connection.execute(insert(context().models.article).values(**row))
    return Code.SUCCESS


def edit_article(*, id: int, tag_id: int, state: int | None, **texts: str) -> Code:
    article = context().models.article
    changes: dict[str, Any] = {name: text for name, text in texts.items() if text}
    if state is not None:
        changes["state"] = state
    changes |= {"tag_id": tag_id, "modified_on": int(time.time())}
    with writing() as connection:
        # Locked: MySQL would let others delete it before the update, and newer ones of MariaDB
        # refuse to change what others have changed since it was read.
        if connection.scalar(select(article.id).where(article.id == id).with_for_update()) is None:
            return Code.ERROR_NOT_EXIST_ARTICLE
        if not _has_tag(connection, tag_id):
            return Code.ERROR_NOT_EXIST_TAG
        connection.execute(update(article).where(article.id == id).values(**changes))
    return Code.SUCCESS


def delete_article(*, id: int) -> Code:
    article = context().models.article
    with writing() as connection:
        found = connection.execute(delete(article).where(article.id == id)).rowcount
    return Code.SUCCESS if found else Code.ERROR_NOT_EXIST_ARTICLE
