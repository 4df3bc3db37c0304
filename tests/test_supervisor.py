"""The life of a supervisor and its workers: signals, deaths and hooks. Whatever happens, the
service either serves or ends with nothing left behind, and a client loses no more than what died.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Live, suspend, wait_until
from load import KeptLoad, Load
from service import (
    GENERATION,
    Service,
    check_nothing_lost,
    crowd,
    is_refused,
    pid_from,
    said_by,
    wait_accepting,
)

# How often a stop is tried whose outcome is a matter of milliseconds.
STOPS = 4


@pytest.fixture
def service(tmp_path: Path, live: t.Callable[..., Live]) -> Service:
    return Service(tmp_path, live)


@contextlib.contextmanager
def load(service: Service) -> t.Iterator[KeptLoad]:
    """Clients who lose nothing, and are served to the end."""
    with (
        KeptLoad(service.port, [0.01] * 8) as kept,
        Load(service.port, 2, pause=0.01) as fresh,
    ):
        kept.wait_count(100)
        yield kept
        kept.wait_count(kept.count + 50)
        kept.stop()
        fresh.stop()
    check_nothing_lost(kept, fresh)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def seconds_used(pid: int) -> float:
    """What a process has used of the processor."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


# What is where.


def test_nothing_of_the_application_is_in_the_supervisor(service: Service) -> None:
    """It was loaded there once, before the process became what it is; and it knows no more of the
    server than of the application."""
    service.start(f"import sqlite3; open({str(service.directory / 'open')!r}, 'w')")
    assert re.findall(rf"^{service.pid} loads", service.one.log, re.M) == [f"{service.pid} loads"]
    for _ in range(2):
        maps = Path(f"/proc/{service.pid}/maps").read_text()
        for name in ("_sqlite3", "httptools", "_ssl"):
            assert name not in maps
        workers = service.workers()
        assert all("httptools" in Path(f"/proc/{pid}/maps").read_text() for pid in workers)
        assert "flask_graceful.supervisor" in Path(f"/proc/{service.pid}/cmdline").read_text()
        service.reload()


def test_environment_of_the_application_is_its_own(service: Service) -> None:
    """Neither it nor what it starts sees how the processes find each other."""
    service.start(
        """
import subprocess
def look(_):
    there = subprocess.run(["env"], capture_output=True, check=True, text=True).stdout.split()
    return " ".join(sorted(
        name for name in [*os.environ, *(line.partition("=")[0] for line in there)]
        if name.startswith(("NOTIFY", "FLASK", "GRACEFUL", "LISTEN", "WATCHDOG"))
    ))
pages["/look"] = look
say("sees", look(""), ".")
""",
    )
    service.reload()
    with Client(service.address) as client:
        assert said_by(client, "/look") == ""
    assert re.findall("^sees (.*)$", service.one.log, re.M) == [" ."] * 5


def test_variables_that_the_application_sets_are_gone_with_it(service: Service) -> None:
    """The environment of a worker is that of the command, each time."""
    service.start("say('count', os.environ.setdefault('COUNT', '0')); os.environ['COUNT'] = '1'")
    service.reload()
    assert re.findall("^count (.)$", service.one.log, re.M) == ["0"] * 5


@pytest.mark.parametrize(
    ("more", "options", "error"),
    [
        ("", {"handle_signals": False}, "ValueError: workers: .*handle_signals=False"),
        ("server.add_file('f', 0)", {}, r"ValueError: workers: add_file\(\)"),
        ("", {"restart_signal": int(signal.SIGUSR2)}, "ValueError: workers: .*restart_signal"),
        ("", {"workers": 65}, "ValueError: workers: expected 0 to 64, got 65"),
        ("", {"addr": "127.0.0.1:99999"}, "99999"),
        ("server.before_begin(lambda addr: 1 / 0)", {}, "ZeroDivisionError"),
        ("", {"pid_file": "none/pid"}, "PidFileError: .*no such file or directory"),
        ("os.path.exists('first') and sys.exit('second'); open('first', 'w')", {}, "second"),
    ],
)
def test_service_that_can_t_be_started(
    service: Service, more: str, options: dict[str, t.Any], error: str
) -> None:
    """It ends with status 1, says why, and leaves nothing behind."""
    one = service.begin(more, **options)
    service.check_over(1, is_quiet=False)
    assert re.search(error, one.log), one.log
    assert "internal error" not in one.log
    assert not list(service.directory.glob("*pid*"))


def test_several_servers_with_workers(service: Service) -> None:
    """Each has its own addresses, in every worker."""
    path = service.directory / "sock"
    end = f"""
def other(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"other"]
try:
    serve(server, GracefulServer("unix:{path}", other, workers=2))
except ServerClosed as err:
    say("Server err:", err)
"""
    service.start(end=end)
    with Client(str(path)) as kept, Client(service.address) as client:
        for _ in range(2):
            assert kept.get()[2] == b"other"
            assert pid_from(client) in service.workers()
            service.reload()
    service.signal(signal.SIGTERM)
    service.check_over()
    assert not path.exists()


# Workers that die.


def test_killed_worker_is_replaced_at_once(service: Service) -> None:
    """Its own connections break, and no other one."""
    service.start()
    victim, other = service.workers()
    with crowd(service, service.workers()) as clients:
        assert set(clients.values()) == {victim, other}
        os.kill(victim, signal.SIGKILL)
        service.one.wait_for(
            rf"^{service.pid} Worker {victim} was killed by SIGKILL after [\d.]+ seconds; "
            rf"another one is started now\.$"
        )
        new = int(service.one.wait_for(rf"^{service.pid} Worker (\d+) serves\.$")[1])
        assert service.processes() == {service.pid, other, new}
        for client, pid in clients.items():
            if pid == victim:
                assert client.rest() == b""
            else:
                assert pid_from(client) == other
        # It has the fewest.
        wait_accepting(service.pid, 2)
        assert service.ask() == new
    assert len(service.reload()) == 2


def test_all_workers_killed_again_and_again(service: Service) -> None:
    """In the end they are all there, each time."""
    service.start(workers=3)
    for _ in range(3):
        for pid in service.processes() - {service.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Those that boot at this moment have no connection.
        time.sleep(0.1)
    assert service.ask()
    wait_until(lambda: len(service.processes()) == 4, "three workers", 60)
    service.signal(signal.SIGTERM)
    service.check_over()


@pytest.mark.parametrize(
    ("more", "how"),
    [
        ("threading.Timer(0.01, os._exit, (7,)).start()", "exited with status 7"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("print('no database'); sys.exit(1)", "exited with status 1"),
    ],
)
def test_worker_that_dies_each_time_is_started_more_and_more_rarely(
    service: Service, more: str, how: str
) -> None:
    """The log says why; the other worker serves as if nothing were. When the code is mended, the
    next one stays."""
    service.start()
    victim, other = service.workers()
    died = rf"^{service.pid} Worker \d+ {how} after [\d.]+ seconds; another one is started in "
    with crowd(service, service.workers()) as clients:
        kept = [client for client, pid in clients.items() if pid == other]
        service.write(more, release="bad")
        os.kill(victim, signal.SIGKILL)
        for pause in ("0.5", "1", "2"):
            service.one.wait_for(rf"{died}{pause} seconds\.")
        assert all(pid_from(client) == other for client in kept)
        assert seconds_used(service.pid) < 2
        assert len(re.findall(r"^\d+ loads bad", service.one.log, re.M)) == 3
        if "database" in more:
            assert re.search(
                r"2 seconds\.\nIts last lines:\n(\| .*\n)*\| no database", service.one.log
            )
        service.write(release="good")
        new = int(service.one.wait_for(r"^(\d+) loads good$")[1])
        service.one.wait_for(rf"^{service.pid} Worker {new} serves\.$")
        assert all(pid_from(client) == other for client in kept)


def test_worker_told_to_end_is_replaced(service: Service) -> None:
    """Its connections go to the one that takes its place, and its request in flight is finished."""
    service.start()
    with (
        crowd(service, service.workers()) as clients,
        load(service) as kept,
        service.slow("done") as (slow, old),
    ):
        (other,) = set(service.workers()) - {old}
        os.kill(old, signal.SIGTERM)
        service.one.wait_for(
            rf"^{service.pid} Worker {old} is to be replaced: it has received SIGTERM; "
            r"another one is started now\."
        )
        new = int(service.one.wait_for(rf"^{service.pid} Worker (\d+) serves\.$")[1])
        kept.wait_served_by([other, new])
        for client, pid in clients.items():
            assert pid_from(client) == (new if pid == old else other)
        os.kill(old, signal.SIGTERM)
        service.let_go("done")
        assert pid_from_answer(slow) == old
        assert pid_from(slow) == new
        service.wait_gone(old)
        assert service.processes() == {service.pid, other, new}


def pid_from_answer(client: Client) -> int:
    code, _, body = client.response()
    assert code == 200
    return int(body.split()[0])


def test_other_signals_do_nothing_to_a_worker(service: Service) -> None:
    """They were sent to all processes of the service, and the supervisor acts on them."""
    service.start()
    with load(service):
        for worker in service.workers():
            for name in ("SIGHUP", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGTSTP", "SIGQUIT", "SIGPIPE"):
                os.kill(worker, getattr(signal, name))
    assert service.processes() == {service.pid, *service.workers()}


# A supervisor that dies.


def test_killed_supervisor_takes_its_workers_along(service: Service) -> None:
    """They finish what they have begun, and the port is free; the same service can be started."""
    service.start(pid_file="pid", idle_grace=0)
    port = service.port
    with service.slow("done") as (slow, worker), Client(service.address) as idle:
        assert pid_from(idle)
        service.signal(signal.SIGKILL)
        service.one.process.wait()
        assert idle.rest() == b""
        wait_until(lambda: service.processes() == {worker}, "the end of the idle worker")
        wait_until(lambda: is_refused(port), "a closed port")
        service.let_go("done")
        assert pid_from_answer(slow) == worker
        wait_until(lambda: not service.processes(), "the end of the worker")
    service.start(addr=f":{port}", pid_file="pid")
    assert service.ask()
    assert (service.directory / "pid").read_text() == f"{service.pid}\n"


def test_killed_supervisor_leaves_no_worker_that_is_stuck(service: Service) -> None:
    service.start(hammer_time=1, idle_grace=0)
    with service.slow("never") as (slow, _):
        service.signal(signal.SIGKILL)
        assert slow.rest() == b""
        # The thread of the request lives on, as long as it likes.
        service.let_go("never")
        wait_until(lambda: not service.processes(), "the end of the worker")


@pytest.mark.parametrize("seconds", [0, 0.05, 0.15, 0.3, 0.5])
def test_supervisor_killed_at_any_moment_of_a_reload(service: Service, seconds: float) -> None:
    """Neither generation outlives it."""
    service.start(idle_grace=0)
    service.signal(signal.SIGHUP)
    time.sleep(seconds)
    service.signal(signal.SIGKILL)
    wait_until(lambda: not service.processes(), "the end of all processes")
    assert is_refused(service.port)


# Stops.


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stop_waits_for_requests(service: Service, signum: int) -> None:
    service.start(pid_file="pid")
    with service.slow("done") as (slow, worker), Client(service.address) as idle:
        assert pid_from(idle)
        service.signal(signum)
        service.one.wait_for(r"^\d+ Waiting for connections", 2)
        # A late request is served, and told that it is the last one.
        code, headers, _ = idle.get()
        assert (code, headers["connection"]) == (200, "close")
        assert is_refused(service.port)
        service.let_go("done")
        assert pid_from_answer(slow) == worker
    service.check_over()
    assert not (service.directory / "pid").exists()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_second_signal_cuts_what_is_waited_for(service: Service, second: int) -> None:
    service.start()
    with service.slow("done") as (slow, worker):
        service.signal(signal.SIGTERM)
        service.one.wait_for(f"^{worker} Waiting for connections")
        service.signal(second)
        assert slow.rest() == b""
        service.let_go("done")
    service.check_over()
    assert "Hammer Time" in service.one.log


def test_SIGQUIT_cuts_at_once(service: Service) -> None:
    service.start(shutdown_delay=60)
    with service.slow("done") as (slow, _):
        service.signal(signal.SIGQUIT)
        assert slow.rest() == b""
        service.let_go("done")
    service.check_over()


def test_stop_ends_workers_that_are_stuck(service: Service) -> None:
    """One is stopped, another one has a request without end: the first signal gives them
    `hammer_time`, and what does not end by itself is killed."""
    service.start(hammer_time=1)
    with service.slow("never") as (slow, busy):
        (other,) = set(service.workers()) - {busy}
        suspend(other)
        wait_until(lambda: is_stopped(other), "a stopped worker")
        service.signal(signal.SIGTERM)
        assert slow.rest() == b""
        service.one.wait_for(f"Worker {other} does not end; killing it")
    service.check_over()


def test_SIGUSR2_cuts_what_drains(service: Service) -> None:
    """And nothing else: what serves goes on."""
    service.start()
    with load(service), service.slow("done") as (slow, old):
        service.signal(signal.SIGHUP)
        new = service.workers(2)
        service.one.wait_for(f"^{old} Waiting for connections")
        with service.slow("other") as (second, worker):
            assert worker in new
            service.signal(signal.SIGUSR2)
            assert slow.rest() == b""
            service.let_go("other")
            assert pid_from_answer(second) == worker
        service.let_go("done")
        service.wait_gone(old)


def test_its_log_has_the_level_that_the_code_has_chosen(service: Service) -> None:
    level = "import logging\nlogging.getLogger('flask_graceful').setLevel(logging.{})\n"
    service.begin(level.format("WARNING"))
    service.one.wait_for(r"Serving HTTP on", 2)
    old = service.ask()
    service.write(level.format("INFO"))
    service.signal(signal.SIGHUP)
    # What serves has chosen it.
    service.one.wait_for(GENERATION)
    assert service.ask() != old
    for words in ("Supervisor starts generation", "Received SIGHUP", "Generation 1"):
        assert words not in service.one.log
    service.signal(signal.SIGTERM)
    service.one.wait_for("Supervisor ends")


def test_one_worker_more_and_fewer(service: Service) -> None:
    service.start()
    with load(service) as kept:
        for count in (3, 4):
            service.signal(signal.SIGTTIN)
            service.one.wait_for(rf"^{service.pid} Worker \d+ serves\.$", count - 2)
            assert len(service.processes()) == count + 1
        for count in (3, 2, 1):
            service.signal(signal.SIGTTOU)
            wait_until(lambda: len(service.processes()) == count + 1, f"{count} left")  # noqa: B023
        service.signal(signal.SIGTTOU)
        service.one.wait_for("Workers: 1, and that is the limit")
        kept.wait_served_by(service.processes())
        assert len(service.reload()) == 2


def test_terminal_sends_signals_to_all(service: Service) -> None:
    """Ctrl-C: nobody dies of it, and the request in flight is finished."""
    service.start()
    with service.slow("done") as (slow, worker):
        os.killpg(service.pid, signal.SIGINT)
        service.one.wait_for(f"^{worker} Waiting for connections")
        service.let_go("done")
        assert pid_from_answer(slow) == worker
    service.check_over()
    assert "KeyboardInterrupt" not in service.one.log


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_all_processes_get_a_signal(service: Service, signum: int) -> None:
    """As `pkill` sends it, and some service managers: a stop is a stop, and a reload a reload."""
    service.start()
    with service.slow("done") as (slow, worker):
        for pid in [*service.workers(), service.pid]:
            os.kill(pid, signum)
        if signum == signal.SIGHUP:
            service.workers(2)
        service.one.wait_for(f"^{worker} Waiting for connections")
        service.let_go("done")
        assert pid_from_answer(slow) == worker
    if signum == signal.SIGHUP:
        assert service.ask() in service.workers()
        service.signal(signal.SIGTERM)
    service.check_over()


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_who_was_let_in_is_served(service: Service, where: str) -> None:
    """At a stop: whoever has got a connection gets an answer."""
    path = str(service.directory / "sock")
    for _ in range(STOPS):
        service.start(addr=[":0", f"unix:{path}"])
        address = path if where == "unix" else service.address
        with Load(address, 48, until_gone=True) as fresh:
            fresh.wait_count(500)
            assert fresh.turned_away == 0
            service.signal(signal.SIGTERM)
            fresh.join()
        assert fresh.failed == []
        assert fresh.turned_away == 48
        service.check_over()


def test_shutdown_delay_serves_on(service: Service) -> None:
    service.start(shutdown_delay=60)
    with Client(service.address) as kept:
        assert pid_from(kept)
        service.signal(signal.SIGTERM)
        service.one.wait_for("Serving on for 60 seconds")
        assert service.ask() in service.workers()
        service.signal(signal.SIGHUP)
        service.one.wait_for("Not reloaded: the service is shutting down")
        os.kill(service.workers()[0], signal.SIGKILL)
        service.one.wait_for("was killed by SIGKILL")
        assert service.ask() == service.workers()[1]
        service.signal(signal.SIGTERM)
    service.check_over()
