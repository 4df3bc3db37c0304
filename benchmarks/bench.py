"""Ours beside its peers, in one run: `make bench`.

Absolute figures on a shared machine are noise, so every round measures all servers one after the
other, a ratio is taken within its round, and the result is the median over the rounds. The client
is wrk, one thread, on the same machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import typing as t
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
PEERS = ["bjoern", "fastwsgi", "granian", "waitress", "cheroot", "gunicorn", "werkzeug"]


class Work(t.NamedTuple):
    """One row of the table."""

    name: str
    app: str
    connections: int
    peers: list[str]


WORKS = [
    Work("bare WSGI app, 32 connections", "bare", 32, PEERS),
    Work("Flask app, 32 connections", "flask", 32, PEERS),
    # One thread serves everything in bjoern and fastwsgi: 100 requests a second.
    Work("app that sleeps 10 ms, 64 connections", "sleeping", 64, PEERS[2:]),
]


@contextmanager
def running(server: str, app: str) -> t.Iterator[tuple[int, int]]:
    """A server in a process of its own; its port and pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(HERE / "serve.py"), server, app, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"{process.args} does not serve")


def wrk(port: int, connections: int, seconds: float) -> dict[str, float]:
    """Requests a second, p99 in milliseconds, and errors, as wrk sees them."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency"]
    output = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True
    ).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", output)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+)", output)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    assert rate and p99, output
    scale = {"us": 1e-3, "ms": 1, "s": 1e3}[p99[2]]
    failed = sum(map(int, errors.groups())) if errors else 0
    return {
        "rate": float(rate[1]),
        "p99": float(p99[1]) * scale,
        "errors": failed + (int(bad[1]) if bad else 0),
    }


def measure(work: Work, server: str, seconds: float) -> dict[str, float]:
    with running(server, work.app) as (port, _):
        wrk(port, work.connections, 1)
        return wrk(port, work.connections, seconds)


def throughput(work: Work, rounds: int, seconds: float) -> dict[str, t.Any]:
    """All rounds of one row: rates, and ours as a ratio to each peer."""
    rates: dict[str, list[float]] = {server: [] for server in ["ours", *work.peers]}
    for number in range(rounds):
        # Another order each round, so that no server always comes after the same one.
        servers = list(rates)
        servers = servers[number % len(servers) :] + servers[: number % len(servers)]
        for server in servers:
            result = measure(work, server, seconds)
            rates[server].append(result["rate"])
            print(f"{work.name}, round {number + 1}: {server} {result}", file=sys.stderr)
    ratios = {
        peer: statistics.median(a / b for a, b in zip(rates["ours"], rates[peer], strict=True))
        for peer in work.peers
    }
    return {
        "work": work.name,
        "rates": {server: statistics.median(values) for server, values in rates.items()},
        "ratios": ratios,
    }


def slow_among_fast(rounds: int, seconds: float) -> dict[str, t.Any]:
    """p99 of fast requests with one request of 100 ms a second, over p99 without."""
    ratios, calm, busy = [], [], []
    for _ in range(rounds):
        with running("ours", "mixed") as (port, _pid):
            wrk(port, 32, 1)
            calm.append(wrk(port, 32, seconds)["p99"])
            stop = threading.Event()
            thread = threading.Thread(target=ask_slowly, args=(port, stop))
            thread.start()
            busy.append(wrk(port, 32, seconds)["p99"])
            stop.set()
            thread.join()
        ratios.append(busy[-1] / calm[-1])
    return {
        "calm": statistics.median(calm),
        "busy": statistics.median(busy),
        "ratio": statistics.median(ratios),
    }


def ask_slowly(port: int, stop: threading.Event) -> None:
    while not stop.wait(1):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            while sock.recv(4096):
                pass


def idle_memory(count: int) -> float:
    """KiB that one idle connection costs, after a request on it."""
    with running("ours", "bare") as (port, pid):
        wrk(port, 32, 1)
        before = resident(pid)
        socks = []
        try:
            for _ in range(count):
                sock = socket.create_connection(("127.0.0.1", port))
                socks.append(sock)
                sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            for sock in socks:
                assert sock.recv(4096)
            return (resident(pid) - before) / count
        finally:
            for sock in socks:
                sock.close()


def resident(pid: int) -> int:
    """Resident memory of a process in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1])


def table(results: dict[str, t.Any]) -> str:
    """The results as markdown."""
    lines = ["| work | " + " | ".join(["ours, requests/s", *PEERS]) + " |"]
    lines.append("|---" * (len(PEERS) + 2) + "|")
    for row in results["throughput"]:
        cells = [f"{row['ratios'][peer]:.2f} x" if peer in row["ratios"] else "" for peer in PEERS]
        lines.append(f"| {row['work']} | {row['rates']['ours']:,.0f} | " + " | ".join(cells) + " |")
    sleeping = results["throughput"][-1]["rates"]["ours"] / 3200
    slow = results["slow"]
    lines += [
        "",
        "| work | result | goal |",
        "|---|---|---|",
        f"| app that sleeps 10 ms: share of threads / latency | {sleeping:.0%} | 90 % |",
        "| one 100 ms request a second among fast ones: p99 with / without | "
        f"{slow['busy']:.2f} / {slow['calm']:.2f} ms = {slow['ratio']:.2f} x | at most 2 x |",
        f"| 10,000 idle connections: memory of each | {results['idle']:.1f} KiB | 6 KiB |",
    ]
    return "\n".join(lines)


def plot(results: dict[str, t.Any], path: Path) -> None:
    """Throughput as ratios to ours, one panel a row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = results["throughput"]
    figure, panels = plt.subplots(1, len(rows), figsize=(4 * len(rows), 3.2))
    for panel, row in zip(panels, rows, strict=True):
        names = ["ours", *row["ratios"]]
        values = [1.0, *(1 / ratio for ratio in row["ratios"].values())]
        pairs = sorted(zip(values, names, strict=True))
        colours = ["#2c6fbb" if name == "ours" else "#b8c4d0" for _, name in pairs]
        panel.barh([name for _, name in pairs], [value for value, _ in pairs], color=colours)
        panel.axvline(1, color="#2c6fbb", linewidth=0.8)
        panel.set_title(row["work"], fontsize=9)
        panel.set_xlabel("requests/s, ours = 1", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--plot", type=Path, help="write the plot to this PNG")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    results = {
        "throughput": [throughput(work, options.rounds, options.seconds) for work in WORKS],
        "slow": slow_among_fast(options.rounds, max(options.seconds, 4)),
        "idle": idle_memory(10_000),
    }
    today = datetime.date.today().isoformat()
    print(f"{today}, Python {platform.python_version()}, {platform.machine()}, 2 cores\n")
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
