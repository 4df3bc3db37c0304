from __future__ import annotations

from flask import Response

from blog import tag
from blog.answer import answer
from blog.validation import AddTag, EditTag, Id, TagFilter, validated
from pkg.e import Code

_filter, _add, _edit, _id = TagFilter(), AddTag(), EditTag(), Id()


def get_tags() -> Response:
    form = validated(_filter)
    if form is None:
        return answer(Code.INVALID_PARAMS, {})
    return answer(Code.SUCCESS, tag.get_tags(**form))


def add_tag() -> Response:
    form = validated(_add)
    return answer(Code.INVALID_PARAMS if form is None else tag.add_tag(**form), {})


def edit_tag(id: str) -> Response:
    form = validated(_edit, id=id)
    return answer(Code.INVALID_PARAMS if form is None else tag.edit_tag(**form), {})


def delete_tag(id: str) -> Response:
    form = validated(_id, id=id)
    return answer(Code.INVALID_PARAMS if form is None else tag.delete_tag(**form), {})
