from __future__ import annotations

from flask import Response

from blog.answer import answer
from blog.context import context
from blog.user import check_login
from blog.validation import Login, validated
from pkg.e import Code
from pkg.util.jwt import generate_token

_login = Login()


def get_auth() -> Response:
    form = validated(_login)
    if form is None:
        return answer(Code.INVALID_PARAMS, {})
    if not check_login(**form):
        return answer(Code.ERROR_AUTH, {})
    token = generate_token(form["username"], context().settings.app.jwt_secret)
    return answer(Code.SUCCESS, {"token": token})
