"""`wsgi.file_wrapper` over real sockets: what goes out by sendfile, what has to be read, and that
nobody waits for a slow client and nothing stays open."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import tempfile
import threading
import typing as t
from pathlib import Path
from wsgiref.validate import validator

import pytest
from conftest import Client, Running, wait_until
from flask import Flask, send_file
from flask_graceful.files import FileWrapper
from flask_graceful.ranges import FIRST_SIZE
from talk import TEXT, Headers, ask, is_reused, raw, request
from test_tls import Files, TLSRunning

Start = t.Callable[..., Running]
MANY = 3 * 1024 * 1024 + 5
# More than any socket's buffers hold, and no block of a disk: the file has no content but zeros.
SPARSE = 256 * 1024 * 1024


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(MANY)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    one = tmp_path / "file"
    one.write_bytes(content)
    return one


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    one = tmp_path / "sparse"
    with one.open("wb") as file:
        file.truncate(SPARSE)
    return one


@pytest.fixture
def spliced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each call of the system's sendfile has sent."""
    sizes: list[int] = []
    sendfile = os.sendfile

    def counting(*arguments: int) -> int:
        sent = sendfile(*arguments)
        sizes.append(sent)
        return sent

    monkeypatch.setattr(os, "sendfile", counting)
    return sizes


class Sender:
    """An application that answers with a file, and keeps it for the test to look at.

    :param make: the file, opened anew for each request.
    """

    def __init__(
        self, make: t.Callable[[], t.Any], headers: Headers = TEXT, status: str = "200 OK"
    ) -> None:
        self._make = make
        self._answer = status, headers
        self.files: list[t.Any] = []

    def __call__(self, environ: t.Any, start_response: t.Any) -> t.Any:
        status, headers = self._answer
        if environ["PATH_INFO"] == "/small":
            start_response(status, list(TEXT))
            return [b"small"]
        start_response(status, list(headers))
        self.files.append(self._make())
        return environ["wsgi.file_wrapper"](self.files[-1])


def length(count: int) -> Headers:
    return [*TEXT, ("Content-Length", str(count))]


def is_open(path: Path) -> bool:
    """Has this process a descriptor of the file?"""
    for name in os.listdir("/proc/self/fd"):
        # One may be closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{name}") == str(path):
                return True
    return False


def at(path: Path, offset: int, buffering: int = -1) -> t.BinaryIO:
    file = t.cast("t.BinaryIO", path.open("rb", buffering))
    file.read(1)
    file.seek(offset)
    return file


@pytest.mark.parametrize("size", [0, 1, FIRST_SIZE, FIRST_SIZE + 1, MANY])
def test_a_file_is_sent_whole_with_its_length(
    running: Start, path: Path, content: bytes, size: int, spliced: list[int]
) -> None:
    path.write_bytes(content[:size])
    app = Sender(lambda: path.open("rb"))
    with running(app).connect() as client:
        for _ in range(2):
            code, headers, body = client.get()
            assert (code, headers["content-length"]) == (200, str(size))
            assert "transfer-encoding" not in headers
            assert body == content[:size]
    # The first block leaves with the head; the rest is never read.
    wait_until(lambda: sum(spliced) == 2 * max(0, size - FIRST_SIZE), "the rest by sendfile")
    wait_until(lambda: all(file.closed for file in app.files), "the files closed")


@pytest.mark.parametrize("buffering", [-1, 0])
def test_a_file_is_sent_from_its_position(
    running: Start, path: Path, content: bytes, buffering: int
) -> None:
    one = running(Sender(lambda: at(path, 100_001, buffering)))
    _, headers, body = ask(one, request())
    assert headers["content-length"] == str(MANY - 100_001)
    assert body == content[100_001:]


def test_a_block_that_was_taken_from_the_wrapper_is_not_sent_again(
    running: Start, path: Path, content: bytes
) -> None:
    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        start_response("200 OK", list(TEXT))
        wrapper = environ["wsgi.file_wrapper"](path.open("rb"), 1000)
        assert next(wrapper) == content[:1000]
        return wrapper

    assert ask(running(app), request())[2] == content[1000:]


def test_what_was_written_to_a_file_is_sent(running: Start, content: bytes) -> None:
    def make() -> t.Any:
        file = tempfile.TemporaryFile()
        file.write(content[:100_000])
        file.seek(50_000)
        file.write(b"x")
        file.seek(40_000)
        return file

    expected = content[40_000:50_000] + b"x" + content[50_001:100_000]
    assert ask(running(Sender(make)), request())[2] == expected


@pytest.mark.parametrize("kind", ["file", "BytesIO"])
@pytest.mark.parametrize("count", [0, 7, FIRST_SIZE, 100_000])
def test_a_content_length_shorter_than_the_file_ends_it(
    running: Start, path: Path, content: bytes, count: int, kind: str
) -> None:
    makes: dict[str, t.Any] = {"file": lambda: path.open("rb"), "BytesIO": lambda: io.BytesIO(body)}
    body = content
    with running(Sender(makes[kind], length(count))).connect() as client:
        for _ in range(2):
            _, headers, got = client.get()
            assert headers["content-length"] == str(count)
            assert got == content[:count]


@pytest.mark.parametrize("size", [10, 100_000])
def test_R8_a_file_shorter_than_its_content_length_ends_the_connection(
    running: Start, path: Path, content: bytes, size: int
) -> None:
    path.write_bytes(content[:size])
    data = raw(running(Sender(lambda: path.open("rb"), length(size + 1))), request() * 2)
    head, _, body = data.partition(b"\r\n\r\n")
    assert f"Content-Length: {size + 1}".encode() in head
    assert body == content[:size]


@pytest.mark.parametrize("connection", ["", "Connection: keep-alive\r\n"])
def test_http_1_0_gets_a_file_with_its_length(
    running: Start, path: Path, content: bytes, connection: str
) -> None:
    one = running(Sender(lambda: path.open("rb")))
    with one.connect() as client:
        _, headers, body = client.send(request("GET", "1.0", connection)).response()
        assert headers["content-length"] == str(MANY)
        assert body == content
        assert is_reused(client) is bool(connection)


@pytest.mark.parametrize("headers", [TEXT, length(MANY)])
def test_R7_head_gets_no_byte_of_a_file(
    running: Start, path: Path, headers: Headers, spliced: list[int]
) -> None:
    app = Sender(lambda: path.open("rb"), headers)
    with running(app).connect() as client:
        _, got, _ = client.send(request("HEAD")).response(head_only=True)
        assert got.get("content-length") == dict(headers).get("Content-Length")
        assert client.get("/small")[2] == b"small"
    assert app.files[0].closed and not spliced


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_R6_no_byte_of_a_file_follows_204_and_304(
    running: Start, path: Path, status: str, spliced: list[int]
) -> None:
    app = Sender(lambda: path.open("rb"), status=status)
    with running(app).connect() as client:
        for _ in range(2):
            code, headers, _ = client.get()
            assert (code, "content-length" in headers) == (int(status[:3]), False)
    assert app.files[0].closed and not spliced


# Files that have to be read.


def of_pipe() -> t.BinaryIO:
    end, other = os.pipe()
    os.write(other, b"piped")
    os.close(other)
    return os.fdopen(end, "rb")


class Reader:
    """What PEP 3333 asks of a file, and nothing else."""

    def __init__(self) -> None:
        self._blocks = [b"read", b"er"]

    def read(self, size: int) -> bytes:
        return self._blocks.pop(0) if self._blocks else b""


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _: io.BytesIO(b"bytes"), b"bytes"),
        (lambda _: of_pipe(), b"piped"),
        (lambda _: Reader(), b"reader"),
        # It has a descriptor, of a file with other content.
        (lambda path: gzip.open(path), b"packed" * 10_000),
    ],
    ids=["BytesIO", "pipe", "reader", "gzip"],
)
def test_what_is_no_plain_file_is_read(
    running: Start, path: Path, make: t.Any, expected: bytes, spliced: list[int]
) -> None:
    path.write_bytes(gzip.compress(b"packed" * 10_000))
    app = Sender(lambda: make(path))
    assert ask(running(app), request())[2] == expected
    wait_until(lambda: getattr(app.files[0], "closed", True), "the file closed")
    assert not spliced


@pytest.mark.parametrize("name", ["/proc/self/comm", "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_a_file_whose_size_is_not_true_is_read(running: Start, name: str) -> None:
    """The size of the one is 0, that of the other 4096."""
    if not os.path.exists(name):
        pytest.skip(f"this system has no {name}")
    # /proc/self/comm is the process's name, whichever thread asks.
    expected = Path(name).read_bytes()
    assert ask(running(Sender(lambda: open(name, "rb"))), request())[2] == expected


def test_a_file_of_text_is_a_mistake(
    running: Start, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("text")
    app = Sender(lambda: path.open("r"))
    assert ask(running(app), request())[0] == 500
    assert "sent a block of type str; expected bytes" in caplog.text
    assert app.files[0].closed


def test_a_file_before_start_response_is_a_mistake(
    running: Start, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = running(lambda environ, _: environ["wsgi.file_wrapper"](path.open("rb")))
    assert ask(one, request())[0] == 500
    assert "before it called start_response" in caplog.text
    wait_until(lambda: not is_open(path), "the file closed")


def test_a_file_after_write_follows_what_was_written(
    running: Start, path: Path, content: bytes
) -> None:
    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        start_response("200 OK", length(10))(b"12345")
        return environ["wsgi.file_wrapper"](path.open("rb"))

    assert ask(running(app), request())[2] == b"12345" + content[:5]


@pytest.mark.parametrize("wrap", [validator, lambda app: lambda *a: (part for part in app(*a))])
def test_middleware_may_use_the_wrapper_as_an_iterable(
    running: Start, path: Path, content: bytes, wrap: t.Any, spliced: list[int]
) -> None:
    app = Sender(lambda: path.open("rb"))
    assert ask(running(wrap(app)), request())[2] == content
    assert not spliced
    app.files[0].close()


@pytest.mark.parametrize("why", ["missing", "refused"])
def test_a_file_is_read_where_the_system_does_not_send_it(
    running: Start, path: Path, content: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: int) -> int:
        raise OSError(errno.EINVAL, "such a file can't be sent")

    if why == "missing":
        monkeypatch.delattr(os, "sendfile")
    else:
        monkeypatch.setattr(os, "sendfile", refused)
    with running(Sender(lambda: path.open("rb"))).connect() as client:
        for _ in range(2):
            assert client.get()[2] == content


# Slow clients, clients that leave, files that change.


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(params=["plain", "tls"])
def serve(request: t.Any, running: Start, certified: Files) -> Start:
    """Start servers with one thread for all clients, plain and over TLS."""
    options = {"kind": TLSRunning, "files": certified} if request.param == "tls" else {}
    return lambda app, **more: running(app, threads=1, **options, **more)


def begin(client: Client) -> None:
    """Ask for the file and take its head, no more."""
    client.send(request())._until(b"\r\n\r\n")


def test_nothing_is_spliced_past_tls(
    running: Start, path: Path, content: bytes, certified: Files, spliced: list[int]
) -> None:
    served = running(Sender(lambda: path.open("rb")), kind=TLSRunning, files=certified)
    with served.connect() as client:
        for _ in range(2):
            assert client.get()[2] == content
    assert not spliced


def test_no_thread_waits_for_who_does_not_take_a_file(
    serve: Start, path: Path, sparse: Path, content: bytes
) -> None:
    with sparse.open("r+b") as file:
        file.write(content)
        file.truncate(32 * 1024 * 1024)
    app = Sender(lambda: sparse.open("rb"))
    served = serve(app)
    with served.connect() as slow, served.connect() as other:
        slow.send(request())
        wait_until(lambda: app.files, "the file asked for")
        assert other.get("/small")[2] == b"small"
        # The application's file is closed, and the rest still comes.
        assert app.files[0].closed
        assert is_open(sparse)
        _, _, body = slow.response()
        assert body == content + bytes(32 * 1024 * 1024 - MANY)
        wait_until(lambda: not is_open(sparse), "the file closed")
        assert slow.get("/small")[2] == b"small"


def test_others_get_their_turn_beside_a_fast_client(
    running: Start, sparse: Path, spliced: list[int]
) -> None:
    served = running(Sender(lambda: sparse.open("rb")), threads=1)
    with served.connect() as fast, served.connect() as other:
        begin(fast)
        got = [len(fast.buffer)]
        buffer = bytearray(1 << 20)

        def take() -> None:
            while got[0] < SPARSE:
                got[0] += fast.sock.recv_into(buffer)

        taker = threading.Thread(target=take)
        taker.start()
        assert other.get("/small")[2] == b"small"
        left = SPARSE - got[0]
        taker.join(20)
        assert not taker.is_alive()
    assert left > SPARSE // 4
    assert max(spliced) <= 1 << 20


@pytest.mark.parametrize("how", ["leaves", "server closes", "write_timeout"])
def test_a_file_is_closed_when_its_client_is_gone(serve: Start, sparse: Path, how: str) -> None:
    served = serve(
        Sender(lambda: sparse.open("rb")), write_timeout=0.2 if how == "write_timeout" else 0
    )
    with served.connect() as client:
        begin(client)
        if how == "leaves":
            assert is_open(sparse)
            client.sock.close()
        elif how == "server closes":
            assert is_open(sparse)
            served.server.close()
        wait_until(lambda: not is_open(sparse), "the file closed")
        wait_until(lambda: not served.server.connections(), "the connection closed")


def test_R8_a_file_that_shrinks_ends_the_connection(serve: Start, sparse: Path) -> None:
    served = serve(Sender(lambda: sparse.open("rb")))
    with served.connect() as client:
        begin(client)
        os.truncate(sparse, FIRST_SIZE)
        # Not a byte in place of what is missing.
        assert len(client.rest()) < SPARSE
        wait_until(lambda: not is_open(sparse), "the file closed")


def test_flask_sends_files_and_parts_of_them(
    running: Start, path: Path, content: bytes, spliced: list[int]
) -> None:
    app = Flask(__name__)

    @app.get("/")
    def index() -> t.Any:
        return send_file(path, mimetype="application/x-test", conditional=True)

    with running(app).connect() as client:
        code, headers, body = client.get()
        assert (code, headers["content-type"], body) == (200, "application/x-test", content)
        wait_until(lambda: sum(spliced) == MANY - FIRST_SIZE, "all but the first by sendfile")
        for first, last in [(0, 0), (0, 99_999), (1_000_000, 2_000_000), (MANY - 1, MANY - 1)]:
            code, headers, body = client.get("/", f"Range: bytes={first}-{last}\r\n")
            assert code == 206
            assert headers["content-range"] == f"bytes {first}-{last}/{MANY}"
            assert body == content[first : last + 1]
        assert client.get("/", f"Range: bytes={MANY}-\r\n")[0] == 416
        _, headers, _ = client.send(request("HEAD")).response(head_only=True)
        assert headers["content-length"] == str(MANY)
        etag = headers["etag"]
        assert client.get("/", f"If-None-Match: {etag}\r\n")[0] == 304
    wait_until(lambda: not is_open(path), "the file closed")


# The wrapper by itself.


def test_the_wrapper_gives_blocks_and_positions() -> None:
    file = io.BytesIO(b"abcdefg")
    wrapper = FileWrapper(file, 3)
    assert list(wrapper) == [b"abc", b"def", b"g"]
    assert wrapper.seekable() and wrapper.seek(5) == wrapper.tell() == 5
    assert list(wrapper.until(1)) == [b"f"]
    wrapper.close()
    assert file.closed


def test_the_wrapper_needs_no_more_than_read() -> None:
    wrapper = FileWrapper(Reader())
    assert not wrapper.seekable()
    assert b"".join(wrapper) == b"reader"
    wrapper.close()
