"""WSGI (PEP 3333): a request to environ, an application's answer to bytes.

Owns the meaning of environ, of `start_response` and of the response's framing. No socket, no
thread: bytes go out through an injected `send`, a request's body comes in through an injected
`receive`.

Rules: nothing is sent before the first non-empty block, so that an error can still become a 500.
A response whose length the application did not say is chunked (HTTP/1.1) or ends with the
connection (HTTP/1.0). The head and the first block leave in one piece.
"""

from __future__ import annotations

import io
import re
import sys
import time
import typing as t
from email.utils import formatdate
from urllib.parse import unquote_to_bytes

from .files import FileWrapper

if t.TYPE_CHECKING:
    from types import ModuleType, TracebackType

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .errors import ProtocolError
    from .files import FilePart
    from .http11 import Request

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType]

# Without 1xx: PEP 3333 knows one answer to a request, and nothing before it.
_STATUS = re.compile(r"[2-9][0-9]{2} [\t -~\x80-\xff]*")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")


def base_environ(server_name: str, server_port: str, scheme: str, threads: int) -> WSGIEnvironment:
    """The part of environ that all requests of one listener share."""
    return {
        "SCRIPT_NAME": "",
        "SERVER_NAME": server_name,
        "SERVER_PORT": server_port,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.multithread": threads > 1,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": FileWrapper,
    }


def request_environ(base: WSGIEnvironment, request: Request) -> WSGIEnvironment:
    """environ of one request, without its input and the client's address.

    `RAW_URI` holds the target as it came, since PATH_INFO is decoded.
    """
    environ = base.copy()
    environ.update(request.fields)
    path = request.path
    if "%" in path:
        path = unquote_to_bytes(path.encode("latin-1")).decode("latin-1")
    environ["REQUEST_METHOD"] = request.method
    environ["PATH_INFO"] = path
    environ["QUERY_STRING"] = request.query
    environ["RAW_URI"] = request.target
    # The stream of this moment: programs and test runners replace it.
    environ["wsgi.errors"] = sys.stderr
    environ["SERVER_PROTOCOL"] = "HTTP/1.1" if request.version else "HTTP/1.0"
    if request.chunked:
        # The content is handed on without its framing, and its end is seen as end of file.
        del environ["HTTP_TRANSFER_ENCODING"]
    return environ


def answer_asterisk(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """The application for `OPTIONS *`, which asks the server and no path of it (row P16)."""
    start_response("200 OK", [])
    return []


def client_error(message: str, kind: type[OSError]) -> OSError:
    """What `wsgi.input` raises when its client is to blame.

    An application that lets it through gives the server the answer. Flask lets nothing through:
    it logs a traceback and answers 500 unless the exception is one of Werkzeug's, for which it has
    its 400. So where Werkzeug is loaded, the error is one of these too.

    :param kind: what the error is in any case.
    """
    werkzeug = sys.modules.get("werkzeug.exceptions")
    if werkzeug is None:
        return kind(message)
    if (kind, werkzeug) not in _client_errors:
        bases = (kind, werkzeug.ClientDisconnected)
        _client_errors[kind, werkzeug] = type("ClientError", bases, {"response": None})
    error: OSError = _client_errors[kind, werkzeug](message)
    error.description = message  # type: ignore[attr-defined]
    return error


_client_errors: dict[tuple[type[OSError], ModuleType], t.Any] = {}


class BodyStream(io.RawIOBase):
    """A request's body as the application reads it, wrapped by `input_stream`.

    :param receive: gives the next bytes of the body, b"" at its end; raises OSError when the
        client is gone, silent for too long, or breaks the framing.
    """

    def __init__(self, receive: t.Callable[[], bytes]) -> None:
        self._receive = receive
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        data = self._rest or self._receive()
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        self._rest = data[count:]
        return count

    def readall(self) -> bytes:
        rest, self._rest = self._rest, b""
        return b"".join([rest, *iter(self._receive, b"")])


def input_stream(receive: t.Callable[[], bytes] | None) -> t.BinaryIO:
    """`wsgi.input`: read, readline, readlines and iteration, ending where the body ends."""
    if receive is None:
        return io.BytesIO()
    return io.BufferedReader(BodyStream(receive), 65536)


class Response:
    """What one application call answers, framed for the wire.

    :param send: takes bytes for the client, and whether they are the last ones, which it need not
        wait for. May raise OSError when the client is gone.
    :param close_after: asked once, when the head is made: must the connection end after this?
    :param open_file: asked for the part of a file that is sent after the next bytes, which are the
        last ones; None when the file has to be read in blocks.
    """

    def __init__(
        self,
        request: Request,
        send: t.Callable[[bytes, bool], None],
        close_after: t.Callable[[], bool],
        open_file: t.Callable[[t.Any], FilePart | None],
    ) -> None:
        self._request = request
        self._send = send
        self._close_after = close_after
        self._open_file = open_file
        # What start_response was told; None before.
        self._announced: Announced | None = None
        self._bodiless = request.method == "HEAD"
        self._chunked = False
        # Bytes that the announced length still allows; None: no length was announced.
        self._left: int | None = None
        self.head_sent = False
        self._is_ended = False
        # Set when the head is made: may the connection carry another request?
        self.keep_alive = False

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: ExcInfo | None = None,
    ) -> t.Callable[[bytes], None]:
        """PEP 3333's start_response.

        :raises AssertionError: a second call without exc_info.
        :raises TypeError: a status or header of a wrong type.
        :raises ValueError: a status, name or value that can't go on the wire.
        """
        if exc_info is not None:
            try:
                if self.head_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._announced is not None:
            raise AssertionError("start_response was called twice without exc_info")
        self._announced = announce(status, headers)
        return self.write

    def run(self, app: WSGIApplication, environ: WSGIEnvironment) -> None:
        """Call the application and send what it answers, to the end.

        Whatever the application raises comes out; `close()` of its iterable is called always.
        """
        blocks = app(environ, t.cast("StartResponse", self.start_response))
        if blocks is None:
            raise TypeError("the application returned None; expected an iterable of bytes")
        try:
            if type(blocks) is FileWrapper:
                self._send_file(blocks)
            else:
                self._send_blocks(blocks)
            self.finish()
        finally:
            close = getattr(blocks, "close", None)
            if close is not None:
                close()

    def write(self, data: bytes) -> None:
        """The imperative `write()` of PEP 3333."""
        data = _as_bytes(data)
        if self.head_sent:
            self._send_block(data)
        elif data:
            self._send_first(data, None)

    def finish(self) -> None:
        """The application has answered: send what closes the response."""
        if not self.head_sent:
            self._send_first(b"", 0)
        # From here on only the application's close() can fail.
        self._is_ended = True
        if self._chunked:
            self._send(b"0\r\n\r\n", True)
        elif self._left:
            # Fewer bytes than announced: only the end of the connection says so (row R8).
            self.keep_alive = False

    def fail(self) -> None:
        """Answer 500; only while nothing was sent."""
        content_type = ("Content-Type", "text/plain; charset=utf-8")
        self._announced = announce("500 Internal Server Error", [content_type])
        body = b"Internal Server Error\n"
        self._send_first(body, len(body))

    def _send_blocks(self, blocks: t.Iterable[bytes]) -> None:
        only = _is_single(blocks)
        for block in blocks:
            if type(block) is not bytes:
                block = _as_bytes(block)
            if block:
                if self.head_sent:
                    self._send_block(block)
                else:
                    self._send_first(block, len(block) if only else None)

    def _send_file(self, wrapper: FileWrapper) -> None:
        """Send a file to its end or to the announced length, whichever comes first (PEP 3333,
        "Optional Platform-Specific File Handling")."""
        announced = self._announced
        part = None
        if announced and not self.head_sent:
            part = self._open_file(wrapper.filelike)
        if announced is None or part is None:
            limit = self._left if self.head_sent else announced and announced.length
            self._send_blocks(wrapper.until(limit))
            return
        # To HEAD, the server says no length that the application did not (row R7).
        head = self._head(announced, None if self._bodiless else part.left)
        part.left = 0 if self._left is None else min(part.left, self._left)
        if self._left is not None:
            self._left -= part.left
        self.head_sent = True
        self._send(head, True)

    def _send_first(self, block: bytes, length: int | None) -> None:
        if self._announced is None:
            raise AssertionError("the application sent data before it called start_response")
        data = self._head(self._announced, length) + self._framed(block)
        self.head_sent = True
        self._send(data, self.is_complete)

    def _send_block(self, block: bytes) -> None:
        data = self._framed(block)
        if data:
            self._send(data, self.is_complete)

    @property
    def is_complete(self) -> bool:
        """Has everything been sent that the head promised?"""
        return self.head_sent and (self._bodiless or self._left == 0 or self._is_ended)

    def _framed(self, block: bytes) -> bytes:
        if self._bodiless or not block:
            return b""
        if self._left is not None:
            if len(block) > self._left:
                # Row R9: no part of a block that is too long.
                raise ValueError("the application sent more than its Content-Length")
            self._left -= len(block)
            return block
        return b"%x\r\n%b\r\n" % (len(block), block) if self._chunked else block

    def _head(self, announced: Announced, length: int | None) -> bytes:
        """The status line and header fields (RFC 9112, sections 6 and 9)."""
        close = announced.asks_close or not self._request.keep_alive or self._close_after()
        framing = self._framing(announced, length)
        if not self._bodiless and self._left is None and not self._chunked:
            close = True
        self.keep_alive = not close
        connection = ""
        if close:
            connection = "Connection: close\r\n"
        elif not self._request.version:
            connection = "Connection: keep-alive\r\n"
        version = "HTTP/1.1 " if self._request.version else "HTTP/1.0 "
        date = "" if announced.is_dated else _date_line()
        return f"{version}{announced.text}{date}{framing}{connection}\r\n".encode("latin-1")

    def _framing(self, announced: Announced, length: int | None) -> str:
        """Decide how the end of the body is told; the line that tells it."""
        self._left = announced.length
        if announced.is_bodiless:
            self._bodiless = True
            self._left = None
            return ""
        if self._left is None and (length or not self._bodiless):
            # To HEAD, no block says nothing about the length of what GET would get (row R7).
            self._left = length
        if self._left is not None:
            line = f"Content-Length: {self._left}\r\n"
            if self._bodiless:
                self._left = None
            return line
        if not self._bodiless and self._request.version:
            self._chunked = True
            return "Transfer-Encoding: chunked\r\n"
        return ""


class Announced(t.NamedTuple):
    """A status and header fields, checked and ready for the wire.

    `text` goes from the status code to the last field that is not the server's own business.
    """

    text: str
    length: int | None
    asks_close: bool
    is_dated: bool
    is_bodiless: bool


# Applications announce the same few heads again and again. Bounded in number and size; heads with
# a cookie are made anew, so that no secret stays here.
_announced: dict[tuple[t.Any, ...], Announced] = {}
MAX_ANNOUNCED = 512
MAX_ANNOUNCED_SIZE = 512


def announce(status: str, headers: list[tuple[str, str]]) -> Announced:
    """What `start_response` was called with, checked.

    :raises TypeError: a status or header of a wrong type.
    :raises ValueError: a status, name or value that can't go on the wire.
    """
    try:
        key = (status, *headers)
        known = _announced.get(key)
        if known is not None:
            return known
        made = _announce(status, headers)
    except TypeError as error:
        raise TypeError(
            "start_response: expected a str and a list of (str, str), "
            f"got {status!r} and {headers!r}"
        ) from error
    if len(made.text) <= MAX_ANNOUNCED_SIZE and "set-cookie" not in made.text.lower():
        if len(_announced) >= MAX_ANNOUNCED:
            _announced.clear()
        _announced[key] = made
    return made


def _announce(status: str, headers: list[tuple[str, str]]) -> Announced:
    if not _STATUS.fullmatch(status):
        raise ValueError(f"malformed status {status!r}; expected e.g. '200 OK'")
    code = status[:3]
    lines = [status]
    length: int | None = None
    asks_close = is_dated = False
    for name, value in headers:
        if not _VALUE.fullmatch(value) or not _NAME.fullmatch(name):
            raise ValueError(f"header {name!r}: {value!r} has a character not allowed")
        key = name.lower()
        if key == "content-length":
            if length is not None or not (value.isascii() and value.isdigit()):
                raise ValueError(f"malformed or repeated Content-Length {value!r}")
            length = int(value)
        elif key == "connection":
            asks_close = "close" in map(str.strip, value.lower().split(","))
        elif key == "content-type" and code == "304":
            # Nothing is sent that could be of this type (row R6).
            continue
        elif key != "transfer-encoding":
            is_dated = is_dated or key == "date"
            lines.append(f"{name}: {value}")
    lines.append("")
    return Announced("\r\n".join(lines), length, asks_close, is_dated, code in ("204", "304"))


def refusal(error: ProtocolError) -> bytes:
    """The answer to a request that no application sees."""
    body = f"{error.status}: {error}\n".encode("latin-1", "replace")
    head = (
        f"HTTP/1.1 {error.status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body


def _as_bytes(block: t.Any) -> bytes:
    if isinstance(block, bytes):
        return block
    what = f"the application sent a block of type {type(block).__name__}; expected bytes"
    if isinstance(block, int):
        what += " (to send one block of bytes, return a list that holds it)"
    raise TypeError(what)


def _is_single(blocks: t.Iterable[bytes]) -> bool:
    """PEP 3333: an iterable with a length of 1 is the whole response."""
    try:
        return len(blocks) == 1  # type: ignore[arg-type]
    except TypeError:
        return False


_date: tuple[int, str] = (0, "")


def _date_line() -> str:
    """The Date field, made once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, f"Date: {formatdate(now, usegmt=True)}\r\n")
    return _date[1]
