"""What tests of requests and answers share: an application that always answers the same, requests
as bytes, and how to get the answer."""

from __future__ import annotations

import typing as t

from conftest import Client, Running

Headers = list[tuple[str, str]]

TEXT: Headers = [("Content-Type", "text/plain")]


def answer(blocks: t.Any, status: str = "200 OK", headers: Headers = TEXT) -> t.Any:
    """An application that always answers the same."""

    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        start_response(status, list(headers))
        return blocks() if callable(blocks) else blocks

    return app


def request(
    method: str = "GET", version: str = "1.1", headers: str = "", body: bytes = b""
) -> bytes:
    return f"{method} / HTTP/{version}\r\nHost: a\r\n{headers}\r\n".encode() + body


def ask(one: Running, data: bytes, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
    """The answer on a connection of its own."""
    with one.connect() as client:
        return client.send(data).response(head_only)


def raw(one: Running, data: bytes) -> bytes:
    """All bytes of the answer, to the connection's end."""
    with one.connect() as client:
        client.send(data).sock.shutdown(1)
        return client.rest()


def is_reused(client: Client) -> bool:
    """Does the connection carry another request?"""
    try:
        return client.get()[0] in (200, 204, 304)
    except (ConnectionError, OSError):
        return False
