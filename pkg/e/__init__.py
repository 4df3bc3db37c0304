"""The codes that an answer carries, and the message that belongs to each."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    SUCCESS = 200
    INVALID_PARAMS = 400
    ERROR = 500
    ERROR_EXIST_TAG = 10001
    ERROR_NOT_EXIST_TAG = 10002
    ERROR_NOT_EXIST_ARTICLE = 10003
    ERROR_AUTH_CHECK_TOKEN_FAIL = 20001
    ERROR_AUTH_CHECK_TOKEN_TIMEOUT = 20002
    ERROR_AUTH_TOKEN = 20003
    ERROR_AUTH = 20004


MESSAGES = {
    Code.SUCCESS: "ok",
    Code.INVALID_PARAMS: "请求参数错误",
    Code.ERROR: "fail",
    Code.ERROR_EXIST_TAG: "已存在该标签名称",
    Code.ERROR_NOT_EXIST_TAG: "该标签不存在",
    Code.ERROR_NOT_EXIST_ARTICLE: "该文章不存在",
    Code.ERROR_AUTH_CHECK_TOKEN_FAIL: "Token鉴权失败",
    Code.ERROR_AUTH_CHECK_TOKEN_TIMEOUT: "Token已超时",
    Code.ERROR_AUTH_TOKEN: "Token生成失败",
    Code.ERROR_AUTH: "Token错误",
}
