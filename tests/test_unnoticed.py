"""What clients see of a restart and of a stop of one process: nothing. Real signals, real load,
and no request may be lost.

The checks A to G are those by which servers with a graceful reload or stop were compared. With
UNNOTICED_RESTARTS the load of 32 and 8 clients lasts that many restarts (`make soak`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest
from conftest import ROOT, Client, Live, replace
from distance import CLIENTS, NOT_ALLOWED
from load import Connect, KeptLoad, Load
from test_tls import Files, TLSClient

WEB = """
import os, time

def app(environ, start_response):
    path = environ["PATH_INFO"]
    said = environ["wsgi.input"].read() or environ["QUERY_STRING"].encode()
    if path == "/slow":
        print("slow begins", flush=True)
        time.sleep(2)
    body = b"%d %s" % (os.getpid(), said)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


class Site:
    """The command, serving an application whose file the test may change."""

    def __init__(self, live: t.Callable[..., Live], folder: Path) -> None:
        self._live = live
        self._folder = folder
        self.write()

    def write(self, more: str = "") -> None:
        replace(self._folder / "web.py", WEB + more)

    def start(self, *flags: str) -> Live:
        flags = flags or ("--bind", "127.0.0.1:0")
        one = self._live("-m", "flask_graceful", *flags, "web:app", cwd=self._folder)
        pid_of(one)
        return one


@pytest.fixture
def site(live: t.Callable[..., Live], tmp_path: Path) -> Site:
    return Site(live, tmp_path)


def pid_of(one: Live, generation: int = 1) -> int:
    return int(one.wait_for(r"^(\d+) Serving HTTPS? on ", generation)[1])


def port_of(one: Live) -> int:
    return int(one.wait_for(r"Serving HTTPS? on .*:(\d+)$")[1])


def restart(one: Live, generation: int) -> int:
    """Have a generation replaced, and wait until it has handed everything over; its successor."""
    os.kill(pid_of(one, generation), signal.SIGHUP)
    one.wait_for(r"Serve\(\) returning", generation)
    return pid_of(one, generation + 1)


def names(answers: t.Iterable[bytes]) -> set[int]:
    """The processes that have answered."""
    return {int(answer.split()[0]) for answer in answers}


def test_users_A_clients_that_keep_their_connection_lose_nothing_in_restarts(site: Site) -> None:
    one = site.start()
    with KeptLoad(port_of(one), [0.004] * 8, ["POST"]) as load:
        for generation in range(1, 4):
            load.wait_count(load.count + 400)
            restart(one, generation)
        load.wait_count(load.count + 400)
        load.stop()
    print(f"A: {load.count} requests, {load.connects} connects, {load.failed} failed")
    assert load.failed == []
    assert (load.connects, load.said_close, load.closed_idle) == (8, 0, 0)
    assert len(load.answers) == 4


def test_users_B_a_reload_of_broken_code_changes_nothing(site: Site) -> None:
    one = site.start()
    with KeptLoad(port_of(one), [0.004] * 4) as kept, Load(port_of(one), clients=2) as fresh:
        site.write("raise LookupError('no configuration')")
        os.kill(one.pid, signal.SIGHUP)
        one.wait_for(f"{one.pid} Restart failed: .*this process goes on serving")
        assert "LookupError: no configuration" in one.log
        kept.wait_count(kept.count + 200)
        fresh.wait_count(fresh.count + 50)
        kept.stop()
        fresh.stop()
    assert kept.failed + fresh.failed == []
    assert kept.connects == 4
    assert names([*kept.answers, *fresh.answers]) == {one.pid}


def test_users_C_a_late_request_on_an_idle_connection_is_served(site: Site) -> None:
    one = site.start("--bind", "127.0.0.1:0", "--idle-grace", "10")
    address = ("127.0.0.1", port_of(one))
    with Client(address) as idle, Client(address) as silent:
        assert idle.get()[0] == 200
        os.kill(one.pid, signal.SIGTERM)
        one.wait_for("Waiting for connections")
        time.sleep(0.3)
        for late in (idle, silent):
            code, headers, body = late.get("/?late")
            assert (code, headers["connection"], body) == (200, "close", b"%d late" % one.pid)
            assert late.is_closed()
    assert one.process.wait(60) == 0


def test_users_D_an_accepted_connection_that_was_silent_is_served(site: Site) -> None:
    one = site.start("--bind", "127.0.0.1:0", "--idle-grace", "10")
    address = ("127.0.0.1", port_of(one))
    with Client(address) as silent, Client(address) as other:
        # Accepted before the other one, which was answered.
        assert other.get()[0] == 200
        os.kill(one.pid, signal.SIGTERM)
        one.wait_for("Waiting for connections")
        time.sleep(0.2)
        code, headers, body = silent.get("/?silent")
        assert (code, headers["connection"], body) == (200, "close", b"%d silent" % one.pid)
    assert one.process.wait(60) == 0


def test_users_E_a_request_in_flight_is_finished(site: Site) -> None:
    one = site.start()
    with Client(("127.0.0.1", port_of(one))) as client:
        client.send(b"GET /slow?long HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("slow begins")
        os.kill(one.pid, signal.SIGTERM)
        one.wait_for("Waiting for connections")
        code, headers, body = client.response()
        assert (code, headers["connection"], body) == (200, "close", b"%d long" % one.pid)
    assert one.process.wait(60) == 0


STOPS = 12


def dial(address: t.Any) -> Client:
    """A client that does not wait long to be let in: a connect that comes too late is answered by
    nobody for a moment, and then refused."""
    return Client(address, connect_timeout=0.5)


def test_users_F_who_was_let_in_is_served(site: Site) -> None:
    for _ in range(STOPS):
        one = site.start()
        with Load(port_of(one), clients=48, connect=dial, until_gone=True) as load:
            load.wait_count(500)
            assert load.turned_away == 0
            os.kill(one.pid, signal.SIGTERM)
            asked = load.count
            load.join()
        print(f"F: {load.count} requests, {load.count - asked} since SIGTERM, {load.failed} failed")
        assert load.failed == []
        assert load.turned_away == 48
        assert one.process.wait(60) == 0


def test_users_F_who_was_let_in_from_far_away_is_served(tmp_path: Path) -> None:
    """A client believes that it is in a round trip before the server does."""
    (tmp_path / "web.py").write_text(WEB)
    command = [sys.executable, "-m", "flask_graceful", "web:app"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "distance.py"), "0.1", *command],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    if done.returncode == NOT_ALLOWED:
        pytest.skip(f"a network of its own is not to be had here: {done.stdout}")
    assert done.stdout.split() == ["answered"] * CLIENTS + ["exit", "status", "0"]


def test_users_G_nobody_waits_for_the_boot(site: Site) -> None:
    one = site.start()
    with KeptLoad(port_of(one), [0.02] * 8) as kept, Load(port_of(one), clients=2) as fresh:
        kept.wait_count(100)
        fresh.wait_count(20)
        site.write("time.sleep(3)")
        began, before = time.monotonic(), (len(kept.latencies), len(fresh.latencies))
        restart(one, 1)
        kept.wait_count(kept.count + 100)
        seconds = time.monotonic() - began
        kept.stop()
        fresh.stop()
    worst = max(kept.latencies[before[0] :] + fresh.latencies[before[1] :])
    text = f"G: worst latency {worst:.3f} s in a restart of {seconds:.1f} s"
    print(text)
    assert kept.failed + fresh.failed == []
    assert kept.connects == 8
    assert seconds > 3
    # Much less than the boot.
    assert worst < 2, text


# Restarts under load.

RESTARTS = int(os.environ.get("UNNOTICED_RESTARTS", 20))
# Seconds from one restart to the next, at least.
PACE = float(os.environ.get("UNNOTICED_PACE", 0))
# The comparison without restarts lasts as long as these did, and no more than so many seconds.
MOST_STEADY = 60.0 if PACE else 1.0
# Eight clients that never pause, and others that do for longer and longer; all well under
# idle_grace, since over TLS a client that is silent for longer than that finds its connection
# closed, and may find it so in the instant in which it sends.
PAUSES = [0.0] * 8 + [0.005] * 8 + [0.05] * 8 + [0.3] * 8
FRESH = 8


class Crowd:
    """32 clients that keep their connections, and 8 that do not."""

    def __init__(self, address: t.Any, connect: Connect = Client) -> None:
        self.kept = KeptLoad(address, PAUSES, connect=connect)
        self.fresh = Load(address, FRESH, connect=connect)
        self.report = ""

    def __enter__(self) -> Crowd:
        self.kept.__enter__()
        self.fresh.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.kept.stop()
        self.fresh.stop()

    @property
    def failed(self) -> list[str]:
        return self.kept.failed + self.fresh.failed

    def see_restarts(self, one: Live, old: int = 0) -> None:
        """Restart again and again, and go on for as long without; `report` compares the two.

        :param old: so many old processes may still be there at the next restart.
        """
        self._see_requests()
        marks, began = self._marks(), time.monotonic()
        for generation in range(1, RESTARTS + 1):
            os.kill(pid_of(one, generation), signal.SIGHUP)
            one.wait_for("Waiting for connections to finish", generation)
            if generation > old:
                one.wait_for(r"Serve\(\) returning", generation - old)
            self._see_requests()
            time.sleep(max(0.0, began + generation * PACE - time.monotonic()))
        seconds = time.monotonic() - began
        restarted, marks = self._latencies(marks), self._marks()
        time.sleep(min(seconds, MOST_STEADY))
        steady = self._latencies(marks)
        self.__exit__()
        self._write_report(f"{RESTARTS} restarts in {seconds:.1f} s", restarted, steady)

    def _see_requests(self) -> None:
        """Some of each kind are answered."""
        for load, count in ((self.kept, 100), (self.fresh, 20)):
            load.wait_count(load.count + count)

    def _marks(self) -> list[int]:
        return [len(load.latencies) for load in (self.kept, self.fresh)]

    def _latencies(self, marks: list[int]) -> list[list[float]]:
        loads = (self.kept, self.fresh)
        return [load.latencies[mark:] for load, mark in zip(loads, marks, strict=True)]

    def _write_report(self, what: str, *runs: list[list[float]]) -> None:
        kept = self.kept
        lines = [
            f"{what}: {len(self.failed)} failed {self.failed[:10]}, {kept.connects} connects, "
            f"{kept.said_close} told to close, {kept.closed_idle} closed while idle"
        ]
        for kind, restarted, steady in zip(("kept", "fresh"), *runs, strict=True):
            with_them, without = percentiles(restarted), percentiles(steady)
            ratios = [a / b for a, b in zip(with_them, without, strict=True)]
            lines.append(
                f"{kind}: {len(restarted)} requests, p50 p99 p99.9 {in_ms(with_them)} ms; "
                f"steady: {len(steady)} requests, {in_ms(without)} ms; "
                "ratios " + " ".join(f"{ratio:.2f}" for ratio in ratios)
            )
        self.report = "\n".join(lines)
        print("\n" + self.report)


def percentiles(seconds: list[float]) -> list[float]:
    """p50, p99 and p99.9."""
    ordered = sorted(seconds)
    return [ordered[int(len(ordered) * share)] for share in (0.5, 0.99, 0.999)]


def in_ms(seconds: list[float]) -> str:
    return " ".join(f"{one * 1000:.1f}" for one in seconds)


@pytest.mark.timeout(120 + RESTARTS * (PACE + 2) + MOST_STEADY)
@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_no_client_notices_a_restart(site: Site, scheme: str, tmp_path: Path) -> None:
    bind = "127.0.0.1:0" if scheme == "tcp" else f"unix:{tmp_path}/s"
    one = site.start("--bind", bind)
    with Crowd(port_of(one) if scheme == "tcp" else f"{tmp_path}/s") as crowd:
        crowd.see_restarts(one)
    kept = crowd.kept
    assert crowd.failed == [], crowd.report
    assert (kept.connects, kept.said_close, kept.closed_idle) == (32, 0, 0), crowd.report
    assert len(kept.answers) == len(crowd.fresh.answers) == RESTARTS + 1, crowd.report


@pytest.mark.timeout(120 + RESTARTS * (PACE + 2) + MOST_STEADY)
def test_no_client_loses_a_request_over_tls(site: Site, tmp_path: Path) -> None:
    """TLS can't move to another process, so connections end; but never with a request."""
    files = Files(tmp_path)
    one = site.start(
        "--bind", "127.0.0.1:0", "--certfile", files.certfile, "--keyfile", files.keyfile
    )

    def connect(address: t.Any) -> Client:
        return TLSClient(address, files.client)

    with Crowd(port_of(one), connect) as crowd:
        # A further one would have to be cut (old_generations).
        crowd.see_restarts(one, old=2)
    kept = crowd.kept
    assert crowd.failed == [], crowd.report
    assert kept.connects == 32 + kept.said_close + kept.closed_idle, crowd.report
    assert len(kept.answers) == RESTARTS + 1, crowd.report
