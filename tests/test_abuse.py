"""Hostile clients, all at once, while one honest client measures how long it waits."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import statistics
import sys
import threading
import time
import typing as t
from pathlib import Path

import pytest
import trustme
from conftest import Client, Live, wait_until

SECONDS = float(os.environ.get("ABUSE_SECONDS", "9"))

PROGRAM = """
import sys, threading
from flask_graceful import Server
LARGE = b"x" * 5_000_000
PIECE = b"x" * 100_000

def app(environ, start_response):
    if environ["PATH_INFO"] == "/large":
        body = LARGE
    elif environ["PATH_INFO"] == "/pieces":
        start_response("200 OK", [])
        return (PIECE for _ in range(50))
    elif environ["PATH_INFO"] == "/upload":
        body = b"%d" % len(environ["wsgi.input"].read())
    else:
        body = b"hello"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

server = Server("127.0.0.1:0", app)
import socket
plain, tls = (socket.create_server(("127.0.0.1", 0), backlog=1000) for _ in range(2))
threading.Thread(target=server.serve_tls, args=(tls, *sys.argv[1:3])).start()
threading.Thread(target=server.serve, args=(plain,)).start()
print("ports", plain.getsockname()[1], tls.getsockname()[1], flush=True)
# Since Python 3.12 a program whose main thread has ended starts no other threads.
threading.Event().wait()
"""


class Attack:
    """500 dripping heads, 100 silent connections, 50 + 10 clients that never read, 40 withheld
    bodies, 20 silent handshakes, garbage at 500 connections a second, resets at every moment.

    In a process of its own, so that its interpreter lock is not the honest client's.
    """

    def __init__(self, port: int, tls_port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._tls_address = ("127.0.0.1", tls_port)
        self._kept: list[socket.socket] = []

    def run(self, seconds: float) -> None:
        dripping = [self._connect(b"GET / HTTP/1.1\r\nX: ") for _ in range(500)]
        self._kept += [self._connect(b"") for _ in range(100)]
        self._kept += [self._connect(_get("/large")) for _ in range(50)]
        self._kept += [self._connect(_get("/pieces")) for _ in range(10)]
        body = b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"
        self._kept += [self._connect(body) for _ in range(40)]
        self._kept += [self._connect(b"", self._tls_address) for _ in range(20)]
        print("attacking", flush=True)
        began = time.monotonic()
        for number in range(int(seconds * 500)):
            self._garbage()
            if number % 10 == 0:
                self._reset()
            with contextlib.suppress(OSError):
                dripping[number % 500].send(b"x")
            time.sleep(max(0.0, began + number / 500 - time.monotonic()))

    def _connect(self, data: bytes, address: t.Any = None) -> socket.socket:
        sock = socket.create_connection(address or self._address)
        if data:
            sock.send(data)
        return sock

    def _garbage(self) -> None:
        with self._connect(random.randbytes(random.randrange(1, 300))) as sock:
            if random.random() < 0.5:
                sock.send(b"\r\n\r\n")

    def _reset(self) -> None:
        for data in (b"GET / HT", _get("/large"), _get("/pieces"), _get("/") * 3):
            sock = self._connect(data)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def honest(port: int, seconds: float) -> list[float]:
    """Latencies of one client that asks every 5 ms, on a fresh connection each tenth time."""
    latencies = []
    end = time.monotonic() + seconds
    tick = threading.Event()
    client = Client(("127.0.0.1", port))
    while time.monotonic() < end:
        if len(latencies) % 10 == 0:
            client.sock.close()
            client = Client(("127.0.0.1", port))
        began = time.monotonic()
        assert client.get()[2] == b"hello"
        latencies.append(time.monotonic() - began)
        tick.wait(0.005)
    client.sock.close()
    return latencies


def p99(latencies: list[float]) -> float:
    """The median of five parts' p99: a burst of something else on the machine hits one of them."""
    size = len(latencies) // 5
    parts = [latencies[start : start + size] for start in range(0, 5 * size, size)]
    return statistics.median(statistics.quantiles(part, n=100)[98] for part in parts)


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def spare_descriptors(pid: int) -> int:
    """Descriptors beyond the one that each thread of the crew is measured by."""
    return len(os.listdir(f"/proc/{pid}/fd")) - threads_of(pid)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
@pytest.mark.timeout(200)
@pytest.mark.alone
def test_an_honest_client_is_served_while_others_attack(
    live: t.Callable[..., Live], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {"PYTHONPATH": str(Path(__file__).parent)}
    files = [str(tmp_path / name) for name in ("cert.pem", "key.pem")]
    certificate = trustme.CA().issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(files[0])
    certificate.private_key_pem.write_to_path(files[1])
    (tmp_path / "program.py").write_text(PROGRAM)
    one = live("program.py", *files, cwd=tmp_path, env=env)
    port, tls_port = map(int, one.wait_for(r"ports (\d+) (\d+)").groups())
    honest(port, 1)
    spare = spare_descriptors(one.pid)

    # The calm value is taken while the same attack runs against another server: what the machine
    # does to everybody is not this server's doing.
    decoy = live("program.py", *files, cwd=tmp_path, env=env)
    ports = decoy.wait_for(r"ports (\d+) (\d+)").groups()
    attack = (str(Path(__file__)), *ports, str(SECONDS / 3))
    attacker = live(*attack, env=env)
    attacker.wait_for("attacking")
    calm = honest(port, SECONDS / 3)
    attacker.end()
    decoy.end()

    attack = (str(Path(__file__)), str(port), str(tls_port), str(SECONDS))
    attacker = live(*attack, env=env)
    attacker.wait_for("attacking")
    attacked = honest(port, SECONDS)
    attacker.end()
    with capsys.disabled():
        print(
            f"\np99 {p99(attacked) * 1e3:.2f} ms attacked, {p99(calm) * 1e3:.2f} ms calm, "
            f"{len(attacked)} requests, longest {max(attacked) * 1e3:.0f} ms"
        )
    assert p99(attacked) < 3 * p99(calm)
    # Afterwards nothing is left over: no descriptor, and no more threads than it may have.
    wait_until(lambda: spare_descriptors(one.pid) <= spare, "descriptors left over", 30)
    honest(port, 1)
    # Main, two in serve(), the pacemaker; and the crew.
    assert threads_of(one.pid) <= 32 + 4
    assert "Traceback" not in one.log, one.log


if __name__ == "__main__":
    Attack(int(sys.argv[1]), int(sys.argv[2])).run(float(sys.argv[3]))
