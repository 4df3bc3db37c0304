"""Two instances behind the proxies of deploy/, which are restarted and stopped in turn: whoever
asks the proxy does not notice.

The proxies run with the files that are shipped, but for addresses and paths. With REQUIRE_PROXIES=1
they can't be skipped.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import typing as t
from pathlib import Path

import pytest
from conftest import ROOT, Client, Live, wait_until
from load import KeptLoad, Load

# Workers, and rounds in which each instance is restarted, and stopped and started.
ROUNDS = [(workers, int(os.environ.get("PROXY_ROUNDS", "1"))) for workers in (2, 0)]
# As docs/deploy.md has them for these proxies; nginx has no use for shutdown_delay.
TIMES = {
    "nginx": ["--idle-grace", "3"],
    "haproxy": ["--shutdown-delay", "1"],
}

WEB = """
import os, time
from flask_graceful import State

def app(environ, start_response):
    path = environ["PATH_INFO"]
    status = "200 OK"
    if path == "/ready":
        state = environ["flask_graceful.server"].state
        if state not in (State.RUNNING, State.RELIEVED):
            status = "503 Service Unavailable"
    elif path.startswith("/sleep"):
        time.sleep(int(path[6:]) / 1000)
    said = environ["wsgi.input"].read() or environ["QUERY_STRING"].encode()
    body = os.environ["INSTANCE"].encode() + b" " + said
    start_response(status, [("Content-Length", str(len(body)))])
    return [body]
"""


def find(program: str) -> str:
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if path is None:
        if os.environ.get("REQUIRE_PROXIES") == "1":
            pytest.fail(f"REQUIRE_PROXIES is set, and {program} is not installed")
        pytest.skip(f"{program} IS NOT TESTED: install it for these tests")
    return path


def free_addresses(count: int) -> list[str]:
    """Addresses that stay free while nobody listens. From the ports that the system gives out, a
    stopped instance's could be a client's meanwhile, even that of the proxy that tries it."""
    host = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
    found: list[str] = []
    while len(found) < count:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind((host, port))
            found.append(f"{host}:{port}")
    return found


def pair(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def shipped(name: str, replacements: dict[str, str]) -> str:
    """A file of deploy/ with other addresses."""
    text = (ROOT / "deploy" / name).read_text()
    for old, new in replacements.items():
        assert text.count(old) == 1, f"{name}: {old}"
        text = text.replace(old, new)
    return text


class Instance:
    """One of the instances, and the processes that it has been so far.

    :param name: a number, which its answers begin with.
    """

    def __init__(
        self, name: str, address: str, flags: list[str], live: t.Callable[..., Live], folder: Path
    ) -> None:
        self.name = name
        self.address = address
        self._flags = flags
        self._live = live
        self._folder = folder
        self._generation = 0
        self.start()

    @property
    def _workers(self) -> int:
        return int(self._flags[self._flags.index("--workers") + 1])

    def start(self) -> None:
        command = ["-m", "flask_graceful", "--bind", self.address, *self._flags, "web:app"]
        self.live = self._live(*command, cwd=self._folder, env={"INSTANCE": self.name})
        self._generation = 1
        self.pid = self._wait_generation()

    def restart(self) -> None:
        os.kill(self.pid, signal.SIGHUP)
        self._generation += 1
        self.pid = self._wait_generation()
        # The old processes have gone.
        gone = (self._generation - 1) * max(1, self._workers)
        self.live.wait_for(r"Serve\(\) returning", gone)

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        if self._workers:
            assert self.live.process.wait(60) == 0, self.live.log
        else:
            self.live.wait_for(r"Serve\(\) returning", self._generation)

    def _wait_generation(self) -> int:
        if self._workers:
            self.live.wait_for(rf"^{self.live.pid} Generation {self._generation} serves")
            return self.live.pid
        return int(self.live.wait_for(r"^(\d+) Serving HTTP on ", self._generation)[1])


class Proxy:
    """nginx or HAProxy in the foreground, ended with the test."""

    def __init__(self, kind: str, instances: list[str], folder: Path) -> None:
        (self.address,) = free_addresses(1)
        make = {"nginx": self._nginx, "haproxy": self._haproxy}[kind]
        self.command = make(find(kind), instances, folder)
        self._log = (folder / f"{kind}.log").open("wb")
        self._process: subprocess.Popen[bytes] | None = None

    def _addresses(self, instances: list[str]) -> dict[str, str]:
        return dict(zip(("127.0.0.1:8001", "127.0.0.1:8002"), instances, strict=True))

    def _nginx(self, program: str, instances: list[str], folder: Path) -> list[str]:
        replacements = {"listen 80;": f"listen {self.address};", **self._addresses(instances)}
        (folder / "site.conf").write_text(shipped("nginx.conf", replacements))
        user = "user root;\n" if os.geteuid() == 0 else ""
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"daemon off;\n{user}pid {folder}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}include {folder}/site.conf;\n}}\n"
        )
        return [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]

    def _haproxy(self, program: str, instances: list[str], folder: Path) -> list[str]:
        replacements = {"bind :80": f"bind {self.address}", **self._addresses(instances)}
        (folder / "haproxy.cfg").write_text(shipped("haproxy.cfg", replacements))
        return [program, "-db", "-f", str(folder / "haproxy.cfg")]

    def __enter__(self) -> Proxy:
        self._process = subprocess.Popen(self.command, stdout=self._log, stderr=self._log)
        wait_until(self._answers, f"{self.command[0]} answers")
        return self

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log
        with contextlib.suppress(OSError), Client(pair(self.address)) as client:
            return client.get()[0] == 200
        return False

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)
        self._log.close()

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()


class Crowd:
    """Clients of the proxy: some keep their connections, POST among what they ask; some do not."""

    def __init__(self, address: str) -> None:
        at = pair(address)
        # None without a pause: they would take the processors from those who restart.
        self.kept = KeptLoad(at, [0.005] * 4 + [0.02] * 8 + [0.3] * 8)
        self.fresh = Load(at, clients=2, path="/sleep20")
        self.slow = Load(at, clients=2, path="/sleep300")
        self._loads = [self.kept, self.fresh, self.slow]

    def __enter__(self) -> Crowd:
        for load in self._loads:
            load.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for load in self._loads:
            load.stop()

    @property
    def failed(self) -> list[str]:
        return [failure for load in self._loads for failure in load.failed]

    def wait_answers(self, name: str) -> None:
        """Wait until this instance has answered some more."""
        count = self.kept.answers[name.encode()]
        what = f"answers of {name} through the proxy"
        wait_until(lambda: self.kept.answers[name.encode()] >= count + 20, what)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("workers", "rounds"), ROUNDS)
@pytest.mark.parametrize("kind", ["nginx", "haproxy"])
def test_no_client_of_a_proxy_notices(
    kind: str, workers: int, rounds: int, live: t.Callable[..., Live], tmp_path: Path
) -> None:
    (tmp_path / "web.py").write_text(WEB)
    flags = ["--workers", str(workers), *TIMES[kind]]
    instances = [
        Instance(name, address, flags, live, tmp_path)
        for name, address in zip(("1", "2"), free_addresses(2), strict=True)
    ]
    with (
        Proxy(kind, [one.address for one in instances], tmp_path) as proxy,
        Crowd(proxy.address) as crowd,
    ):
        for number in range(rounds):
            for one in instances:
                one.restart()
                crowd.wait_answers(one.name)
            for one in instances:
                one.stop()
                one.start()
                # It is in use before the other one goes.
                crowd.wait_answers(one.name)
            assert crowd.failed == [], f"round {number}\n{proxy.log}"
    kept = crowd.kept
    print(
        f"{kind}, {workers} workers: {kept.count} requests on {kept.connects} connections, "
        f"{crowd.fresh.count} and {crowd.slow.count} on fresh ones, {len(crowd.failed)} failed"
    )
    assert crowd.failed == [], proxy.log


def test_nginx_closes_idle_connections_before_a_stopped_instance_does(
    live: t.Callable[..., Live], tmp_path: Path
) -> None:
    """So that no request is on its way on a connection that the instance closes."""
    (tmp_path / "web.py").write_text(WEB)
    grace = 8
    flags = ["--workers", "2", "--idle-grace", str(grace)]
    instances = [
        Instance(name, address, flags, live, tmp_path)
        for name, address in zip(("1", "2"), free_addresses(2), strict=True)
    ]
    with Proxy("nginx", [one.address for one in instances], tmp_path) as proxy:
        with Load(pair(proxy.address), clients=16, path="/sleep300", total=16) as load:
            load.join()
        assert load.failed == []
        began = time.monotonic()
        for one in instances:
            # Nobody asks any more.
            one.stop()
        # As the file has it: 2 s.
        assert time.monotonic() - began < grace - 2
