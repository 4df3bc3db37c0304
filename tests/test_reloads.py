"""Reloads of a service with workers: its clients notice nothing, whatever the new code is like, and
the supervisor's pid is the same all the time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import typing as t
import venv
from pathlib import Path

import flask_graceful
import httptools
import pytest
from conftest import Client, Live, replace, wait_until
from load import KeptLoad, Load
from service import Service, check_nothing_lost, check_quiet, crowd, is_refused, pid_from
from test_tls import Files, TLSClient

PACKAGE = Path(flask_graceful.__file__).parent
TLS_END = """
try:
    server.listen_and_serve_tls("cert.pem", "key.pem")
except ServerClosed as err:
    say("Server err:", err)
"""


@pytest.fixture
def service(tmp_path: Path, live: t.Callable[..., Live]) -> Service:
    return Service(tmp_path, live)


@contextlib.contextmanager
def load(service: Service) -> t.Iterator[KeptLoad]:
    """Clients that keep their connections, and others that make new ones; none may lose anything,
    and all of them are served to the end."""
    with KeptLoad(service.port, [0.01] * 8) as kept, Load(service.port, 2, pause=0.01) as fresh:
        kept.wait_count(100)
        yield kept
        kept.wait_count(kept.count + 100)
        kept.stop()
        fresh.stop()
    check_nothing_lost(kept, fresh)


# On a machine that is busy twenty reloads take their time.
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("where", "options", "reloads"),
    [
        ("tcp", {}, 20),
        ("tcp", {"rolling": True}, 4),
        ("tcp", {"workers": 1}, 4),
        ("tcp", {"workers": 3, "rolling": True}, 3),
        ("unix", {}, 4),
    ],
)
def test_no_client_notices_reloads(
    service: Service, where: str, options: dict[str, t.Any], reloads: int
) -> None:
    """Not one connection of 32 is closed, and new ones are served all the time. After each reload
    the new workers have equal shares of them, near enough; where they take turns, the shares of the
    old ones."""
    addr = ":0" if where == "tcp" else f"unix:{service.directory}/sock"
    service.start(addr=addr, **options)
    address = service.address if where == "tcp" else str(service.directory / "sock")
    with KeptLoad(address, [0.04] * 32) as kept, Load(address, 2, pause=0.01) as fresh:
        before = kept.wait_served_by(service.workers())
        for _ in range(reloads):
            kept.wait_count(kept.count + 100)
            workers = service.reload()
            shares = kept.wait_served_by(workers)
            assert len(workers) == options.get("workers", 2)
            if options.get("rolling"):
                assert sorted(shares.values()) == sorted(before.values())
                continue
            assert set(shares) == set(workers)
            if len(workers) == 2:
                assert max(shares.values()) <= 1.5 * min(shares.values()), shares
        kept.wait_count(kept.count + 100)
        kept.stop()
        fresh.stop()
    print(f"{kept.count} requests on {kept.connects} connections, {fresh.count} on others")
    check_nothing_lost(kept, fresh)
    service.signal(signal.SIGTERM)
    service.check_over()


def test_clients_with_tls_lose_nothing(service: Service) -> None:
    """Their connections can't move, and say so in time."""
    files = Files(service.directory)
    service.start(end=TLS_END, idle_grace=5)

    def connect(address: t.Any) -> TLSClient:
        return TLSClient(address, files.client)

    with (
        KeptLoad(service.port, [0.02] * 8, connect=connect) as kept,
        Load(service.port, 1, connect=connect, pause=0.02) as fresh,
    ):
        for _ in range(3):
            kept.wait_count(kept.count + 50)
            kept.wait_served_by(service.reload())
        kept.stop()
        fresh.stop()
    assert kept.failed == fresh.failed == []


HANG = "say(os.getpid(), 'hangs'); time.sleep(1000)"
# What the new code is like, and what is said of it: the reason, and the last line that it printed.
BROKEN = {
    "syntax": ("def def", r"worker \d+ exited with status 1", "SyntaxError: invalid syntax"),
    "exit": ("say('no database'); sys.exit(3)", r"worker \d+ exited with status 3", "no database"),
    "exit without a word": ("os._exit(0)", r"worker \d+ exited with status 0", r"\d+ loads broken"),
    "hook": (
        "server.before_begin(lambda addr: 1 / 0)",
        r"worker \d+ exited with status 1",
        "ZeroDivisionError: division by zero",
    ),
    "killed": (
        "os.kill(os.getpid(), signal.SIGKILL)",
        r"worker \d+ was killed by SIGKILL",
        r"\d+ loads broken",
    ),
    "hanging": (HANG, r"worker \d+ was not ready after 5 seconds", r"\d+ hangs"),
    "one of two": (
        # Whoever is first serves; the other one fails.
        "os.mkdir('first')",
        r"worker \d+ exited with status 1",
        "FileExistsError: .*'first'",
    ),
    "without a service": (
        "import threading; threading.Thread(target=time.sleep, args=(0.1,)).start(); sys.exit(4)",
        r"worker \d+ exited with status 4",
        r"\d+ loads broken",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_code_changes_nothing(service: Service, name: str) -> None:
    more, reason, last = BROKEN[name]
    # Only one is to be slow.
    options = {"boot_timeout": 5} if name == "hanging" else {}
    service.start(**options)
    old = service.workers()
    descriptors = len(os.listdir(f"/proc/{service.pid}/fd"))
    with load(service):
        service.write(more, release="broken", **options)
        service.signal(signal.SIGHUP)
        failure = rf"^{service.pid} Reload failed: {reason}; nothing has changed\.$"
        service.one.wait_for(rf"{failure}\nIts last lines:\n(\| .*\n)*\| {last}$")
        wait_until(
            lambda: service.processes() == {service.pid, *old}, "the end of what was begun in vain"
        )
        wait_until(
            lambda: len(os.listdir(f"/proc/{service.pid}/fd")) == descriptors, "no more descriptors"
        )
        service.write(release="two")
        new = service.reload()
        assert all(f"{pid} loads two" in service.one.log for pid in new)


def test_address_that_can_t_be_bound_changes_nothing(service: Service) -> None:
    """Neither for those that the old code has, too."""
    service.start()
    old = service.workers()
    with socket.create_server(("127.0.0.1", 0)) as taken, load(service):
        port = taken.getsockname()[1]
        service.write(addr=[":0", f"127.0.0.1:{port}"])
        service.signal(signal.SIGHUP)
        service.one.wait_for(
            rf"^{service.pid} Reload failed: worker \d+ exited with status 1; nothing has changed\."
            rf"\nIts last lines:\n(\| .*\n)*\| .*ListenError: .*127\.0\.0\.1:{port}.*in use.*$"
        )
        assert service.ask() in old
        taken.close()
        service.reload()
        service.one.wait_for(rf"^{service.pid} Listening on 127\.0\.0\.1:{port}$")
        with Client(("127.0.0.1", port)) as client:
            assert client.get()[0] == 200


def test_booting_workers_that_are_killed_change_nothing(service: Service) -> None:
    """At any moment of their boot, each time; what then boots without haste serves."""
    service.start()
    old = service.workers()
    with load(service):
        service.write("while not os.path.exists('boot'): time.sleep(0.01)", release="two")
        for count, both in enumerate((False, True), 1):
            service.signal(signal.SIGHUP)
            service.one.wait_for(r"^(\d+) loads two", 2 * count)
            booting = [int(pid) for pid in re.findall(r"(\d+) loads two", service.one.log)][-2:]
            for pid in booting[: 1 + both]:
                # When the first one has gone, the supervisor gives the other one up.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            service.one.wait_for(
                r"Reload failed: worker \d+ was killed by SIGKILL; nothing has changed\.", count
            )
            for pid in booting:
                service.wait_gone(pid)
            assert service.ask() in old
        service.let_go("boot")
        service.reload()
    assert service.one.log.count("Reload failed") == 2


def test_reloads_asked_for_meanwhile_are_one(service: Service) -> None:
    """Which follows: it has the code that is there then."""
    service.start()
    service.write("while not os.path.exists('boot'): time.sleep(0.01)", release="two")
    with load(service):
        service.signal(signal.SIGHUP)
        service.one.wait_for("loads two", 2)
        for count in (2, 3, 4):
            service.signal(signal.SIGHUP)
            service.one.wait_for("Received SIGHUP", count)
        service.write(release="three")
        service.let_go("boot")
        service.workers(3)
    assert service.one.log.count("loads three") == 2
    service.signal(signal.SIGTERM)
    service.check_over()
    assert service.generations() == 3


def test_reloads_asked_for_at_once_are_one(service: Service) -> None:
    """Nothing new has been loaded when the second one is asked for."""
    # The supervisor's program is tried first, and that takes as long as the file is there.
    replace(
        service.directory / "sitecustomize.py",
        "import os, sys, time\n"
        "while '--version' in sys.orig_argv and os.path.exists('held'): time.sleep(0.01)\n",
    )
    service.start(env={"PYTHONPATH": str(service.directory)})
    held = service.directory / "held"
    held.touch()
    service.signal(signal.SIGHUP)
    service.one.wait_for("Received SIGHUP")
    service.signal(signal.SIGHUP)
    service.one.wait_for("A reload is about to begin, and answers this one too")
    held.unlink()
    service.workers(2)
    service.write(release="two")
    new = service.reload()
    assert {int(pid) for pid in re.findall(r"^(\d+) loads two", service.one.log, re.M)} == set(new)
    assert service.generations() == 3


def test_code_that_wants_another_number_of_workers(service: Service) -> None:
    """Also when they take turns, as the code says that serves; and when their number was changed by
    a signal before, which counts no more."""
    service.start()
    with load(service) as kept:
        took_turns = False
        for count, rolling in ((3, False), (1, False), (2, True), (3, True), (1, True), (2, False)):
            service.write(workers=count, rolling=rolling)
            workers = service.reload()
            assert len(workers) == count
            served = set(kept.wait_served_by(workers))
            # When they take turns, those that are more find nobody to relieve.
            assert served == set(workers) or took_turns
            assert service.processes() == {service.pid, *workers}
            took_turns = rolling
        service.signal(signal.SIGTTIN)
        service.one.wait_for(r"Worker \d+ serves\.$")
        assert len(service.reload()) == 2
    check_quiet(service.one)


def test_workers_that_take_turns_wait_for_those_that_are_busy(service: Service) -> None:
    """Longer than a boot may take. There is never more than one worker too many, and what fails
    half-way leaves what has taken over."""
    service.start(rolling=True, boot_timeout=4)
    with load(service), service.slow("done") as (slow, busy):
        service.write(release="two", rolling=True, boot_timeout=4)
        service.signal(signal.SIGHUP)
        service.one.wait_for(f"^{busy} Waiting for connections")
        wait_until(lambda: len(service.processes()) == 4, "one worker too many")
        with contextlib.suppress(AssertionError):
            service.one.wait_for("internal error", seconds=5)
        assert service.processes() >= {service.pid, busy}
        service.let_go("done")
        assert slow.response()[0] == 200
        workers = service.workers(2)
        service.write("os.mkdir('first')", release="three", rolling=True, boot_timeout=4)
        service.signal(signal.SIGHUP)
        service.one.wait_for(
            rf"^{service.pid} Reload failed: worker \d+ exited with status 1; "
            r"what has taken over stays\.$"
        )
        first = int(service.one.wait_for("^(\\d+) loads three$")[1])
        assert service.processes() == {service.pid, first, workers[1]}
        service.write(release="four")
        service.signal(signal.SIGHUP)
        service.workers(3)
    assert "internal error" not in service.one.log


def test_service_without_workers_survives_a_reload_that_fails(service: Service) -> None:
    """All have died, and what is to take their place fails as well: it is tried on and on."""
    service.start(workers=1)
    (worker,) = service.workers()
    service.write("sys.exit('no database')", release="two", workers=1)
    os.kill(worker, signal.SIGKILL)
    service.one.wait_for(r"Worker \d+ exited with status 1 .*another one is started in")
    service.signal(signal.SIGHUP)
    service.one.wait_for(r"Reload failed: worker \d+ exited with status 1; nothing has changed\.")
    service.write(release="three", workers=1)
    service.one.wait_for(r"Worker \d+ serves\.$")
    assert service.ask() == int(service.one.wait_for(r"^(\d+) loads three")[1])
    assert len(service.reload()) == 1


def test_worker_that_wants_to_go_during_a_reload_that_fails(service: Service) -> None:
    service.start(boot_timeout=3)
    old = service.workers()
    with crowd(service, old) as clients, load(service) as kept:
        service.write(HANG, release="broken")
        service.signal(signal.SIGHUP)
        service.one.wait_for("hangs", 2)
        os.kill(old[0], signal.SIGTERM)
        service.one.wait_for(rf"Worker {old[0]} is to be replaced: it has received SIGTERM")
        service.write(release="three")
        service.one.wait_for("Reload failed")
        new = int(service.one.wait_for(r"Worker (\d+) serves\.$")[1])
        service.wait_gone(old[0])
        kept.wait_served_by([old[1], new])
        for client, pid in clients.items():
            assert pid_from(client) == (new if pid == old[0] else pid)
        assert service.processes() == {service.pid, old[1], new}


def test_code_that_wants_another_address(service: Service) -> None:
    """Whoever was let in by the old one is served; then it is refused, and what was connected there
    ends with a word."""
    service.start()
    old = service.port
    service.write(addr="127.0.0.1:0")
    with (
        Client(service.address) as kept,
        Load(old, 8, until_gone=True) as fresh,
    ):
        assert kept.get()[0] == 200
        fresh.wait_count(50)
        service.signal(signal.SIGHUP)
        service.workers(2)
        fresh.join()
        assert fresh.failed == []
        assert fresh.turned_away == 8
        assert is_refused(old)
    port = int(service.one.wait_for(r"Serving HTTP on \[::\]:(\d+)$", 3)[1])
    assert port != old
    with Client(("127.0.0.1", port)) as client:
        assert client.get()[0] == 200
    # And back, to a port by its name.
    service.write(addr=f"127.0.0.1:{port}")
    with KeptLoad(port, [0.01] * 4):
        service.signal(signal.SIGHUP)
        service.workers(3)
    check_quiet(service.one)


def test_code_that_wants_another_pid_file(service: Service) -> None:
    """There is one file at a time, and it holds the supervisor's pid."""
    service.start(pid_file="one.pid")

    def found() -> dict[str, str]:
        return {path.name: path.read_text() for path in service.directory.glob("*.pid")}

    assert found() == {"one.pid": f"{service.pid}\n"}
    service.reload()
    assert found() == {"one.pid": f"{service.pid}\n"}
    service.write(pid_file="two.pid")
    service.reload()
    assert found() == {"two.pid": f"{service.pid}\n"}
    service.write(pid_file="none/three.pid")
    service.signal(signal.SIGHUP)
    service.one.wait_for(
        r"Reload failed: worker \d+ exited with status 1; nothing has changed\.\nIts last lines:\n"
        r"(\| .*\n)*\| .*PidFileError: pid file .*/none/three\.pid: no such file or directory$"
    )
    assert found() == {"two.pid": f"{service.pid}\n"}
    service.write()
    service.reload()
    assert found() == {}
    service.signal(signal.SIGTERM)
    service.check_over(is_quiet=False)


def test_unix_socket_whose_file_is_removed(service: Service) -> None:
    """A service that ends removes its own file, after as many reloads as there were."""
    path = service.directory / "sock"
    service.start(addr=[":0", f"unix:{path}"])
    with Client(str(path)) as client:
        assert client.get()[0] == 200
        service.reload()
        service.reload()
        assert client.get()[0] == 200
    service.signal(signal.SIGTERM)
    service.check_over()
    assert not path.exists()


# Releases.


def release(directory: Path) -> Service:
    """A program with an environment of its own, whose supervisor says which one it is of."""
    directory.mkdir()
    name = directory.name
    venv.create(directory / "venv", symlinks=True)
    (packages,) = directory.glob("venv/lib/python*/site-packages")
    package = packages / "flask_graceful"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.pyc"))
    (packages / "httptools").symlink_to(Path(httptools.__file__).parent)
    program = package / "supervisor.py"
    text = program.read_text()
    assert text.count('"%d Received %s."') == 1
    program.write_text(text.replace('"%d Received %s."', f'"%d {name} received %s."'))

    def start(*words: str, cwd: Path, env: dict[str, str] | None) -> Live:
        return Live(["venv/bin/python", *words], directory.parent / "current", {"PWD": str(cwd)})

    service = Service(directory, start)
    service.write(release=name)
    return service


@pytest.fixture
def releases(tmp_path: Path) -> t.Iterator[list[Service]]:
    """Two of them; the link `current` leads to the first one."""
    both = [release(tmp_path / name) for name in ("one", "two")]
    (tmp_path / "current").symlink_to("one")
    yield both
    both[0].one.end()


def start_current(service: Service) -> None:
    current = service.directory.parent / "current"
    service.one = Live(["venv/bin/python", "program.py"], current, {"PWD": str(current)})
    service.workers(1)


def switch(service: Service, name: str) -> None:
    current = service.directory.parent / "current"
    current.unlink()
    current.symlink_to(name)


def test_release_switched_and_the_old_one_deleted(releases: list[Service]) -> None:
    """The workers and the supervisor run the new code, while the last request of the old one is
    served from files that are gone."""
    service, _ = releases
    start_current(service)
    with KeptLoad(service.port, [0.02] * 4) as kept, service.slow("/nowhere/done") as (slow, old):
        kept.wait_count(20)
        switch(service, "two")
        service.signal(signal.SIGHUP)
        service.one.wait_for("one received SIGHUP")
        new = service.workers(2)
        assert all(f"{pid} loads two" in service.one.log for pid in new)
        shutil.rmtree(service.directory)
        os.kill(old, signal.SIGTERM)
        kept.wait_served_by(new)
        service.signal(signal.SIGTTIN)
        service.one.wait_for("two received SIGTTIN")
        service.one.wait_for(r"Worker \d+ serves\.$")
        service.signal(signal.SIGUSR2)
        assert slow.rest() == b""
        service.wait_gone(old)
        service.signal(signal.SIGHUP)
        service.one.wait_for("two received SIGHUP")
        kept.wait_served_by(service.workers(3))
        kept.stop()
    check_nothing_lost(kept)
    service.signal(signal.SIGTERM)
    service.one.wait_for("two received SIGTERM")
    service.check_over()


@pytest.mark.parametrize("how", ["broken", "missing", "other"])
def test_release_whose_supervisor_can_t_be_run(releases: list[Service], how: str) -> None:
    """Its application is not even tried; the old program goes on, and the next reload works."""
    service, other = releases
    start_current(service)
    old = service.workers()
    (program,) = other.directory.glob("venv/lib/python*/site-packages/flask_graceful/reexec.py")
    text = program.read_text()
    if how == "missing":
        program.unlink()
        reason, last = "1", "ImportError: cannot import name 'reexec'.*"
    elif how == "broken":
        program.write_text("import nothing\n")
        reason, last = "1", "ModuleNotFoundError: No module named 'nothing'"
    else:
        program.write_text(re.sub('VERSION = "\\d+"', 'VERSION = "999"', text))
        reason, last = "1", ""
    switch(service, "two")
    with load(service):
        service.signal(signal.SIGHUP)
        lines = rf"\nIts last lines:\n(\| .*\n)*\| {last}$" if last else "$"
        service.one.wait_for(
            rf"Reload failed: the supervisor's program can't be run; its trial exited with status "
            rf"{reason}; nothing has changed\.{lines}"
        )
        assert service.ask() in old
        assert "loads two" not in service.one.log
        program.write_text(text)
        service.reload()
        assert service.one.log.count("loads two") == 2
