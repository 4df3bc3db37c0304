"""Draws docs/restart.svg: what clients notice of three restarts.

    python benchmarks/restart_picture.py [FILE]

Starts a small application on `GracefulServer`, which answers with its process id. Clients ask it
without a pause, each on one connection, which it keeps, while it gets SIGHUP three times. Each
request becomes a dot; the figures in the picture are those of this run.
"""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CLIENTS = 16
# Seconds that the application takes for an answer.
APP_TIME = 0.005
SECONDS = 6.0
RESTARTS = (1.5, 3.0, 4.5)
# Seconds a client waits, and seconds the server may take to start or to end.
TIMEOUT = 10.0
TARGET = Path(__file__).parent.parent / "docs/restart.svg"

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
SERVER = """
import os, sys, time
from flask_graceful import GracefulServer, ServerClosed

def app(environ, start_response):
    time.sleep(float(sys.argv[1]))
    body = b"%d\\n" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

server = GracefulServer("127.0.0.1:0", app)

@server.before_begin
def log_address(addr):
    print("pid", os.getpid(), "address", addr, file=sys.stderr, flush=True)

try:
    server.listen_and_serve()
except ServerClosed:
    pass
"""


class Request(NamedTuple):
    """When a request began and how long it took, in seconds; who answered, or why nobody did."""

    begun: float
    latency: float
    pid: int | None
    error: str


class Service:
    """The server, and the processes that follow it."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.port = 0
        self._news = threading.Condition()
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(APP_TIME)],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, pids: int) -> None:
        """Wait until so many processes have begun to serve."""
        with self._news:
            if not self._news.wait_for(lambda: len(self.pids) >= pids, TIMEOUT):
                raise RuntimeError("the server did not start:\n" + "".join(self._lines))

    def restart(self) -> None:
        os.kill(self.pids[-1], signal.SIGHUP)

    def stop(self) -> None:
        """Stop who serves; the log ends when the last process does."""
        try:
            os.kill(self.pids[-1] if self.pids else self._process.pid, signal.SIGTERM)
            self._reader.join(TIMEOUT)
        finally:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._reader.join()
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            for line in stderr:
                with self._news:
                    self._lines.append(line)
                    if match := re.match(r"pid (\d+) address \S+:(\d+)$", line):
                        self.pids.append(int(match[1]))
                        self.port = int(match[2])
                    self._news.notify_all()


@contextmanager
def running_service() -> Iterator[Service]:
    service = Service()
    try:
        service.wait_for(1)
        yield service
    finally:
        service.stop()


class Client:
    """Asks on one connection; after an error, on another one."""

    def __init__(self, port: int) -> None:
        self.connects = 0
        self._port = port
        self._sock: socket.socket | None = None

    def ask(self) -> int:
        """The process id that answers."""
        if self._sock is None:
            self._sock = socket.create_connection(("127.0.0.1", self._port), TIMEOUT)
            self.connects += 1
        self._sock.sendall(REQUEST)
        response = b""
        while not response.endswith(b"\n"):
            data = self._sock.recv(4096)
            if not data:
                raise ConnectionError(f"closed after {response[:30]!r}")
            response += data
        head, _, body = response.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise OSError(f"answer {head[:30]!r}")
        return int(body)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


class Run(NamedTuple):
    """The requests, the moments of the restarts, the processes in the order of their start, and how
    many connections were opened."""

    requests: list[Request]
    restarts: list[float]
    pids: list[int]
    connects: int


def measure() -> Run:
    requests: list[Request] = []
    restarts: list[float] = []
    with running_service() as service:
        start = time.monotonic()

        def work(client: Client) -> None:
            while (begun := time.monotonic() - start) < SECONDS:
                pid, error = None, ""
                try:
                    pid = client.ask()
                except (OSError, ValueError) as reason:
                    error = type(reason).__name__
                    client.close()
                requests.append(Request(begun, time.monotonic() - start - begun, pid, error))
            client.close()

        clients = [Client(service.port) for _ in range(CLIENTS)]
        threads = [threading.Thread(target=work, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for count, moment in enumerate(RESTARTS, 2):
            time.sleep(max(start + moment - time.monotonic(), 0))
            restarts.append(time.monotonic() - start)
            service.restart()
            service.wait_for(count)
        for thread in threads:
            thread.join()
        connects = sum(client.connects for client in clients)
        return Run(requests, restarts, list(service.pids), connects)


# The picture, in its own units; the frame is the plotted part.
WIDTH, HEIGHT = 800, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 780, 92, 326
BACKGROUND, INK, FAINT, ALARM = "#fbfaf7", "#1f2430", "#6b7280", "#d6002a"
COLOURS = ("#2f6fb4", "#d9822b", "#2a8f6d", "#8a56ac")
TICKS = [base * 10**power for power in range(-5, 2) for base in (1, 2, 5)]
# Dots of answered requests that are drawn; failed ones all are.
DOTS = 3000


def draw(run: Run) -> str:
    requests, restarts, pids, _ = run
    answered = sorted((r for r in requests if r.pid), key=lambda r: r.begun)
    failed = [r for r in requests if not r.pid]
    step = max(1, math.ceil(len(answered) / DOTS))
    # The highest line under all dots.
    low = max((tick for tick in TICKS if tick < min(r.latency for r in requests)), default=TICKS[0])
    high = max(r.latency for r in requests) * 1.3

    def x(seconds: float) -> float:
        return LEFT + (RIGHT - LEFT) * seconds / SECONDS

    def y(seconds: float) -> float:
        share = math.log(max(seconds, low) / low) / math.log(high / low)
        return BOTTOM - (BOTTOM - TOP) * share

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="13">',
        f"<title>{summary(run)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{BACKGROUND}"/>',
        text(20, 32, "A restart that nobody noticed", size=19, weight=600),
        text(20, 53, summary(run), FAINT),
    ]
    note = f"latency; the application itself takes {APP_TIME * 1000:g} ms; "
    note += f"a dot for every {step} requests" if step > 1 else "a dot for every request"
    parts.append(text(LEFT, BOTTOM + 38, note, FAINT, size=12))
    parts += axes(x, y, low, high)
    for colour, pid in zip(generations(pids), pids, strict=True):
        dots = [f"M{x(r.begun):.1f} {y(r.latency):.1f}h0" for r in answered[::step] if r.pid == pid]
        parts.append(
            f'<path d="{"".join(dots)}" stroke="{colour}" stroke-width="3.4" '
            'stroke-linecap="round" stroke-opacity=".5" fill="none"/>'
        )
    for moment in restarts:
        parts.append(
            f'<path d="M{x(moment):.1f} {TOP - 6}V{BOTTOM}" stroke="{INK}" stroke-width="1.2" '
            'stroke-dasharray="4 3"/>'
        )
        parts.append(text(x(moment), TOP - 11, "kill -1", INK, "middle", mono=True, size=12))
    for r in failed:
        cross = f"M{x(r.begun) - 4:.1f} {y(r.latency) - 4:.1f}l8 8m0 -8l-8 8"
        parts.append(f'<path d="{cross}" stroke="{ALARM}" stroke-width="2.2" fill="none"/>')
    parts += legend(answered, pids)
    return "\n".join([*parts, "</svg>\n"])


def summary(run: Run) -> str:
    failed = sum(not r.pid for r in run.requests)
    slowest = max(r.latency for r in run.requests) * 1000
    return (
        f"{len(run.restarts)} restarts, {len(run.requests):,} requests of {CLIENTS} clients: "
        f"{failed} failed, {run.connects} connections opened in all, slowest {slowest:.0f} ms"
    )


def axes(x: object, y: object, low: float, high: float) -> list[str]:
    assert callable(x) and callable(y)
    parts = []
    for tick in TICKS:
        if low <= tick <= high:
            parts.append(f'<path d="M{LEFT} {y(tick):.1f}H{RIGHT}" stroke="{INK}" opacity=".1"/>')
            label = f"{tick * 1000:g} ms" if tick < 1 else f"{tick:g} s"
            parts.append(text(LEFT - 8, y(tick) + 4, label, FAINT, "end", size=12))
    parts.append(f'<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="{INK}" opacity=".5"/>')
    for second in range(int(SECONDS) + 1):
        parts.append(text(x(second), BOTTOM + 18, f"{second} s", FAINT, "middle", size=12))
    return parts


def legend(answered: list[Request], pids: list[int]) -> list[str]:
    parts = []
    counts = Counter(r.pid for r in answered)
    width = (RIGHT - LEFT) / len(pids)
    for number, (colour, pid) in enumerate(zip(generations(pids), pids, strict=True)):
        left = LEFT + number * width
        parts.append(f'<circle cx="{left + 6:.1f}" cy="{HEIGHT - 20}" r="5" fill="{colour}"/>')
        label = f"pid {pid}, {counts[pid]:,} answers"
        parts.append(text(left + 16, HEIGHT - 15.8, label, size=12))
    return parts


def generations(pids: list[int]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(pids))]


def text(
    x: float,
    y: float,
    content: str,
    colour: str = INK,
    anchor: str = "start",
    size: int = 13,
    weight: int = 400,
    mono: bool = False,
) -> str:
    family = ' font-family="ui-monospace, Menlo, monospace"' if mono else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" '
        f'font-size="{size}" font-weight="{weight}"{family}>{content}</text>'
    )


def main() -> int:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    run = measure()
    target.write_text(draw(run), encoding="utf-8")
    print(summary(run))
    for error, count in Counter(r.error for r in run.requests if not r.pid).items():
        print(f"  {error}: {count}")
    return 1 if any(not r.pid for r in run.requests) else 0


if __name__ == "__main__":
    sys.exit(main())
