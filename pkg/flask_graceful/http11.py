"""The heads of HTTP/1.1 requests, from bytes (RFC 9110, RFC 9112).

Owns where a head ends, what it says, how its body is framed, and whether the connection may carry
another request. No socket, no thread, no clock.

Strategy: `HeadBuffer` collects bytes until a head is complete. `HeadParser` reads the request
line itself, since llhttp knows only registered methods, and leaves the field lines to httptools.
What remains in the buffer is the body (see `body`), then the next request.

Rules: whatever could be read in two ways is refused (request smuggling). A `ProtocolError` says
which status answers it; after one the connection carries nothing more.
"""

from __future__ import annotations

import re

import httptools

from .body import FORBIDDEN_TRAILERS
from .errors import ProtocolError

# Empty lines that are skipped before a request line, as in Go (row P15).
MAX_EMPTY_LINES = 2

# What a head may be longer than max_header_bytes, as in Go (spec row P1).
HEAD_SLACK = 4096

_REQUEST_LINE = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^\x00-\x20\x7f]+) HTTP/([0-9])\.([0-9])"
)
_ABSOLUTE_FORM = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)([^#]*)")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# RFC 3986 reg-name, IPv4 or bracketed IPv6, and a port; empty is allowed (row P9).
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::\d*)?"
)


class Request:
    """The head of one request, read and checked.

    `fields` holds the header fields under their CGI names (RFC 3875, section 4.1), values of
    repeated fields joined in their order. `length` is the body's length, None when it is chunked.
    """

    __slots__ = (
        "chunked",
        "expect_continue",
        "fields",
        "keep_alive",
        "length",
        "method",
        "path",
        "query",
        "target",
        "version",
    )

    method: str
    target: str
    path: str
    query: str
    version: int
    fields: dict[str, str]
    length: int
    chunked: bool
    keep_alive: bool
    expect_continue: bool


class HeadBuffer:
    """Bytes received and not yet used. Finds the end of a head without looking twice."""

    __slots__ = ("_limit", "_scanned", "_skipped", "data")

    def __init__(self, max_header_bytes: int) -> None:
        self.data = bytearray()
        self._scanned = 0
        self._skipped = 0
        self._limit = max_header_bytes + HEAD_SLACK

    def take(self, received: bytes) -> bytes | None:
        """The next complete head; None while it is incomplete.

        :param received: bytes that follow those already in the buffer, perhaps none.
        :raises ProtocolError: the head is longer than the limit (431).
        """
        data = self.data
        if (
            not data
            and received.find(b"\r\n\r\n") == len(received) - 4
            and len(received) > 4
            and received[0] not in b"\r\n"
        ):
            # The usual case: exactly one head, which needs no buffer.
            if len(received) > self._limit:
                raise _too_large()
            self._skipped = 0
            return received
        data += received
        while self._skipped < MAX_EMPTY_LINES and data.startswith(b"\r\n"):
            # RFC 9112, section 2.2: an empty line before a request line is not the client's
            # meaning. Whatever else stands in that place is refused by the parser.
            del data[:2]
            self._skipped += 1
        end = data.find(b"\r\n\r\n", self._scanned)
        if end < 0:
            if len(data) >= self._limit:
                raise _too_large()
            self._scanned = max(0, len(data) - 3)
            return None
        if end + 4 > self._limit:
            raise _too_large()
        head = bytes(data[: end + 4])
        del data[: end + 4]
        self._scanned = self._skipped = 0
        return head

    def has_head(self) -> bool:
        """Is a complete head in the buffer?"""
        return b"\r\n\r\n" in self.data


def _too_large() -> ProtocolError:
    status = "431 Request Header Fields Too Large"
    return ProtocolError("the head is longer than max_header_bytes", status)


class HeadParser:
    """Heads to requests. One per thread: what it keeps between two heads is a memory of bytes."""

    def __init__(self) -> None:
        # Header sections as they came, and what they say. The values are shared: never changed.
        self._known: dict[bytes, tuple[dict[str, str], bool]] = {}
        self._renew()
        self._fields: dict[str, str] = {}
        # All values of the fields that came more than once. Joined at the end: a head of a
        # hundred thousand equal names would otherwise copy its values as often.
        self._repeated: dict[str, list[str]] = {}

    def parse(self, head: bytes) -> Request:
        """The request that a complete head, from request line to empty line, announces.

        :raises ProtocolError: the head breaks a rule.
        """
        line_end = head.index(b"\r\n")
        match = _REQUEST_LINE.fullmatch(head, 0, line_end)
        if match is None:
            raise ProtocolError("malformed request line")
        method, target, major, minor = match.groups()
        if major != b"1":
            status = "505 HTTP Version Not Supported"
            raise ProtocolError("unsupported protocol version", status)
        if method == b"CONNECT":
            raise ProtocolError("CONNECT is not supported", "501 Not Implemented")
        request = Request()
        request.method = method.decode("ascii")
        request.version = 0 if minor == b"0" else 1
        block = head[line_end:]
        known = self._known.get(block) if request.version else None
        if known is not None:
            request.fields, request.keep_alive = known
            request.chunked = request.expect_continue = False
            request.length = 0
        else:
            request.fields = self._parse_fields(block)
            _check_host(request)
            _read_framing(request)
            _read_connection(request)
            self._remember(block, request)
        _read_target(request, target.decode("latin-1"))
        return request

    def _remember(self, block: bytes, request: Request) -> None:
        """Clients send the same fields with each request: read them once.

        Only what says nothing about a body, and holds no secret, is kept.
        """
        fields = request.fields
        if (
            len(block) <= MAX_KNOWN_SIZE
            and request.version
            and not (request.length or request.chunked)
            and _NOT_KEPT.isdisjoint(fields)
        ):
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[block] = (fields, request.keep_alive)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools for each field line."""
        key = _KEYS.get(name)
        if key is None:
            key = _learn_key(name)
        if not key:
            return
        text = value.decode("latin-1").strip(" \t")
        fields = self._fields
        if key in fields:
            if key in _SINGLE:
                raise ProtocolError(f"repeated {name.decode('latin-1')} header")
            self._repeated.setdefault(key, [fields[key]]).append(text)
        else:
            fields[key] = text

    def _parse_fields(self, block: bytes) -> dict[str, str]:
        fields = self._fields = {}
        self._repeated.clear()
        try:
            self._parser.feed_data(_ANY_REQUEST_LINE + block)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            self._renew()
            cause = error.__context__
            if isinstance(cause, ProtocolError):
                raise cause from None
            _refuse_coding(fields)
            raise ProtocolError(f"malformed header: {error}") from error
        if not _LEAVES_LLHTTP_BUSY.isdisjoint(fields):
            self._renew()
        for key, texts in self._repeated.items():
            fields[key] = ("; " if key == "HTTP_COOKIE" else ", ").join(texts)
        return fields

    def _renew(self) -> None:
        self._parser = httptools.HttpRequestParser(self)


# httptools sees this line in place of the client's, so that it judges the fields alone.
_ANY_REQUEST_LINE = b"GET / HTTP/1.1"

# After these llhttp waits for a body, or takes nothing more on a connection that closes or changes
# its protocol; the next head may be another client's.
_LEAVES_LLHTTP_BUSY = frozenset(
    {
        "CONTENT_LENGTH",
        "HTTP_CONNECTION",
        "HTTP_PROXY_CONNECTION",
        "HTTP_TRANSFER_ENCODING",
        "HTTP_UPGRADE",
    }
)

# A thread's memory of header sections.
MAX_KNOWN = 64
MAX_KNOWN_SIZE = 1024
_NOT_KEPT = frozenset({"HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_EXPECT"})

# Fields whose repetition could mean two things.
_SINGLE = frozenset({"CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_HOST", "HTTP_TRANSFER_ENCODING"})

# CGI names of field names as clients spell them; "" for those that are dropped. Bounded, since
# clients choose the spelling.
_KEYS: dict[bytes, str] = {}
_MAX_KEYS = 2048


def _learn_key(name: bytes) -> str:
    text = name.decode("latin-1")
    if "_" in text:
        # `X_Y` and `X-Y` would be one environ key (row P14): such names are dropped.
        key = ""
    else:
        key = text.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
    if len(_KEYS) < _MAX_KEYS and len(name) <= 64:
        _KEYS[name] = key
    return key


def _read_target(request: Request, target: str) -> None:
    """RFC 9112, section 3.2: the forms of a target; the host of an absolute one wins (row P8)."""
    request.target = target
    if not target.startswith("/"):
        if target == "*" and request.method == "OPTIONS":
            request.path, request.query = "*", ""
            return
        absolute = _ABSOLUTE_FORM.fullmatch(target)
        if absolute is None or not absolute[1] or not _HOST.fullmatch(absolute[1]):
            raise ProtocolError("malformed request target")
        request.fields = {**request.fields, "HTTP_HOST": absolute[1]}
        target = absolute[2]
        if not target.startswith("/"):
            target = "/" + target
    path, _, request.query = target.partition("?")
    if "%" in path and _BAD_ESCAPE.search(path):
        raise ProtocolError("malformed escape in the request target")
    request.path = path


def _check_host(request: Request) -> None:
    """RFC 9112, section 3.2: there is one, and it is a host (rows P9, P10)."""
    host = request.fields.get("HTTP_HOST")
    if host is None:
        if request.version:
            raise ProtocolError("missing required Host header")
    elif not _HOST.fullmatch(host):
        raise ProtocolError("malformed Host header")


def _read_framing(request: Request) -> None:
    """RFC 9112, section 6: the body's length."""
    fields = request.fields
    request.chunked = False
    request.length = 0
    if "HTTP_TRANSFER_ENCODING" in fields:
        _refuse_coding(fields)
        if not request.version:
            raise ProtocolError("Transfer-Encoding in HTTP/1.0")
        if "CONTENT_LENGTH" in fields:
            raise ProtocolError("both Transfer-Encoding and Content-Length")
        if "HTTP_TRAILER" in fields:
            _refuse_trailers(fields["HTTP_TRAILER"])
        request.chunked = True
    elif "CONTENT_LENGTH" in fields:
        request.length = _content_length(fields["CONTENT_LENGTH"])


def _read_connection(request: Request) -> None:
    """RFC 9112, section 9.3, and RFC 9110, section 10.1.1: what the client expects to follow."""
    fields = request.fields
    request.keep_alive = request.version > 0
    if "HTTP_CONNECTION" in fields:
        tokens = [token.strip(" \t") for token in fields["HTTP_CONNECTION"].lower().split(",")]
        if "close" in tokens:
            request.keep_alive = False
        elif not request.version:
            request.keep_alive = "keep-alive" in tokens
    request.expect_continue = False
    if fields.get("HTTP_EXPECT"):
        if "100-continue" not in fields["HTTP_EXPECT"].lower().replace(",", " ").split():
            raise ProtocolError("unknown expectation", "417 Expectation Failed")
        request.expect_continue = bool(request.version and (request.chunked or request.length))


def _refuse_coding(fields: dict[str, str]) -> None:
    coding = fields.get("HTTP_TRANSFER_ENCODING", "chunked")
    if coding.lower() != "chunked":
        raise ProtocolError("unsupported transfer encoding", "501 Not Implemented")


def _refuse_trailers(announced: str) -> None:
    """Row B6: trailers that would change what the request is."""
    for name in announced.lower().split(","):
        if name.strip(" \t") in FORBIDDEN_TRAILERS:
            raise ProtocolError("forbidden name in the Trailer header")


def _content_length(text: str) -> int:
    # int() alone takes signs, blanks, underscores and other scripts' digits (row B2).
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or int(text) >= 1 << 63:
        raise ProtocolError("malformed Content-Length header")
    return int(text)
