"""Bad input and what it gets, over real sockets: one table.

Behind each bad request comes a good one for `/hidden`. No application may ever see it, since where
a bad request ends is anybody's guess (request smuggling).
"""

from __future__ import annotations

import re
import typing as t

import pytest
from conftest import Client, Running, wait_until

Start = t.Callable[..., Running]

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
HOST = b"Host: a\r\n"


def get(line: bytes, fields: bytes = HOST) -> bytes:
    return line + b"\r\n" + fields + b"\r\n"


def field(line: bytes) -> bytes:
    return get(b"GET / HTTP/1.1", HOST + line + b"\r\n")


def post(*lines: bytes) -> bytes:
    """A request with a body of 3 bytes, whose framing is what the lines say."""
    return get(b"POST / HTTP/1.1", HOST + b"".join(line + b"\r\n" for line in lines)) + b"abc"


def chunks(body: bytes) -> bytes:
    return get(b"POST / HTTP/1.1", HOST + b"Transfer-Encoding: chunked\r\n") + body


HEADS = {
    # The request line (rows P3, P4, P6, P7).
    "P3 garbage": (get(b"garbage"), 400),
    "P3 no version": (get(b"GET /"), 400),
    "P3 two blanks": (get(b"GET  / HTTP/1.1"), 400),
    "P3 blank at the end": (get(b"GET / HTTP/1.1 "), 400),
    "P3 blank before": (get(b" GET / HTTP/1.1"), 400),
    "P3 tab": (get(b"GET\t/ HTTP/1.1"), 400),
    "P3 target with a blank": (get(b"GET /a b HTTP/1.1"), 400),
    "P4 version 2.0": (get(b"GET / HTTP/2.0"), 505),
    "P4 version 0.9": (get(b"GET / HTTP/0.9"), 505),
    "P4 version 1.10": (get(b"GET / HTTP/1.10"), 400),
    "P4 lower case": (get(b"GET / http/1.1"), 400),
    "P5 preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "P6 no token": (get(b"GE(T / HTTP/1.1"), 400),
    "P6 no method": (get(b" / HTTP/1.1"), 400),
    "P7 relative": (get(b"GET foo HTTP/1.1"), 400),
    "P7 half an escape": (get(b"GET /%a HTTP/1.1"), 400),
    "P7 NUL": (get(b"GET /\0 HTTP/1.1"), 400),
    "P7 DEL": (get(b"GET /\x7f HTTP/1.1"), 400),
    "P7 lone CR": (get(b"GET /\r HTTP/1.1"), 400),
    "P7 asterisk for GET": (get(b"GET * HTTP/1.1"), 400),
    "P7 host and port for GET": (get(b"GET a:80 HTTP/1.1"), 400),
    "P7 CONNECT": (get(b"CONNECT a:80 HTTP/1.1"), 501),
    "P7 CONNECT without Host": (get(b"CONNECT /a HTTP/1.1", b""), 501),
    "P8 absolute without host": (get(b"GET http:///p HTTP/1.1"), 400),
    "P8 absolute without Host": (get(b"GET http://a/p HTTP/1.1", b""), 400),
    "P8 absolute with user info": (get(b"GET http://u:p@a/ HTTP/1.1"), 400),
    "P8 absolute with a bad host": (get(b"GET http://a{/ HTTP/1.1"), 400),
    # Host (rows P9, P10).
    "P9 no Host": (get(b"GET / HTTP/1.1", b""), 400),
    "P10 two Hosts": (field(b"Host: a"), 400),
    "P10 two Hosts in 1.0": (get(b"GET / HTTP/1.0", HOST + HOST), 400),
    "P10 brace": (get(b"GET / HTTP/1.1", b"Host: {\r\n"), 400),
    "P10 path": (get(b"GET / HTTP/1.1", b"Host: a/b\r\n"), 400),
    "P10 user info": (get(b"GET / HTTP/1.1", b"Host: u@a\r\n"), 400),
    "P10 blank": (get(b"GET / HTTP/1.1", b"Host: a b\r\n"), 400),
    "P10 list": (get(b"GET / HTTP/1.1", b"Host: a, b@c\r\n"), 400),
    "P10 byte above 127": (get(b"GET / HTTP/1.1", b"Host: \xe4\r\n"), 400),
    "P10 no number as port": (get(b"GET / HTTP/1.1", b"Host: a:b\r\n"), 400),
    # Fields (rows P11 to P13).
    "P11 blank before the colon": (field(b"X : v"), 400),
    "P11 tab before the colon": (field(b"X\t: v"), 400),
    "P11 blank before a colon that frames": (post(b"Content-Length : 3"), 400),
    "P11 blank in a name": (field(b"X Y: v"), 400),
    "P11 NUL in a name": (field(b"X\0: v"), 400),
    "P11 byte above 127 in a name": (field(b"X\xe4: v"), 400),
    "P11 NUL in a value": (field(b"X: a\0b"), 400),
    "P11 BEL in a value": (field(b"X: a\x07b"), 400),
    "P11 DEL in a value": (field(b"X: a\x7fb"), 400),
    "P11 CR in a value": (field(b"X: a\rb"), 400),
    "P12 no colon": (field(b"X"), 400),
    "P12 first line begins with a blank": (get(b"GET / HTTP/1.1", b" X: v\r\n" + HOST), 400),
    "P13 empty name": (field(b": v"), 400),
    "P13 folded": (field(b"X: v\r\n w"), 400),
    "P13 folded with a tab": (field(b"X: v\r\n\tw"), 400),
    "P13 folded to nothing": (field(b"X:\r\n "), 400),
    "P13 fold after Transfer-Encoding": (post(b"Transfer-Encoding:\r\n chunked"), 400),
    "P13 bare LF between fields": (field(b"X: v\nY: w"), 400),
    "P13 bare LF at the line's end": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "P13 bare LF as the empty line": (b"GET / HTTP/1.1\r\nHost: a\r\n\n\r\n\r\n", 400),
    "P13 lone CR as the empty line": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n\r\n", 400),
    "P14 two Content-Types": (field(b"Content-Type: a/b\r\nContent-Type: c/d"), 400),
    "P15 three empty lines before": (b"\r\n\r\n\r\n" + get(b"GET / HTTP/1.1"), 400),
    "P15 bare LF before": (b"\n" + get(b"GET / HTTP/1.1"), 400),
    # Framing (rows B2 to B4).
    "B2 sign": (post(b"Content-Length: +3"), 400),
    "B2 minus": (post(b"Content-Length: -3"), 400),
    "B2 hexadecimal": (post(b"Content-Length: 0x3"), 400),
    "B2 underscore": (post(b"Content-Length: 1_0"), 400),
    "B2 blank": (post(b"Content-Length: 3 3"), 400),
    "B2 list": (post(b"Content-Length: 3, 3"), 400),
    "B2 empty": (post(b"Content-Length:"), 400),
    "B2 2^63": (post(b"Content-Length: 9223372036854775808"), 400),
    "B2 twice the same": (post(b"Content-Length: 3", b"Content-Length: 3"), 400),
    "B2 twice": (post(b"Content-Length: 3", b"Content-Length: 5"), 400),
    "B3 gzip": (post(b"Transfer-Encoding: gzip"), 501),
    "B3 identity": (post(b"Transfer-Encoding: identity"), 501),
    "B3 empty": (post(b"Transfer-Encoding:"), 400),
    "B3 list": (post(b"Transfer-Encoding: gzip, chunked"), 501),
    "B3 chunked twice in a list": (post(b"Transfer-Encoding: chunked, chunked"), 400),
    "B3 chunked is not last": (post(b"Transfer-Encoding: chunked, gzip"), 400),
    "B3 quoted": (post(b'Transfer-Encoding: "chunked"'), 501),
    "B3 parameter": (post(b"Transfer-Encoding: chunked;a=b"), 501),
    "B3 two fields": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"), 400),
    "B3 vertical tab": (post(b"Transfer-Encoding: \x0bchunked"), 400),
    "B4 both": (post(b"Content-Length: 3", b"Transfer-Encoding: chunked"), 400),
    "B4 both, coding first": (post(b"Transfer-Encoding: chunked", b"Content-Length: 3"), 400),
    "B4 both, coding unknown": (post(b"Content-Length: 3", b"Transfer-Encoding: x"), 400),
    "B4 coding in 1.0": (
        get(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
        400,
    ),
    "B6 forbidden name announced": (
        post(b"Transfer-Encoding: chunked", b"Trailer: X, Content-Length"),
        400,
    ),
    "B19 expectation": (field(b"Expect: foo"), 417),
}

# The application begins, and its read fails.
BODIES = {
    "B5 no number": chunks(b"xx\r\nabc\r\n0\r\n\r\n"),
    "B5 empty size": chunks(b"\r\nabc\r\n0\r\n\r\n"),
    "B5 sign": chunks(b"+3\r\nabc\r\n0\r\n\r\n"),
    "B5 minus": chunks(b"-3\r\nabc\r\n0\r\n\r\n"),
    "B5 0x": chunks(b"0x3\r\nabc\r\n0\r\n\r\n"),
    "B5 underscore": chunks(b"1_0\r\nabc\r\n0\r\n\r\n"),
    "B5 17 digits": chunks(b"00000000000000003\r\nabc\r\n0\r\n\r\n"),
    "B5 blank before": chunks(b" 3\r\nabc\r\n0\r\n\r\n"),
    "B5 blank after": chunks(b"3 \r\nabc\r\n0\r\n\r\n"),
    "B5 blank after an extension": chunks(b"3;a \r\nabc\r\n0\r\n\r\n"),
    "B5 extension without a name": chunks(b"3;\r\nabc\r\n0\r\n\r\n"),
    "B5 unclosed quotes": chunks(b'3;a="b\r\nabc\r\n0\r\n\r\n'),
    "B5 LF in a quoted extension": chunks(b'3;a="\n"\r\nabc\r\n0\r\n\r\n'),
    "B5 quoted CRLF": chunks(b'3;a="\r\n"\r\nabc\r\n0\r\n\r\n'),
    "B5 CR in an extension": chunks(b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
    "B5 LF after the size": chunks(b"3\nabc\r\n0\r\n\r\n"),
    "B5 CR after the size": chunks(b"3\rabc\r\n0\r\n\r\n"),
    "B5 two CRs after the size": chunks(b"3\r\r\nabc\r\n0\r\n\r\n"),
    "B5 LF after the content": chunks(b"3\r\nabc\n0\r\n\r\n"),
    "B5 CR after the content": chunks(b"3\r\nabc\r0\r\n\r\n"),
    "B5 nothing after the content": chunks(b"3\r\nabc0\r\n\r\n"),
    "B5 longer than its size": chunks(b"3\r\nabcd\r\n0\r\n\r\n"),
    "B5 endless extension": chunks(b"3;" + b"a" * 5000 + b"\r\nabc\r\n0\r\n\r\n"),
    "B6 long trailer": chunks(b"0\r\nX: " + b"a" * 5000 + b"\r\n\r\n"),
    "B6 many trailers": chunks(b"0\r\n" + b"X: a\r\n" * 1000 + b"\r\n"),
    "B6 a request as trailer": chunks(b"0\r\nGET / HTTP/1.1\r\n\r\n"),
    "B6 folded trailer": chunks(b"0\r\nX: a\r\n b\r\n\r\n"),
    "B6 LF in a trailer": chunks(b"0\r\nX: a\nY: b\r\n\r\n"),
    "B6 LF as the last line": chunks(b"0\r\n\nX: a\r\n\r\n"),
    "B6 blank before the colon of a trailer": chunks(b"0\r\nX : a\r\n\r\n"),
    "B6 Content-Length as trailer": chunks(b"0\r\nContent-Length: 3\r\n\r\n"),
    "B6 Transfer-Encoding as trailer": chunks(b"0\r\ntransfer-encoding: chunked\r\n\r\n"),
    "B6 Host as trailer": chunks(b"0\r\nHost: b\r\n\r\n"),
}


# More than the socket takes at once: the connection has to live on to send the rest.
PATIENT_ANSWER = b"never mind" * 800_000


class Reader:
    """An application that reads its input to the end, and notes who was there."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.read: list[bytes] = []
        self.errors: list[BaseException] = []

    def __call__(self, environ: t.Any, start_response: t.Any) -> list[bytes]:
        self.begun.append(environ["PATH_INFO"])
        try:
            self.read.append(environ["wsgi.input"].read())
        except OSError as error:
            self.errors.append(error)
            if environ["PATH_INFO"] == "/patient":
                start_response("200 OK", [])
                return [PATIENT_ANSWER]
            raise
        start_response("200 OK", [])
        return [b"read"]


def codes_in(data: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3}) ", data)]


def everything(client: Client) -> bytes:
    """All that comes until the end, which may be a reset once the answer was read."""
    try:
        return client.rest()
    except ConnectionResetError:
        return client.buffer


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.mark.parametrize("name", HEADS)
def test_a_bad_head_is_refused_and_ends_its_connection(
    name: str, bad_heads: tuple[Running, Reader], caplog: pytest.LogCaptureFixture
) -> None:
    """And nobody is told: clients do what they like (row P18)."""
    one, reader = bad_heads
    data, status = HEADS[name]
    with one.connect() as client:
        received = everything(client.send(data + HIDDEN))
    assert codes_in(received) == [status]
    assert b"\r\nConnection: close\r\n" in received
    assert reader.begun == []
    assert caplog.text == ""


@pytest.mark.parametrize("name", BODIES)
def test_B7_a_bad_body_is_an_error_to_the_app_and_400_to_the_client(
    name: str, running: Start, reader: Reader
) -> None:
    with running(reader).connect() as client:
        received = everything(client.send(BODIES[name] + HIDDEN))
    assert codes_in(received) == [400]
    assert b"the request's body" not in received
    assert b"\r\nConnection: close\r\n" in received
    assert (reader.begun, reader.read) == (["/"], [])
    assert "the request's body is malformed" in str(reader.errors[0])


@pytest.fixture(scope="module")
def bad_heads() -> t.Iterator[tuple[Running, Reader]]:
    """One server for all bad heads: none of them may trouble it."""
    reader = Reader()
    one = Running(reader)
    yield one, reader
    one.server.close()
    one.join()


def test_P1_a_head_over_the_limit_is_431(running: Start, reader: Reader) -> None:
    with running(reader, max_header_bytes=1000).connect() as client:
        data = field(b"X: " + b"a" * 5097)
        received = everything(client.send(data + HIDDEN))
    assert codes_in(received) == [431]
    assert reader.begun == []


def test_P1_a_head_without_an_end_is_431(running: Start, reader: Reader) -> None:
    with running(reader, max_header_bytes=1000).connect() as client:
        received = everything(client.send(b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 1000))
    assert codes_in(received) == [431]


@pytest.mark.parametrize("path", [b"/", b"/patient"])
@pytest.mark.parametrize("framing", [b"Content-Length: 10\r\n\r\nabc", b"3\r\nab"])
def test_B7_a_body_that_ends_early_is_an_error_to_the_app(
    path: bytes, framing: bytes, running: Start, reader: Reader
) -> None:
    """Silence to the client, unless the app has something to say to it (row B7, TM13)."""
    if not framing.startswith(b"Content"):
        framing = b"Transfer-Encoding: chunked\r\n\r\n" + framing
    with running(reader).connect() as client:
        client.send(b"POST %b HTTP/1.1\r\nHost: a\r\n%b" % (path, framing))
        client.sock.shutdown(1)
        received = client.rest()
    assert codes_in(received) == ([200] if path == b"/patient" else [])
    assert reader.read == []
    assert "the client closed the connection" in str(reader.errors[0])


def test_B7_after_a_bad_chunk_the_app_may_answer_and_reads_no_further(running: Start) -> None:
    errors: list[str] = []

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        for _ in range(2):
            try:
                environ["wsgi.input"].read(2)
                environ["wsgi.input"].read()
            except OSError as error:
                errors.append(str(error))
        start_response("200 OK", [])
        return [b"never mind"]

    with running(app).connect() as client:
        # Read on after the bad line, the framing would make sense again.
        client.send(chunks(b"3\r\nabc\r\nxx\r\n3\r\ndef\r\n0\r\n\r\n") + HIDDEN)
        code, headers, body = client.response()
        assert (code, headers["connection"], body) == (200, "close", b"never mind")
        assert client.rest() == b""
    assert errors == ["the request's body is malformed: malformed chunk size"] * 2


def test_TM6_after_a_timeout_the_app_may_answer(running: Start, reader: Reader) -> None:
    with running(reader, read_timeout=0.3).connect() as client:
        client.send(b"POST /patient HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        code, headers, body = client.response()
        assert (code, headers["connection"], len(body)) == (200, "close", len(PATIENT_ANSWER))
        client.send(b"defghij" + HIDDEN)
        assert everything(client) == b""
    assert reader.begun == ["/patient"]
    assert "read_timeout" in str(reader.errors[0])


def test_B16_a_body_after_a_refused_100_continue_is_no_request(running: Start) -> None:
    seen: list[str] = []

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        seen.append(environ["PATH_INFO"])
        start_response("403 Forbidden", [])
        return [b"no"]

    with running(app).connect() as client:
        client.send(post(b"Content-Length: %d" % len(HIDDEN), b"Expect: 100-continue")[:-3])
        code, headers, body = client.response()
        assert (code, headers["connection"], body) == (403, "close", b"no")
        client.send(HIDDEN)
        assert everything(client) == b""
    assert seen == ["/"]


def test_B7_flask_answers_400_to_a_bad_body_and_logs_no_traceback(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    flask = pytest.importorskip("flask")
    app = flask.Flask(__name__)

    @app.post("/")
    def echo() -> t.Any:
        return flask.request.get_data()

    @app.post("/form")
    def form() -> t.Any:
        return dict(flask.request.form)

    one = running(app)
    bad = b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxx\r\n"
    kind = b"Content-Type: application/x-www-form-urlencoded\r\n"
    for head in (b"POST / HTTP/1.1\r\n", b"POST /form HTTP/1.1\r\n" + kind):
        with one.connect() as client:
            code, headers, _ = client.send(head + HOST + bad).response()
            assert (code, headers["connection"]) == (400, "close")
    with one.connect() as client:
        client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nabc")
        client.sock.shutdown(1)
        assert client.response()[0] == 400
    wait_until(lambda: not one.server.connections(), "closed")
    assert caplog.text == ""
