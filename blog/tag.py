"""Tags in the database."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import delete, func, insert, select, update

from blog.context import context
from blog.database import reading, same_text, writing
from blog.models import tag_json
from pkg.e import Code
from pkg.util.pagination import page_offset


def get_tags(*, name: str, state: int | None, page: int) -> dict[str, Any]:
    tag = context().models.tag
    size = context().settings.app.page_size
    filters = [same_text(tag.name, name)] if name else []
    if state is not None:
        filters.append(tag.state == state)
    session = reading()
    rows = select(tag).where(*filters).order_by(tag.id).limit(size).offset(page_offset(page, size))
    return {
        "lists": [tag_json(row) for row in session.scalars(rows)],
        "total": session.scalar(select(func.count(tag.id)).where(*filters)),
    }


def add_tag(*, name: str, created_by: str, state: int) -> Code:
    tag = context().models.tag
    # Under a lock, or two could find the name free at the same time.
    with writing(lock="tag") as connection:
        if connection.scalar(select(tag.id).where(same_text(tag.name, name)).limit(1)):
            return Code.ERROR_EXIST_TAG
        values = {"name": name, "created_by": created_by, "state": state}
        connection.execute(insert(tag).values(**values, created_on=int(time.time())))
    return Code.SUCCESS


def edit_tag(*, id: int, modified_by: str, name: str, state: int | None) -> Code:
    tag = context().models.tag
    changes: dict[str, Any] = {"modified_by": modified_by, "modified_on": int(time.time())}
    if name:
        changes["name"] = name
    if state is not None:
        changes["state"] = state
    with writing() as connection:
        found = connection.execute(update(tag).where(tag.id == id).values(**changes)).rowcount
    return Code.SUCCESS if found else Code.ERROR_NOT_EXIST_TAG


def delete_tag(*, id: int) -> Code:
    tag = context().models.tag
    with writing() as connection:
        found = connection.execute(delete(tag).where(tag.id == id)).rowcount
    return Code.SUCCESS if found else Code.ERROR_NOT_EXIST_TAG
