"""The bodies of HTTP/1.1 requests, out of the bytes received (RFC 9112, sections 6 and 7).

Owns where a body ends. No socket, no thread, no clock: a decoder takes its bytes from the front of
a buffer, and what it leaves there is the next request.

Rules: chunk framing is read to the letter. A CR or LF alone, a size that is no hexadecimal number,
an extension outside the grammar: `ProtocolError`, after which nothing on the connection is read
as a request.
"""

from __future__ import annotations

import re
import typing as t

from .errors import ProtocolError

if t.TYPE_CHECKING:
    from .http11 import Request

# A chunk's size line, and the trailer section as a whole (rows B5, B6).
MAX_CHUNK_LINE = 4096
MAX_TRAILERS = 4096
# Trailers that would change where the request goes or ends (RFC 9110, section 6.5.1; row B6).
FORBIDDEN_TRAILERS = frozenset({"content-length", "host", "trailer", "transfer-encoding"})

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Blanks stand only before and after a `;` or `=` (BWS in the grammar), not at the line's end.
_CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb"(?:[ \t]*;[ \t]*"
    + _TOKEN
    + rb"(?:[ \t]*=[ \t]*(?:"
    + _TOKEN
    + rb'|"(?:[\t !#-\[\]-~\x80-\xff]'
    rb'|\\[\t -~\x80-\xff])*"))?)*'
)
_TRAILER_LINE = re.compile(rb"(" + _TOKEN + rb"):[\t -~\x80-\xff]*")


class BodyDecoder(t.Protocol):
    """Takes the body of a request out of the bytes received."""

    done: bool

    def decode(self, data: bytearray) -> bytes:
        """Remove what belongs to the body from the front of `data`; the content that was in it.

        :raises ProtocolError: the body breaks a rule.
        """

    def remaining(self) -> int | None:
        """The bytes still to come; None when that is unknown."""


class LengthDecoder:
    """A body whose length was announced (RFC 9112, section 6.2)."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def decode(self, data: bytearray) -> bytes:
        content = bytes(data[: self._left])
        del data[: len(content)]
        self._left -= len(content)
        self.done = self._left == 0
        return content

    def remaining(self) -> int | None:
        return self._left


class ChunkedDecoder:
    """A chunked body (RFC 9112, section 7.1). Trailers are checked and dropped."""

    def __init__(self) -> None:
        self.done = False
        self._step = self._size_line
        self._left = 0
        self._scanned = 0
        self._trailers = 0

    def decode(self, data: bytearray) -> bytes:
        parts: list[bytes] = []
        while not self.done and self._step(data, parts):
            pass
        return b"".join(parts)

    def remaining(self) -> int | None:
        return 0 if self.done else None

    def _size_line(self, data: bytearray, parts: list[bytes]) -> bool:
        line = self._line(data, MAX_CHUNK_LINE)
        if line is None:
            return False
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError("malformed chunk size")
        self._left = int(match[1], 16)
        self._step = self._content if self._left else self._trailer
        return True

    def _content(self, data: bytearray, parts: list[bytes]) -> bool:
        part = bytes(data[: self._left])
        del data[: len(part)]
        self._left -= len(part)
        parts.append(part)
        if self._left:
            return False
        self._step = self._content_end
        return True

    def _content_end(self, data: bytearray, parts: list[bytes]) -> bool:
        if not b"\r\n".startswith(bytes(data[:2])):
            raise ProtocolError("chunk longer than its size")
        if len(data) < 2:
            return False
        del data[:2]
        self._step = self._size_line
        return True

    def _trailer(self, data: bytearray, parts: list[bytes]) -> bool:
        line = self._line(data, MAX_TRAILERS - self._trailers)
        if line is None:
            return False
        if not line:
            self.done = True
            return False
        self._trailers += len(line) + 2
        match = _TRAILER_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError("malformed trailer")
        if match[1].decode("ascii").lower() in FORBIDDEN_TRAILERS:
            raise ProtocolError("forbidden trailer")
        return True

    def _line(self, data: bytearray, limit: int) -> bytes | None:
        """A line without its CRLF. A CR or LF alone in it is left for the grammar to refuse."""
        end = data.find(b"\r\n", self._scanned)
        if end > limit or (end < 0 and len(data) > limit):
            raise ProtocolError("suspiciously long line in a chunked body")
        if end < 0:
            self._scanned = max(0, len(data) - 1)
            return None
        line = bytes(data[:end])
        del data[: end + 2]
        self._scanned = 0
        return line


def body_decoder(request: Request) -> BodyDecoder | None:
    """The decoder that a request's body needs; None when it has no body."""
    if request.chunked:
        return ChunkedDecoder()
    return LengthDecoder(request.length) if request.length else None
