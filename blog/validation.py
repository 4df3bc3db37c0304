"""What each request must bring, as marshmallow schemas.

Fields stand in the order in which the rules run, and so in which broken ones are logged: all of
them, not just the first. A message is what the file log shows, the parameter's name first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from blog.context import context
from blog.query import params
from pkg.util.number import to_int


class Text(fields.Field[str]):
    def __init__(self, name: str, *rules: validate.Validator) -> None:
        super().__init__(validate=rules)
        self._not_text = f"{name} 必须是UTF-8编码"

    def _deserialize(self, value: str, *_: Any, **__: Any) -> str:
        try:
            value.encode()
        except UnicodeEncodeError as err:
            raise ValidationError(self._not_text) from err
        return value


class Number(fields.Field[int]):
    """A number; with allow_none, an empty text is None and breaks no rule."""

    def _deserialize(self, value: str, *_: Any, **__: Any) -> int:
        return to_int(value)


class Required(validate.Validator):
    def __init__(self, error: str) -> None:
        self._message = error

    def __call__(self, value: str) -> str:
        if not value.strip():
            raise ValidationError(self._message)
        return value


def _required(name: str, label: str, longest: int) -> Text:
    return Text(name, Required(f"{name} {label}不能为空"), _at_most(name, label, longest))


def _optional(name: str, label: str, longest: int) -> Text:
    return Text(name, _at_most(name, label, longest))


def _at_most(name: str, label: str, longest: int) -> validate.Length:
    return validate.Length(max=longest, error=f"{name} {label}最长为{longest}字符")


def _login(name: str) -> Text:
    return Text(
        name,
        Required(f"{name}.Required Can not be empty"),
        validate.Length(max=50, error=f"{name}.MaxSize Maximum size is 50"),
    )


def _state(**options: Any) -> Number:
    return Number(validate=validate.OneOf([0, 1], error="state 状态只允许0或1"), **options)


def _positive(name: str, label: str, **options: Any) -> Number:
    return Number(validate=validate.Range(min=1, error=f"{name} {label}必须大于0"), **options)


class Login(Schema):
    username = _login("Username")
    password = _login("Password")


class Id(Schema):
    id = _positive("id", "ID")


class TagFilter(Schema):
    name = Text("name")
    state = Number(allow_none=True)
    page = Number()


class AddTag(Schema):
    name = _required("name", "名称", 100)
    created_by = _required("created_by", "创建人", 100)
    state = _state()


class EditTag(Schema):
    state = _state(allow_none=True)
    # Unlike everywhere else a negative id passes, and is not found.
    id = Number(validate=validate.NoneOf([0], error="id ID不能为空"))
    modified_by = _required("modified_by", "修改人", 100)
    name = _optional("name", "名称", 100)


class ArticleFilter(Schema):
    state = _state(allow_none=True)
    tag_id = _positive("tag_id", "标签ID", allow_none=True)
    page = Number()


class AddArticle(Schema):
    tag_id = _positive("tag_id", "标签ID")
    title = _required("title", "标题", 100)
    desc = _required("desc", "简述", 255)
    content = _required("content", "内容", 65535)
    created_by = _required("created_by", "创建人", 100)
    state = _state()


class EditArticle(Schema):
    state = _state(allow_none=True)
    id = _positive("id", "ID")
    title = _optional("title", "标题", 100)
    desc = _optional("desc", "简述", 255)
    content = _optional("content", "内容", 65535)
    modified_by = _required("modified_by", "修改人", 100)
    tag_id = Number()


def validated(schema: Schema, **path: str) -> dict[str, Any] | None:
    """The schema's values for the current request; None when a rule is broken, and logged."""
    try:
        values: dict[str, Any] = schema.load(_input(schema, params() | path))
    except ValidationError as err:
        for name in schema.fields:
            for message in err.messages_dict.get(name, []):
                context().file_log.info(message, stacklevel=2)
        return None
    return values


def _input(schema: Schema, given: Mapping[str, str]) -> dict[str, str | None]:
    """What is absent counts as empty; what is empty and may be left out is None."""
    values: dict[str, str | None] = {name: given.get(name, "") for name in schema.fields}
    for name, field in schema.fields.items():
        if field.allow_none and not values[name]:
            values[name] = None
    return values
