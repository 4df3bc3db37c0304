"""Generated requests, read by our parser and by h11, which was written by other people.

What we accept, h11 must read the same way: method, target, fields, body, and where the next request
begins. What only one of the two accepts must be in a list, with its reason. Everything is read
whole and in random pieces, which must make no difference.
"""

from __future__ import annotations

import itertools
import re
import typing as t

import h11
from flask_graceful.body import body_decoder
from flask_graceful.errors import ProtocolError
from flask_graceful.http11 import HeadBuffer, HeadParser, Request
from hypothesis import given, settings
from hypothesis import strategies as st

NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"

# What we accept and h11 does not: a pattern of the bytes, and why.
LENIENT = [
    (rb"\A(\r\n){1,2}[^\r]", "empty lines before a request (RFC 9112, 2.2; row P15)"),
    (rb"\A[^\r\n]* [^\r\n]*[\x80-\xff][^\r\n]* HTTP", "bytes above 127 in the target (row P7)"),
    (rb"\n[0-9A-Fa-f]+[ \t]+;", "blanks before an extension are in the grammar (row B5)"),
]
# What h11 accepts and we do not: a pattern of our message, and why.
STRICT = [
    ("malformed request line", "h11 takes a bare LF as a line's end (row P13)"),
    ("unsupported protocol version", "h11 leaves the version to its user"),
    ("malformed request target", "h11 takes any visible bytes as target (row P7)"),
    ("malformed escape in the request target", "the same"),
    ("CONNECT is not supported", "a WSGI server has no tunnel to offer"),
    ("missing required Host header", "h11 asks for it in 1.1 only, not in 1.2 (row P9)"),
    ("malformed Host header", "h11 takes any value (row P10)"),
    ("malformed header", "h11 takes bare LF and folded lines (row P13)"),
    ("(?i)repeated content-type header", "two types are no type (row P14)"),
    ("Transfer-Encoding in HTTP/1.0", "h11 takes it (row B4)"),
    ("unknown expectation", "h11 leaves expectations to its user (row B19)"),
    ("malformed chunk size", "h11 drops all that follows the size unread (row B5)"),
    ("malformed trailer", "h11 takes bare LF and folded lines (row P13)"),
    ("forbidden trailer", "h11 takes any name (row B6)"),
]


class Read(t.NamedTuple):
    """One request, as a parser sees it."""

    method: bytes
    target: bytes
    fields: dict[str, str]
    body: bytes


def ours(data: bytes, cuts: list[int]) -> Read | str | None:
    """The first request; a message when it is refused, None when it is not complete."""
    inbox = HeadBuffer(1 << 20)
    request: Request | None = None
    decoder = None
    body = b""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    try:
        for start, end in itertools.pairwise(edges):
            if request is None:
                head = inbox.take(data[start:end])
                if head is None:
                    continue
                request = HeadParser().parse(head)
                decoder = body_decoder(request)
            else:
                inbox.data += data[start:end]
            if decoder is not None and not decoder.done:
                body += decoder.decode(inbox.data)
    except ProtocolError as error:
        return str(error)
    if request is None or (decoder is not None and not decoder.done):
        return None
    fields = {name: value for name, value in request.fields.items() if name != "HTTP_HOST"}
    return Read(request.method.encode(), request.target.encode("latin-1"), fields, body)


def theirs(data: bytes) -> Read | str | None:
    """The same, read by h11."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    request: h11.Request | None = None
    body = b""
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return None
    except h11.RemoteProtocolError as error:
        return str(error)
    assert request is not None
    return Read(request.method, request.target, _cgi_fields(request), body)


def _cgi_fields(request: h11.Request) -> dict[str, str]:
    """h11's fields under our names: joined, without Host and without names that we drop."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name == "host" or "_" in name:
            continue
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        joint = "; " if name == "cookie" else ", "
        fields[key] = fields[key] + joint + value if key in fields else value
    return fields


TOKEN = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=8).map(str.encode)
VALUE = st.one_of(
    st.text('abc 019,;="\t\\', max_size=12).map(str.encode),
    st.binary(max_size=6).map(lambda data: re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", data)),
)
METHOD = st.one_of(st.sampled_from([b"GET", b"POST", b"OPTIONS", b"CONNECT", b"HEAD"]), TOKEN)
TARGET = st.one_of(
    st.text("abc/?=&%41#~.", max_size=12).map(lambda text: b"/" + text.encode()),
    st.sampled_from([b"*", b"http://a.b/c?d", b"http://a", b"a:80", b"//x", b"/\xc3\xa4"]),
)
FIELD = st.one_of(
    st.tuples(TOKEN, VALUE),
    st.sampled_from(
        [
            (b"Connection", b"close"),
            (b"Connection", b"keep-alive, x"),
            (b"Cookie", b"a=b"),
            (b"Content-Type", b"text/plain"),
            (b"Expect", b"100-continue"),
            (b"Upgrade", b"websocket"),
            (b"Trailer", b"X"),
            (b"X_Y", b"dropped"),
        ]
    ),
)
EXTENSION = st.sampled_from([b"", b"", b"", b";a", b";a=b", b';a="b c"', b" ; a = b"])


@st.composite
def requests(draw: t.Callable[[t.Any], t.Any]) -> bytes:
    """A request, valid in most cases, and the next one behind it."""
    body: bytes = draw(st.binary(max_size=20))
    version = draw(st.sampled_from([b"1.1"] * 12 + [b"1.0"] * 3 + [b"1.0", b"1.2", b"2.0"]))
    fields = draw(st.lists(FIELD, max_size=4))
    fields.insert(draw(st.integers(0, len(fields))), (b"Host", draw(st.sampled_from(HOSTS))))
    framing = draw(st.sampled_from(["none", "length", "chunked", "chunked"]))
    if framing == "length":
        fields.append((b"Content-Length", b"%d" % len(body)))
    elif framing == "chunked":
        fields.append((b"Transfer-Encoding", b"chunked"))
        body = draw(chunked(body))
    else:
        body = b""
    head = b"%b %b HTTP/%b\r\n" % (draw(METHOD), draw(TARGET), version)
    blank = draw(st.sampled_from([b" ", b"", b"\t "]))
    lines = [name + b":" + blank + value + b"\r\n" for name, value in fields]
    return b"".join([head, *lines, b"\r\n", body, NEXT])


HOSTS = [b"a"] * 12 + [b"a", b"a.b:80", b"[::1]:8", b"", b"a b", b"u@a", b"a/b"]


@st.composite
def chunked(draw: t.Callable[[t.Any], t.Any], body: bytes) -> bytes:
    """The body in chunks of any size, with extensions and trailers."""
    parts = []
    while body:
        size = draw(st.integers(1, len(body)))
        parts.append(b"%x%b\r\n%b\r\n" % (size, draw(EXTENSION), body[:size]))
        body = body[size:]
    trailers = draw(st.lists(st.tuples(TOKEN, st.just(b" x")), max_size=2))
    parts += [b"0" * draw(st.integers(1, 3)) + b"\r\n"]
    parts += [name + b":" + value + b"\r\n" for name, value in trailers]
    return b"".join([*parts, b"\r\n"])


@st.composite
def mutated(draw: t.Callable[[t.Any], t.Any]) -> bytes:
    """A request with a few pieces put in, taken out or replaced."""
    data: bytes = draw(requests())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 2)))
        data = data[:at] + draw(st.sampled_from(DISTURBANCES)) + data[end:]
    return data


DISTURBANCES = [b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\0", b"\x0b", b"\x7f", b"\x80"]
DISTURBANCES += [b",", b";", b"0", b"_", b"\r\n ", b"\r\nContent-Length: 1\r\n", b"%", b"#", b"+"]
DISTURBANCES += [b"\r\nTransfer-Encoding: chunked\r\n", b"\r\nHost: b\r\n", b"\n\n", b"\r\n\r\n"]
CUTS = st.lists(st.integers(0, 1 << 16), max_size=12)


def compare(data: bytes, cuts: list[int]) -> None:
    mine = ours(data, [])
    assert ours(data, cuts) == mine, "pieces make a difference"
    assert ours(data, list(range(len(data)))) == mine, "single bytes make a difference"
    other = theirs(data)
    if isinstance(mine, Read):
        if isinstance(other, Read):
            assert mine == other
        else:
            assert any(re.search(pattern, data) for pattern, _ in LENIENT), (mine, other)
    elif isinstance(other, Read):
        if mine is None:
            # To us no head has ended yet, since h11 takes a bare LF as a line's end (row P13).
            assert re.search(rb"[^\r]\n", data), other
        else:
            assert any(re.search(pattern, mine) for pattern, _ in STRICT), (mine, other)


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(requests(), CUTS)
def test_requests_are_read_as_h11_reads_them(data: bytes, cuts: list[int]) -> None:
    compare(data, cuts)


@settings(max_examples=350, deadline=None, derandomize=True, database=None)
@given(mutated(), CUTS)
def test_disturbed_requests_are_read_as_h11_reads_them_or_refused(
    data: bytes, cuts: list[int]
) -> None:
    compare(data, cuts)


def test_most_generated_requests_are_accepted() -> None:
    """Refusing everything would pass the tests above."""
    plain = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    assert ours(plain + NEXT, [3, 50]) == theirs(plain + NEXT)
    verdicts: list[bool] = []

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(requests())
    def count(data: bytes) -> None:
        verdicts.append(isinstance(ours(data, []), Read))

    count()
    assert sum(verdicts) > len(verdicts) / 3
