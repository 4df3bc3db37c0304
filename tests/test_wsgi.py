"""WSGI (PEP 3333) over real sockets: environ, wsgi.input, start_response, and mistakes."""

from __future__ import annotations

import io
import logging
import sys
import threading
import typing as t
from wsgiref.validate import validator

import pytest
from conftest import Running, wait_until
from talk import TEXT, answer, ask, raw, request

Start = t.Callable[..., Running]


class Blocks:
    """An iterable without a length, which says when it was closed."""

    def __init__(self, *blocks: t.Any) -> None:
        self._blocks = iter(blocks)
        self.closed = threading.Event()

    def __iter__(self) -> Blocks:
        return self

    def __next__(self) -> t.Any:
        block = next(self._blocks)
        if isinstance(block, Exception):
            raise block
        return block

    def close(self) -> None:
        self.closed.set()


# Every kind of request and answer, under the standard library's validator.


def read_all(stream: t.Any) -> bytes:
    parts = []
    while part := stream.read(3):
        parts.append(part)
    return b"".join(parts)


def write_app(environ: t.Any, start_response: t.Any) -> list[bytes]:
    write = start_response("200 OK", list(TEXT))
    write(b"written ")
    write(read_all(environ["wsgi.input"]))
    return [b"."]


def echo_app(environ: t.Any, start_response: t.Any) -> list[bytes]:
    body = read_all(environ["wsgi.input"])
    start_response("200 OK", [*TEXT, ("Content-Length", str(len(body)))])
    return [body]


def stream_app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
    start_response("200 OK", list(TEXT))
    for line in environ["wsgi.input"]:
        yield b""
        yield line


def late_app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
    """An application that fails, notices before anything was sent, and answers otherwise."""
    start_response("200 OK", list(TEXT))
    try:
        raise KeyError("x")
    except KeyError:
        start_response("503 Not Now", list(TEXT), sys.exc_info())
    yield b"later"


APPS: dict[str, tuple[t.Any, int, bytes]] = {
    "echo": (echo_app, 200, b"a\nb"),
    "write": (write_app, 200, b"written a\nb."),
    "stream": (stream_app, 200, b"a\nb"),
    "exc_info": (late_app, 503, b"later"),
    "list": (answer([b"1", b"2"]), 200, b"12"),
    "nothing": (answer([]), 200, b""),
    "204": (answer([], "204 No Content", []), 204, b""),
    "304": (answer([], "304 Not Modified", [("ETag", '"a"')]), 304, b""),
}
BODY = b"a\nb"
REQUESTS = {
    "length": request("POST", headers="Content-Length: 3\r\n", body=BODY),
    "chunked": request(
        "POST",
        headers="Transfer-Encoding: chunked\r\nTrailer: X\r\n",
        body=b"1\r\na\r\n2;x\r\n\nb\r\n0\r\nX: dropped\r\n\r\n",
    ),
    "1.0": request("POST", "1.0", "Content-Length: 3\r\n", BODY),
    "expect": request("PUT", headers="Content-Length: 3\r\nExpect: 100-continue\r\n", body=BODY),
    "get with a body": request("GET", headers="Content-Length: 3\r\n", body=BODY),
    "head": request("HEAD", headers="Content-Length: 3\r\n", body=BODY),
}


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("name", APPS)
def test_the_validator_finds_nothing(
    name: str, kind: str, running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    app, status, expected = APPS[name]
    with running(validator(app)).connect() as client:
        code, _, body = client.send(REQUESTS[kind]).response(kind == "head")
        if code == 100:
            code, _, body = client.response()
        assert (code, body) == (status, b"" if kind == "head" else expected)
        client.sock.shutdown(1)
        assert client.rest() == b""
    assert caplog.text == ""


# environ


def environ_of(running: Start, data: bytes, **options: t.Any) -> tuple[dict[str, t.Any], Running]:
    seen: list[dict[str, t.Any]] = []

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        seen.append(dict(environ))
        return answer([])(environ, start_response)  # type: ignore[no-any-return]

    one = running(app, **options)
    ask(one, data)
    return seen[0], one


def test_environ_is_what_the_pep_asks_for(running: Start) -> None:
    data = b"GET /a%20b/%E4%B8%AD?c=%20d HTTP/1.1\r\nHost: x:81\r\nX-Y: z\r\n\r\n"
    environ, one = environ_of(running, data)
    expected = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b/\xe4\xb8\xad",
        "QUERY_STRING": "c=%20d",
        "RAW_URI": "/a%20b/%E4%B8%AD?c=%20d",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(one.address[1]),
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "x:81",
        "HTTP_X_Y": "z",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
    }
    assert {key: environ[key] for key in expected} == expected
    assert int(environ["REMOTE_PORT"]) > 0
    flags = ("multithread", "multiprocess", "run_once", "input_terminated")
    assert [environ[f"wsgi.{flag}"] for flag in flags] == [True, False, False, True]
    assert type(environ) is dict
    # Absent is absent, and not empty.
    assert "CONTENT_TYPE" not in environ and "CONTENT_LENGTH" not in environ


def test_environ_of_a_request_with_a_body(running: Start) -> None:
    data = request("POST", headers="Content-Type:\r\nContent-Length: 03\r\n", body=b"abc")
    environ, _ = environ_of(running, data)
    assert (environ["CONTENT_TYPE"], environ["CONTENT_LENGTH"]) == ("", "03")
    assert not {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} & set(environ)


def test_B4_B6_environ_of_a_chunked_request_has_no_framing_and_no_trailers(running: Start) -> None:
    environ, _ = environ_of(running, REQUESTS["chunked"])
    assert not {"CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_X"} & set(environ)
    assert environ["HTTP_TRAILER"] == "X"


def test_P14_names_with_underscores_are_dropped(running: Start) -> None:
    environ, _ = environ_of(running, request(headers="X-Y: 1\r\nX_Y: 2\r\nContent_Length: 3\r\n"))
    assert environ["HTTP_X_Y"] == "1"
    assert "CONTENT_LENGTH" not in environ


def test_errors_go_to_the_stderr_of_the_moment(
    running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        assert environ["wsgi.errors"] is sys.stderr
        environ["wsgi.errors"].write("seen\n")
        return answer([])(environ, start_response)  # type: ignore[no-any-return]

    one = running(app)
    for _ in range(2):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        assert ask(one, request())[0] == 200
        assert stream.getvalue() == "seen\n"


def test_one_thread_is_not_multithread(running: Start) -> None:
    assert environ_of(running, request(), threads=1)[0]["wsgi.multithread"] is False


def test_P8_P16_asterisk_is_answered_by_the_server(running: Start) -> None:
    one = running(answer([b"the app's"]))
    with one.connect() as client:
        code, headers, body = client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").response()
        assert (code, headers["content-length"], body) == (200, "0", b"")
        assert client.send(request("OPTIONS")).response()[2] == b"the app's"


# wsgi.input


READS: dict[str, t.Callable[[t.Any], t.Any]] = {
    "read": lambda stream: [stream.read(), stream.read(), stream.read(5)],
    "read sizes": lambda stream: [stream.read(0), stream.read(4), stream.read(100)],
    "read -1": lambda stream: [stream.read(-1), stream.read(-1)],
    "readline": lambda stream: [stream.readline() for _ in range(4)],
    "readline sizes": lambda stream: [stream.readline(2), stream.readline(0), stream.readline(9)],
    "readlines": lambda stream: [*stream.readlines(), stream.readlines()],
    "readlines hint": lambda stream: stream.readlines(2),
    "iteration": lambda stream: [*stream, *stream],
    "read after a line": lambda stream: [stream.readline(), stream.read(), stream.readline()],
}
RESULTS: dict[str, list[t.Any]] = {
    "read": [b"one\ntwo\nend", b"", b""],
    "read sizes": [b"", b"one\n", b"two\nend"],
    "read -1": [b"one\ntwo\nend", b""],
    "readline": [b"one\n", b"two\n", b"end", b""],
    "readline sizes": [b"on", b"", b"e\n"],
    "readlines": [b"one\n", b"two\n", b"end", []],
    "readlines hint": [b"one\n"],
    "iteration": [b"one\n", b"two\n", b"end"],
    "read after a line": [b"one\n", b"two\nend", b""],
}


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("name", READS)
def test_B1_input_reads_like_a_file(name: str, framing: str, running: Start) -> None:
    results: list[t.Any] = []

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        results.extend(READS[name](environ["wsgi.input"]))
        return answer([])(environ, start_response)  # type: ignore[no-any-return]

    if framing == "length":
        parts = [request("POST", headers="Content-Length: 11\r\n"), b"one\ntw", b"o\nend"]
    else:
        parts = [request("POST", headers="Transfer-Encoding: chunked\r\n"), b"6\r\none\ntw\r"]
        parts += [b"\n5\r\no\nend\r\n0\r\n", b"\r\n"]
    with running(app).connect() as client:
        for part in parts:
            client.send(part)
        assert client.response()[0] == 200
        # Nothing of the body became a request.
        assert client.get()[0] == 200
    # The second request has no body.
    assert results[: len(RESULTS[name])] == RESULTS[name]


def test_B1_without_a_declared_body_there_is_none(running: Start) -> None:
    one = running(echo_app)
    for data in (request("POST"), request("POST", "1.0"), request(headers="Content-Length: 0\r\n")):
        assert ask(one, data)[2] == b""


def test_B13_input_is_over_with_its_request(running: Start) -> None:
    kept: list[t.Any] = []

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        kept.append(environ["wsgi.input"])
        return answer([])(environ, start_response)  # type: ignore[no-any-return]

    with running(app).connect() as client:
        client.send(request("POST", headers="Content-Length: 3\r\n", body=b"abc")).response()
        client.get()
        with pytest.raises(ValueError, match="the request is over"):
            kept[0].read()


def test_B13_the_app_may_read_on_after_its_first_block(running: Start) -> None:
    with running(stream_app).connect() as client:
        client.send(request("POST", headers="Content-Length: 6\r\n", body=b"a\n"))
        assert client._until(b"a\n\r\n").endswith(b"\r\n\r\n2\r\n")
        client.send(b"b\nc\n")
        assert client._until(b"0\r\n\r\n") == b"2\r\nb\n\r\n2\r\nc\n\r\n"


# Without chunked in 1.0, which is refused (row B4).
@pytest.mark.parametrize(
    ("version", "body"),
    [(version, body) for version in ("1.0", "1.1") for body in ("none", "zero", "length")]
    + [("1.1", "chunked")],
)
@pytest.mark.parametrize("reads", [True, False])
def test_B15_B18_100_continue_in_all_combinations(
    version: str, body: str, reads: bool, running: Start
) -> None:
    framing = {
        "none": "",
        "zero": "Content-Length: 0\r\n",
        "length": "Content-Length: 3\r\n",
        "chunked": "Transfer-Encoding: chunked\r\n",
    }[body]
    seen: list[str] = []

    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        seen.append(environ["HTTP_EXPECT"])
        content = environ["wsgi.input"].read() if reads else b"unread"
        start_response("200 OK", list(TEXT))
        return [content]

    sent = {"length": b"abc", "chunked": b"3\r\nabc\r\n0\r\n\r\n"}.get(body, b"")
    is_expected = version == "1.1" and reads and body in ("length", "chunked")
    with running(app).connect() as client:
        client.send(request("POST", version, f"Expect: x, 100-Continue\r\n{framing}"))
        if is_expected:
            assert client.response()[0] == 100
        client.send(sent)
        code, _, content = client.response()
    assert (code, content) == (200, (b"abc" if sent else b"") if reads else b"unread")
    assert seen == ["x, 100-Continue"]


def test_B15_no_100_within_a_response(running: Start) -> None:
    """Its bytes would stand in the middle of the body."""

    def app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        start_response("200 OK", [*TEXT, ("Content-Length", "8")])
        yield b"first"
        yield environ["wsgi.input"].read()

    with running(app).connect() as client:
        client.send(request("POST", headers="Content-Length: 3\r\nExpect: 100-continue\r\n"))
        assert client._until(b"first")
        client.send(b"abc")
        assert client.rest() == b"abc"


# What applications do wrong, and what becomes of it


WRONG: dict[str, tuple[t.Any, str]] = {
    "no start_response": (lambda environ, start: [b"x"], "before it called start_response"),
    "nothing at all": (lambda environ, start: [], "before it called start_response"),
    "None": (answer(lambda: None), "the application returned None; expected an iterable of bytes"),
    "str blocks": (answer(["x"]), "a block of type str; expected bytes"),
    "bytes for a list": (answer(b"x"), "type int; expected bytes (to send one block of bytes, ret"),
    "bytearray": (answer([bytearray(b"x")]), "a block of type bytearray; expected bytes"),
    "status of bytes": (answer([], b"200 OK"), "start_response: expected a str and a list"),  # type: ignore[arg-type]
    "header of bytes": (answer([], headers=[(b"A", b"b")]), "start_response: expected a str and"),  # type: ignore[list-item]
    "header of int": (answer([], headers=[("A", 1)]), "start_response: expected a str and a list"),  # type: ignore[list-item]
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_get_500_and_a_clear_line(
    name: str, running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    app, message = WRONG[name]
    with running(app).connect() as client:
        assert client.send(request()).response()[::2] == (500, b"Internal Server Error\n")
        assert client.send(request()).response()[0] == 500
    assert message in caplog.text


def test_write_takes_bytes_only(running: Start, caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])("text")
        return []

    assert ask(running(app), request())[0] == 500
    assert "a block of type str; expected bytes" in caplog.text


def test_F6_a_second_start_response_needs_exc_info(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])
        start_response("200 OK", [])
        return [b"x"]

    assert ask(running(app), request())[0] == 500
    assert "start_response was called twice without exc_info" in caplog.text


def test_exc_info_after_the_head_is_raised_again(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        start_response("200 OK", [])
        yield b"x"
        try:
            raise KeyError("the first")
        except KeyError:
            start_response("500 Oh", [], sys.exc_info())
        yield b"never"

    assert raw(running(app), request()).endswith(b"\r\n\r\n1\r\nx\r\n")
    assert "KeyError: 'the first'" in caplog.text


def test_headers_changed_after_start_response_are_not_sent(running: Start) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        headers = [("A", "b")]
        start_response("200 OK", headers)
        headers.append(("Evil", "1\r\n"))
        return [b"x"]

    _, headers, _ = ask(running(app), request())
    assert headers["a"] == "b" and "evil" not in headers


@pytest.mark.parametrize("data", [request(), request("HEAD")])
@pytest.mark.parametrize("blocks", [[], [b"a", b"b"], [b"a", ValueError("within")]])
def test_close_is_always_called(
    blocks: list[t.Any], data: bytes, running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    made = Blocks(*blocks)
    raw(running(answer(made)), data)
    assert made.closed.wait(20)


def test_F7_close_is_called_when_the_client_is_gone(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    made = Blocks(*[b"x" * 1_000_000] * 200)
    one = running(answer(made))
    one.connect().send(request()).sock.close()
    assert made.closed.wait(20)
    wait_until(lambda: not one.server.connections(), "closed")
    # A client that leaves is not an event (row F7).
    assert caplog.text == ""


def test_close_that_raises_takes_nothing_from_the_client(
    running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    class Closing(list[bytes]):
        def close(self) -> None:
            raise ValueError("in close")

    size = 8_000_000
    with caplog.at_level(logging.ERROR):
        _, _, body = ask(running(answer(Closing([b"x" * size]))), request())
        assert len(body) == size
        assert raw(running(answer(Closing([b"a", b"b"]))), request()).endswith(b"0\r\n\r\n")
    assert caplog.text.count("ValueError: in close") == 2
