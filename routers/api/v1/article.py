from __future__ import annotations

from flask import Response

from blog import article
from blog.answer import answer
from blog.validation import AddArticle, ArticleFilter, EditArticle, Id, validated
from pkg.e import Code

_filter, _add, _edit, _id = ArticleFilter(), AddArticle(), EditArticle(), Id()


def get_articles() -> Response:
    form = validated(_filter)
    if form is None:
        return answer(Code.INVALID_PARAMS, {})
    return answer(Code.SUCCESS, article.get_articles(**form))


def get_article(id: str) -> Response:
    form = validated(_id, id=id)
    if form is None:
        return answer(Code.INVALID_PARAMS, None)
    found = article.get_article(**form)
    return answer(Code.SUCCESS if found else Code.ERROR_NOT_EXIST_ARTICLE, found)


def add_article() -> Response:
    form = validated(_add)
    return answer(Code.INVALID_PARAMS if form is None else article.add_article(**form), {})


def edit_article(id: str) -> Response:
    form = validated(_edit, id=id)
    return answer(Code.INVALID_PARAMS if form is None else article.edit_article(**form), {})


def delete_article(id: str) -> Response:
    form = validated(_id, id=id)
    return answer(Code.INVALID_PARAMS if form is None else article.delete_article(**form), {})
