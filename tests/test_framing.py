"""Where bodies and responses end, and whether the connection goes on, over real sockets.

Names carry the rows (B, R, A) of the specification.
"""

from __future__ import annotations

import typing as t

import pytest
from conftest import Running
from talk import TEXT, Headers, answer, ask, is_reused, raw, request

Start = t.Callable[..., Running]


# Bodies that the application does not read


@pytest.mark.parametrize("headers", ["Connection: close\r\n", "Expect: 100-continue\r\n"])
def test_B12_B17_a_withheld_body_is_not_waited_for(headers: str, running: Start) -> None:
    with running(answer([b"early"])).connect() as client:
        client.send(request("POST", headers=headers + "Content-Length: 1000\r\n"))
        _, fields, body = client.response()
        assert (fields["connection"], body) == ("close", b"early")
        assert client.is_closed(1)


def test_B20_a_client_that_sends_no_more_gets_its_answer(running: Start) -> None:
    def app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        start_response("200 OK", TEXT)
        for _ in range(3):
            yield b"x"

    assert raw(running(app), request()).endswith(b"1\r\nx\r\n" * 3 + b"0\r\n\r\n")


@pytest.mark.parametrize(("size", "is_kept"), [(262143, True), (262144, True), (262145, False)])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_B9_B11_an_unread_body_is_drained_up_to_256_kib(
    size: int, is_kept: bool, is_chunked: bool, running: Start
) -> None:
    framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {size}"
    body = b"x" * size
    if is_chunked:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    with running(answer([b"early"])).connect() as client:
        client.send(request("POST", headers=framing + "\r\n"))
        _, headers, _ = client.response()
        # Of a chunked body nobody knows the size when the head is made.
        assert ("connection" in headers) is not (is_kept or is_chunked)
        client.send(body)
        assert is_reused(client) is is_kept


def test_B14_A4_a_drain_that_fails_ends_the_connection(running: Start) -> None:
    with running(answer([b"early"])).connect() as client:
        client.send(request("POST", headers="Transfer-Encoding: chunked\r\n"))
        assert client.response()[2] == b"early"
        client.send(b"1\r\nx\r\nxx\r\n")
        assert not is_reused(client)


def test_B14_framing_without_content_is_not_drained_for_long(running: Start) -> None:
    """A thread would be busy for as long as a client sends a body of one-byte chunks."""
    with running(answer([b"early"])).connect() as client:
        client.send(request("POST", headers="Transfer-Encoding: chunked\r\n"))
        assert client.response()[2] == b"early"
        chunk = b"1;" + b"a" * 4000 + b"\r\nx\r\n"
        client.send(chunk * 600)
        client.sock.settimeout(3)
        assert client.is_closed(3)


# The application's answer


def test_R1_one_block_has_a_length_and_more_are_chunked(running: Start) -> None:
    for blocks, length in (([], "0"), ([b""], "0"), ([b"x" * 3000], "3000"), ((b"x",), "1")):
        code, headers, body = ask(running(answer(blocks)), request())
        assert (code, headers["content-length"], body) == (200, length, b"".join(blocks))
    for many in ([b"a", b"b"], lambda: iter([b"ab"])):
        _, headers, body = ask(running(answer(many)), request())
        assert (headers.get("transfer-encoding"), body) == ("chunked", b"ab")
        assert "content-length" not in headers


def test_R2_status_line_mirrors_the_version(running: Start) -> None:
    one = running(answer([b"x"], "600 Odd But Mine"))
    assert raw(one, request(version="1.0")).startswith(b"HTTP/1.0 600 Odd But Mine\r\n")
    assert raw(one, request(version="1.9")).startswith(b"HTTP/1.1 600 Odd But Mine\r\n")


@pytest.mark.parametrize(
    "status", ["99 Low", "1000 High", "100 Continue", "101 Switching", "200", "OK", "2x0 OK", ""]
)
def test_R3_impossible_statuses_are_errors(
    status: str, running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(running(answer([b"x"], status)), request())[0] == 500
    assert f"malformed status {status!r}; expected e.g. '200 OK'" in caplog.text


def test_R4_headers_keep_their_order_and_date_is_added_once(running: Start) -> None:
    lines = [("Z", "1"), ("A", "2"), ("z", "3"), ("Set-Cookie", "a"), ("Set-Cookie", "b")]
    head = raw(running(answer([b"x"], headers=lines)), request()).partition(b"\r\n\r\n")[0]
    assert [line.split(b":")[0] for line in head.split(b"\r\n")[1:]] == [
        *[name.encode() for name, _ in lines],
        b"Date",
        b"Content-Length",
    ]
    _, headers, _ = ask(running(answer([b"x"], headers=[("date", "mine")])), request())
    assert headers["date"] == "mine"
    assert "server" not in headers


@pytest.mark.parametrize(
    "pair",
    [
        ("X", "a\r\nEvil: 1"),
        ("X", "a\nb"),
        ("X", "a\rb"),
        ("X", "a\0"),
        ("X", "\u4e2d"),
        ("X: y", "a"),
        ("X\r\n", "a"),
        ("", "a"),
    ],
)
def test_R5_headers_that_would_break_the_line_are_errors(
    pair: tuple[str, str], running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    code, headers, _ = ask(running(answer([b"x"], headers=[pair])), request())
    assert code == 500
    assert "evil" not in headers
    assert "has a character not allowed" in caplog.text


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_R6_no_body_no_length_and_the_connection_goes_on(
    status: str, version: str, running: Start
) -> None:
    app = answer([b"dropped"], status, [*TEXT, ("Content-Length", "7"), ("ETag", '"a"')])
    with running(app).connect() as client:
        for _ in range(2):
            client.send(request(version=version, headers="Connection: keep-alive\r\n"))
            code, headers, _ = client.response()
            assert code == int(status[:3])
            assert not {"content-length", "transfer-encoding"} & set(headers)
            assert ("content-type" in headers) is (code == 204)
            assert headers["etag"] == '"a"'


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize(
    ("headers", "blocks", "length"),
    [
        ([], [], None),
        ([], [b"x"], "1"),
        ([], [b"x" * 3000], "3000"),
        ([], [b"x", b"y"], None),
        ([("Content-Length", "0")], [], "0"),
        ([("Content-Length", "5")], [], "5"),
        ([("Content-Length", "5")], [b"longer than five"], "5"),
    ],
)
def test_R7_head_has_the_length_and_no_body(
    headers: Headers, blocks: list[bytes], length: str | None, version: str, running: Start
) -> None:
    with running(answer(blocks, headers=headers)).connect() as client:
        for _ in range(2):
            client.send(request("HEAD", version, "Connection: keep-alive\r\n"))
            code, fields, _ = client.response(head_only=True)
            assert (code, fields.get("content-length")) == (200, length)
            assert "transfer-encoding" not in fields


def test_R8_A4_fewer_bytes_than_announced_end_the_connection(running: Start) -> None:
    one = running(answer([b"abc"], headers=[("Content-Length", "5")]))
    with one.connect() as client:
        client.send(request() + request())
        received = client.rest()
    assert received.count(b"HTTP/1.1") == 1
    assert received.endswith(b"\r\n\r\nabc")


def test_R9_more_bytes_than_announced_are_an_error(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """500 when nothing was sent; else no byte of the block, and the end."""
    assert ask(running(answer([b"abcdef"], headers=[("Content-Length", "3")])), request())[0] == 500
    several = answer(lambda: iter([b"ab", b"cd"]), headers=[("Content-Length", "3")])
    assert raw(running(several), request()).endswith(b"\r\n\r\nab")
    full = answer(lambda: iter([b"abc", b"d"]), headers=[("Content-Length", "3")])
    assert raw(running(full), request() + request()).endswith(b"\r\n\r\nabc")
    assert caplog.text.count("\nValueError: the application sent more than its Content-L") == 3


@pytest.mark.parametrize("value", ["zz", "-1", "+1", "", "1 ", "\u00b2"])
def test_R10_malformed_lengths_are_errors(
    value: str, running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    one = running(answer([b"abc"], headers=[("Content-Length", value)]))
    code, headers, body = ask(one, request())
    assert (code, body) == (500, b"Internal Server Error\n")
    assert headers["content-length"] == str(len(body))
    assert f"malformed or repeated Content-Length {value!r}" in caplog.text


def test_R10_two_lengths_are_an_error(running: Start) -> None:
    one = running(answer([b"abc"], headers=[("Content-Length", "3"), ("content-length", "3")]))
    assert ask(one, request())[::2] == (500, b"Internal Server Error\n")


@pytest.mark.parametrize("coding", ["chunked", "identity", "gzip"])
@pytest.mark.parametrize("length", [[], [("Content-Length", "2")]])
def test_R11_framing_is_the_servers_own(coding: str, length: Headers, running: Start) -> None:
    headers = [("Transfer-Encoding", coding), *length]
    one = running(answer(lambda: iter([b"a", b"b"]), headers=headers))
    _, fields, body = ask(one, request())
    assert body == b"ab"
    assert fields.get("transfer-encoding") == (None if length else "chunked")
    assert "transfer-encoding" not in ask(one, request(version="1.0"))[1]


def test_R12_each_block_is_a_chunk(running: Start) -> None:
    blocks = [b"x", b"", b"yz", b"a" * 5000]
    received = raw(running(answer(lambda: iter(blocks))), request())
    body = received.partition(b"\r\n\r\n")[2]
    assert body == b"1\r\nx\r\n2\r\nyz\r\n1388\r\n" + b"a" * 5000 + b"\r\n0\r\n\r\n"


# Reuse of connections


@pytest.mark.parametrize("value", ["close", "foo, CLOSE", "foo\r\nConnection: close"])
def test_A1_close_in_the_request_is_the_last(value: str, running: Start) -> None:
    app = answer([b"x"], headers=[("Connection", "keep-alive")])
    with running(app).connect() as client:
        client.send(request(headers=f"Connection: {value}\r\n") + request())
        assert client.response()[1]["connection"] == "close"
        assert client.rest() == b""


def test_A2_http_10_lives_on_only_when_asked_and_framed(running: Start) -> None:
    keep = "Connection: Keep-Alive\r\n"
    with running(answer([b"x"])).connect() as client:
        _, headers, _ = client.send(request(version="1.0", headers=keep)).response()
        assert headers["connection"] == "keep-alive"
        _, headers, _ = client.send(request(version="1.0")).response()
        assert headers.get("connection") == "close"
        assert client.rest() == b""
    with running(answer(lambda: iter([b"x", b"y"]))).connect() as client:
        _, headers, body = client.send(request(version="1.0", headers=keep)).response()
        assert (headers["connection"], body) == ("close", b"xy")
        assert "transfer-encoding" not in headers


@pytest.mark.parametrize("value", ["close", "Close", "x, close"])
def test_A3_close_from_the_app_is_read_as_tokens(value: str, running: Start) -> None:
    with running(answer([b"x"], headers=[("Connection", value)])).connect() as client:
        client.send(request() + request())
        assert client.response()[1]["connection"] == "close"
        assert client.rest() == b""
