"""Heads and bodies: tables of bytes and what they are, whole and one byte at a time."""

from __future__ import annotations

import contextlib
import time

import pytest
from flask_graceful.body import body_decoder
from flask_graceful.errors import ProtocolError
from flask_graceful.http11 import HeadBuffer, HeadParser, Request

HOST = b"Host: a\r\n"


def read(data: bytes, step: int = 0) -> tuple[Request, bytes, bytes]:
    """The first request in the bytes, its body, and what follows it."""
    inbox = HeadBuffer(1 << 20)
    pieces = [data[i : i + step] for i in range(0, len(data), step)] if step else [data]
    request: Request | None = None
    decoder = None
    body = b""
    for piece in pieces:
        if request is None:
            head = inbox.take(piece)
            if head is None:
                continue
            request = HeadParser().parse(head)
            decoder = body_decoder(request)
        else:
            inbox.data += piece
        if decoder is not None and not decoder.done:
            body += decoder.decode(inbox.data)
    assert request is not None, "no complete head"
    assert decoder is None or decoder.done, "the body is not complete"
    return request, body, bytes(inbox.data)


def chunked(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + body


VALID = {
    "plain": (b"GET /a?b=c HTTP/1.1\r\n" + HOST + b"\r\n", b""),
    "unknown method": (b"get-it / HTTP/1.1\r\n" + HOST + b"\r\n", b""),
    "version 1.9": (b"GET / HTTP/1.9\r\n" + HOST + b"\r\n", b""),
    "version 1.0 without Host": (b"GET / HTTP/1.0\r\n\r\n", b""),
    "empty Host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", b""),
    "IPv6 Host": (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b""),
    "empty line before": (b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n", b""),
    "bytes above 127": (b"GET /\xe4 HTTP/1.1\r\n" + HOST + b"X: \xe4\r\n\r\n", b""),
    "length": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc", b"abc"),
    "length 03": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 03\r\n\r\nabc", b"abc"),
    "chunked": (chunked(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), b"abcde"),
    "chunked in capitals": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n",
        b"",
    ),
    "chunk extension": (chunked(b'3;a=b;c="d \\" e"\r\nabc\r\n0;x\r\n\r\n'), b"abc"),
    "trailers": (chunked(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n"), b"abc"),
    "CRLF in a chunk": (chunked(b"4\r\n\r\n\r\n\r\n0\r\n\r\n"), b"\r\n\r\n"),
}


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("name", VALID)
def test_valid_requests_are_read_and_leave_the_next_one_alone(name: str, step: int) -> None:
    data, expected = VALID[name]
    request, body, rest = read(data + b"GET /next", step)
    assert body == expected
    assert rest == b"GET /next"
    assert request.version == (0 if b"HTTP/1.0" in data else 1)


def test_P15_two_empty_lines_are_skipped_however_they_come() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    for step in (0, 1, 2):
        assert read(b"\r\n\r\n" + head, step)[2] == b""
        with pytest.raises(ProtocolError):
            read(b"\r\n\r\n\r\n" + head, step)


def test_repeated_fields_cost_no_more_than_others() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:b\r\n" * 200_000 + b"\r\n"
    began = time.process_time()
    assert HeadParser().parse(head).fields["HTTP_A"].startswith("b, b, b")
    assert time.process_time() - began < 1


INVALID = {
    "P3 two blanks": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "P3 tab": (b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "P3 trailing blank": (b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
    "P3 HTTP/0.9": (b"GET /\r\n" + HOST + b"\r\n", 400),
    "P4 HTTP/2.0": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "P4 lower case": (b"GET / http/1.1\r\n" + HOST + b"\r\n", 400),
    "P4 HTTP/11.0": (b"GET / HTTP/11.0\r\n" + HOST + b"\r\n", 400),
    "P6 no token": (b"GE(T / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "P7 relative": (b"GET foo HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "P7 bad escape": (b"GET /%zz HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "P7 control byte": (b"GET /\x01 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "P9 no Host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "P10 two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "P10 Host with a brace": (b"GET / HTTP/1.1\r\nHost: {\r\n\r\n", 400),
    "P10 Host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "P10 Host with user info": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "P11 blank before colon": (b"GET / HTTP/1.1\r\n" + HOST + b"X : v\r\n\r\n", 400),
    "P11 NUL in a value": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n", 400),
    "P11 DEL in a value": (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x7fb\r\n\r\n", 400),
    "P12 no colon": (b"GET / HTTP/1.1\r\n" + HOST + b"X\r\n\r\n", 400),
    "P13 folded line": (b"GET / HTTP/1.1\r\n" + HOST + b"X: v\r\n w\r\n\r\n", 400),
    "P13 bare LF": (b"GET / HTTP/1.1\r\n" + HOST + b"X: v\nY: w\r\n\r\n", 400),
    "P13 bare CR": (b"GET / HTTP/1.1\r\n" + HOST + b"X: v\rw\r\n\r\n", 400),
    "P13 empty name": (b"GET / HTTP/1.1\r\n" + HOST + b": v\r\n\r\n", 400),
    "B2 +3": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n\r\nabc", 400),
    "B2 1_0": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1_0\r\n\r\nabc", 400),
    "B2 2^63": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 9223372036854775808\r\n\r\n",
        400,
    ),
    "B2 twice": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n" * 2 + b"\r\nabc", 400),
    "B3 gzip": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "B3 list": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "B4 both": (
        b"POST / HTTP/1.1\r\n"
        + HOST
        + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "B4 coding in 1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "B5 no size": (chunked(b"\r\nabc\r\n0\r\n\r\n"), 400),
    "B5 sign": (chunked(b"+3\r\nabc\r\n0\r\n\r\n"), 400),
    "B5 17 digits": (chunked(b"00000000000000003\r\nabc\r\n0\r\n\r\n"), 400),
    "B5 LF after size": (chunked(b"3\nabc\r\n0\r\n\r\n"), 400),
    "B5 LF after data": (chunked(b"3\r\nabc\n0\r\n\r\n"), 400),
    "B5 longer than its size": (chunked(b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    "B5 CR in an extension": (chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n"), 400),
    "B5 LF in a quoted extension": (chunked(b'3;a="\n"\r\nabc\r\n0\r\n\r\n'), 400),
    "B5 endless extension": (chunked(b"3;" + b"a" * 5000 + b"\r\nabc\r\n0\r\n\r\n"), 400),
    "B6 long trailer": (chunked(b"0\r\nX: " + b"a" * 5000 + b"\r\n\r\n"), 400),
    "B6 no trailer": (chunked(b"0\r\nGET / HTTP/1.1\r\n\r\n"), 400),
    "B19 expectation": (b"GET / HTTP/1.1\r\n" + HOST + b"Expect: foo\r\n\r\n", 417),
}


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("name", INVALID)
def test_what_could_be_read_in_two_ways_is_refused(name: str, step: int) -> None:
    data, status = INVALID[name]
    with pytest.raises(ProtocolError) as caught:
        read(data, step)
    assert caught.value.status.startswith(str(status))


def test_a_parser_carries_nothing_from_one_head_to_the_next() -> None:
    parser = HeadParser()
    plain = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    heads = [data for data, _ in VALID.values()] + [data for data, _ in INVALID.values()]
    heads += [plain[:-2] + line + b"\r\n\r\n" for line in (b"Connection: close", b"Upgrade: x")]
    heads += [plain[:-2] + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"]
    for head in heads:
        with contextlib.suppress(ProtocolError):
            parser.parse(head.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        assert parser.parse(plain).fields == {"HTTP_HOST": "a"}


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_P15_empty_lines_are_counted_for_each_request_anew(step: int) -> None:
    data = (b"\r\n\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n") * 3
    inbox = HeadBuffer(1000)
    heads = 0
    for i in range(0, len(data), step):
        piece = data[i : i + step]
        while (head := inbox.take(piece)) is not None:
            assert head.startswith(b"GET")
            heads += 1
            piece = b""
    assert heads == 3
    assert inbox.take(b"\r\n" + data[4 : len(data) // 3]) == data[4 : len(data) // 3]


def test_fields_have_cgi_names_and_join_in_order() -> None:
    request, _, _ = read(
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Y: 1 \r\nX_Y: evil\r\nx-y:\t2\r\n"
        b"Cookie: a=b\r\nCookie: c=d\r\nContent-Type: text/plain\r\n\r\n"
    )
    assert request.fields == {
        "HTTP_HOST": "a",
        "HTTP_X_Y": "1, 2",
        "HTTP_COOKIE": "a=b; c=d",
        "CONTENT_TYPE": "text/plain",
    }


def test_P8_host_of_an_absolute_target_wins() -> None:
    request, _, _ = read(b"GET http://x.y/p?q HTTP/1.1\r\nHost: other\r\n\r\n")
    assert (request.fields["HTTP_HOST"], request.path, request.query) == ("x.y", "/p", "q")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"HTTP/1.1\r\nHost: a", True),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: foo, CLOSE", False),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: foo\r\nConnection: close", False),
        (b"HTTP/1.0", False),
        (b"HTTP/1.0\r\nConnection: Keep-Alive", True),
    ],
)
def test_A1_keep_alive_verdict(line: bytes, expected: bool) -> None:
    assert read(b"GET / " + line + b"\r\n\r\n")[0].keep_alive is expected


@pytest.mark.parametrize("step", [0, 1])
def test_P1_head_limit_is_exact(step: int) -> None:
    def head(size: int) -> bytes:
        start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
        return start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"

    def take(size: int) -> bytes | None:
        inbox = HeadBuffer(1000)
        data = head(size)
        found = None
        for i in range(0, size, step or size):
            found = inbox.take(data[i : i + (step or size)])
        return found

    assert take(5096) == head(5096)
    with pytest.raises(ProtocolError) as caught:
        take(5097)
    assert caught.value.status == "431 Request Header Fields Too Large"
