"""A gibibyte in either direction: the memory of a real server process stays what it was."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Live

GIB = 1 << 30
MIB = 1 << 20
MAX_GROWTH_KIB = 32 * 1024

PROGRAM = """
import os
from flask_graceful import GracefulServer, ServerClosed

def blocks():
    block = bytes(1 << 20)
    for _ in range(1024):
        yield block

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/upload":
        count = 0
        while block := environ["wsgi.input"].read(65536):
            count += len(block)
        answer = [str(count).encode()]
    elif path == "/file":
        answer = environ["wsgi.file_wrapper"](open("sparse", "rb"))
    elif path == "/blocks":
        answer = blocks()
    else:
        answer = [b"here"]
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return answer

server = GracefulServer(":0", app)

@server.before_begin
def log_address(addr):
    print("Serving HTTP on", addr, flush=True)

try:
    server.listen_and_serve()
except ServerClosed:
    pass
"""


class Measured:
    """A server process, a client of it, and the most memory that the process has had."""

    def __init__(self, live: Live) -> None:
        self._proc = Path(f"/proc/{live.pid}")
        self.client = Client(("127.0.0.1", live.port))
        # What any first request needs is not the large one's doing.
        assert self.client.get()[2] == b"here"
        # The peak so far is forgotten (proc(5)).
        (self._proc / "clear_refs").write_text("5")
        self._before = self._peak()

    def growth(self) -> int:
        """KiB by which the most exceeds what there was at the start."""
        return self._peak() - self._before

    def _peak(self) -> int:
        match = re.search(r"VmHWM:\s+(\d+) kB", (self._proc / "status").read_text())
        assert match
        return int(match[1])


@pytest.fixture
def measured(tmp_path: Path, live: t.Callable[..., Live]) -> t.Iterator[Measured]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells the most memory that a process has had")
    (tmp_path / "program.py").write_text(PROGRAM)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(GIB)
    one = Measured(live("program.py", cwd=tmp_path))
    with one.client:
        yield one


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_upload_of_a_gibibyte_costs_no_memory(measured: Measured, framing: str) -> None:
    block = bytes(MIB)
    if framing == "chunked":
        block = b"%x\r\n%b\r\n" % (MIB, block)
        field, end = "Transfer-Encoding: chunked", b"0\r\n\r\n"
    else:
        field, end = f"Content-Length: {GIB}", b""
    client = measured.client
    client.send(f"POST /upload HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n".encode())
    for _ in range(GIB // MIB):
        client.send(block)
    assert client.send(end).response()[2] == str(GIB).encode()
    assert measured.growth() < MAX_GROWTH_KIB


@pytest.mark.parametrize("path", ["/file", "/blocks"])
def test_a_download_of_a_gibibyte_costs_no_memory(measured: Measured, path: str) -> None:
    client = measured.client
    client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    head = client._until(b"\r\n\r\n")
    # A block's framing is its size, two line ends, and the same for the last, empty one.
    chunked = b"Transfer-Encoding: chunked" in head
    assert chunked is (path == "/blocks")
    left = GIB + (1024 * len(b"100000\r\n\r\n") + len(b"0\r\n\r\n") if chunked else 0)
    left -= len(client.buffer)
    client.buffer.clear()
    buffer = bytearray(MIB)
    while left > 0:
        count = client.sock.recv_into(buffer)
        assert count, f"closed {left} bytes too early"
        left -= count
    assert left == 0
    assert measured.growth() < MAX_GROWTH_KIB
    assert client.get()[2] == b"here"
