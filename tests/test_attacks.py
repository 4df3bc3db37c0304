"""Moments and manners that nobody plans for: signals in the middle of a change of programs, workers
that hang, directories that vanish. Whatever it is, the service serves or ends as it was told."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Live, Running, ready, suspend, wait_until
from flask_graceful.ask import Caller
from program import children
from service import Service, is_refused, pid_from

WAIT = "def wait_for(name):\n    while not os.path.exists(name): time.sleep(0.01)\n"


@pytest.fixture
def service(tmp_path: Path, live: t.Callable[..., Live]) -> Service:
    return Service(tmp_path, live)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


# A supervisor that changes its program.

# Seconds that no trial takes.
MOST_TRIAL = 5.0


def wait_for_end_of_trial(service: Service, known: set[int]) -> None:
    """Return when the trial of the new program has ended, or a moment later: the program is about
    to be replaced. Nothing but a busy loop is quick enough. Who was not quick has seen a worker,
    which does not end."""
    while not (trials := set(children(service.pid)) - known):
        pass
    until = time.monotonic() + MOST_TRIAL
    while state_of(min(trials)) not in ("Z", "") and time.monotonic() < until:
        pass


def test_no_signal_is_lost_when_the_program_is_replaced(service: Service) -> None:
    service.start(workers=1)
    for sent in range(1, 13):
        known = set(children(service.pid))
        service.signal(signal.SIGHUP)
        wait_for_end_of_trial(service, known)
        for _ in range(sent * 800):
            # Each time a little later.
            pass
        service.signal(signal.SIGUSR1)
        service.workers(sent + 1)
        wait_until(lambda n=sent: service.one.log.count("Received SIGUSR1.") == n, "the signal")


@pytest.mark.parametrize("is_refused_", [False, True])
def test_a_stop_that_is_being_considered_is_not_forgotten(
    service: Service, is_refused_: bool
) -> None:
    """The program is not replaced before the hook has answered."""
    hook = "server.before_shutdown(lambda: say('considers') or wait_for('go') or {})"
    service.start(WAIT + hook.format(not is_refused_))
    known = set(children(service.pid))
    service.signal(signal.SIGHUP)
    service.signal(signal.SIGTERM)
    service.one.wait_for("considers")
    wait_until(lambda: set(children(service.pid)) == known, "the end of the trial")
    service.let_go("go")
    if is_refused_:
        service.workers(2)
        # Which asks nobody.
        service.signal(signal.SIGQUIT)
    service.check_over()


# Stops.


def test_who_hangs_gains_no_time_by_more_signals(service: Service) -> None:
    """A worker that does not listen is killed 5 s after the first signal that is to hurry it."""
    service.start()
    suspend(service.workers()[0])
    service.signal(signal.SIGTERM)
    began = time.monotonic()
    while service.one.process.poll() is None and time.monotonic() < began + 15:
        service.signal(signal.SIGTERM)
        time.sleep(0.5)
    assert 4 < time.monotonic() - began < 10
    # The last one may meet a program that has put its handlers away.
    assert service.one.process.wait() in (0, -signal.SIGTERM)


def test_an_answer_that_comes_too_late_changes_nothing(service: Service) -> None:
    """Whether the service may stop is not asked any more once SIGQUIT has come."""
    hook = "server.before_shutdown(lambda: say('considers') or wait_for('go'))"
    service.start(WAIT + hook, workers=3)
    # The first one is asked.
    hanging = service.workers()[-1]
    suspend(hanging)
    service.signal(signal.SIGTERM)
    service.one.wait_for("considers")
    service.signal(signal.SIGQUIT)
    began = time.monotonic()
    service.one.wait_for("Hammer Time")
    service.let_go("go")
    service.check_over()
    assert time.monotonic() - began < 10
    assert service.one.log.count("Waiting for workers to finish") == 1


# Reloads.


def test_a_reload_that_fails_leaves_no_listener_behind(service: Service) -> None:
    service.start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    service.write("server.before_begin(lambda addr: 1 / 0)", addr=f"127.0.0.1:{port}")
    service.signal(signal.SIGHUP)
    service.one.wait_for("Reload failed")
    wait_until(lambda: is_refused(port), "the end of the new listener")
    assert service.ask() in service.workers()
    # Somebody else may have it, and the same code when it is mended.
    service.write(addr=f"127.0.0.1:{port}")
    service.reload()
    with Client(("127.0.0.1", port)) as client:
        assert client.get()[0] == 200


def test_a_control_socket_that_has_lost_its_directory_ends_no_service(service: Service) -> None:
    place = service.directory / "control"
    place.mkdir()
    service.start(control_socket=str(place / "socket"))
    shutil.rmtree(place)
    service.reload()
    service.one.wait_for(rf"control socket {place}/socket: [Nn]o such file")
    place.mkdir()
    service.reload()
    assert (place / "socket").is_socket()


@pytest.mark.parametrize("rolling", [False, True])
def test_a_worker_that_hangs_holds_up_no_reload(service: Service, rolling: bool) -> None:
    """It has the time of a sound one to finish, and 5 s more. The supervisor knows of it although
    its program was replaced meanwhile."""
    service.start(rolling=rolling, hammer_time=1)
    hanging = service.workers()[0]
    suspend(hanging)
    service.signal(signal.SIGHUP)
    if not rolling:
        service.workers(2)
        service.signal(signal.SIGHUP)
    service.workers(2 if rolling else 3)
    service.one.wait_for(f"Worker {hanging} does not end; killing it.")
    service.wait_gone(hanging)
    wait_until(lambda: len(children(service.pid)) == 2, "the end of all old workers")


# Workers that come and go.


def test_who_was_to_go_serves_on_when_its_successor_dies_at_once(service: Service) -> None:
    """Its clients wait for nobody."""
    service.start(workers=1)
    (old,) = service.workers()
    with service.slow("done") as (client, _), Client(service.address) as other:
        os.kill(old, signal.SIGTERM)
        new = int(service.one.wait_for(r"Worker (\d+) serves\.$")[1])
        wait_until(lambda: int(other.get()[2].split()[0]) == new, "the new worker")
        os.kill(new, signal.SIGKILL)
        service.one.wait_for(f"Worker {old}, which was to go, serves again")
        service.let_go("done")
        assert client.response()[0] == 200
        assert client.get()[0] == 200
        service.one.wait_for(r"Worker \d+ serves\.$", 2)
        assert client.get()[0] == 200
    service.wait_gone(old)


def test_a_connection_on_its_way_to_who_ends_by_a_stop_comes_back(service: Service) -> None:
    """Who has sent it is to end too, and does not wait for somebody to take it."""
    service.start(workers=1, idle_grace=2)
    with service.slow("done") as (client, old):
        service.signal(signal.SIGHUP)
        (new,) = service.workers(2)
        service.one.wait_for(f"^{old} Waiting for connections")
        suspend(new)
        service.let_go("done")
        assert client.response()[0] == 200
        service.signal(signal.SIGTERM)
        service.one.wait_for("Waiting for workers to finish")
        # Both have been told; one of them hears it no more.
        time.sleep(0.2)
        os.kill(new, signal.SIGKILL)
        assert pid_from(client) == old
    service.check_over()


def test_two_workers_that_ask_for_a_stop_are_in_no_hurry(service: Service) -> None:
    """Only one that asks again is; what the other one serves is not cut."""
    service.start("pages['/stop'] = lambda text: str(server.stop())")
    with service.slow("done") as (slow, _):
        # Neither worker knows of the other one's wish: what they are told waits.
        suspend(service.pid)
        asked: set[int] = set()
        with contextlib.ExitStack() as stack:
            while len(asked) < 2:
                # They stay, so that the other worker gets the next ones.
                client = stack.enter_context(Client(service.address))
                if pid_from(client) not in asked:
                    asked.add(pid_from(client, "/stop"))
        os.kill(service.pid, signal.SIGCONT)
        service.one.wait_for("asks for a stop", 2)
        service.one.wait_for("Waiting for connections to finish", 2)
        service.let_go("done")
        assert slow.response()[0] == 200
    service.check_over()
    assert "Hammer Time" not in service.one.log


def test_who_asks_is_answered_before_the_program_is_replaced(service: Service) -> None:
    """With what is known then: one worker has not answered yet."""
    service.start(control_socket="ctl")
    hanging, other = service.workers()
    suspend(hanging)
    known = set(children(service.pid))
    service.signal(signal.SIGHUP)
    wait_until(lambda: set(children(service.pid)) - known, "the trial")
    with Caller(str(service.directory / "ctl")) as caller:
        requests = {one["pid"]: one["requests"] for one in caller.ask("status")["workers"]}
    assert (requests[hanging], requests[other]) == (None, 0)
    os.kill(hanging, signal.SIGCONT)
    service.workers(2)


# Numbers.


@pytest.mark.parametrize("seconds", [3e6, 1e8, 1e12, 1e308])
def test_a_time_of_years_is_waited_for(seconds: float, running: t.Callable[..., Running]) -> None:
    """The system can't wait for so long in one piece."""
    names = ("read_timeout", "write_timeout", "idle_timeout", "request_timeout")
    one = running(ready, **dict.fromkeys(names, seconds))
    with one.connect() as client:
        for _ in range(3):
            assert client.get()[0] == 200
            time.sleep(0.1)
    one.server.shutdown(seconds)


@pytest.mark.parametrize("seconds", ["1e308", "9" * 3000])
def test_a_stop_may_be_given_years(service: Service, seconds: str) -> None:
    service.start(control_socket="ctl", hammer_time=1e308)
    path = str(service.directory / "ctl")
    with service.slow("done") as (client, _), Caller(path) as caller:
        caller._sock.sendall(b'{"command": "stop", "timeout": %s}\n' % seconds.encode())
        if "e" in seconds:
            service.one.wait_for("Waiting for connections to finish", 2)
        else:
            assert "expected 0 or more seconds" in caller._next()["error"]
            service.signal(signal.SIGTERM)
        service.let_go("done")
        assert client.response()[0] == 200
    service.check_over()


def test_a_rolling_reload_fails_when_a_worker_dies_that_has_taken_over(service: Service) -> None:
    """It does not wait for ever for one more, and nobody who serves is missing afterwards."""
    service.start(rolling=True)
    with contextlib.ExitStack() as stack:
        held: list[int] = []
        while len(set(held)) < 2:
            # Who gives way does not end before the test lets it.
            held.append(stack.enter_context(service.slow(f"done{len(held)}"))[1])
        service.signal(signal.SIGHUP)
        service.one.wait_for("Waiting for connections to finish")
        (new,) = set(children(service.pid)) - set(held)
        os.kill(new, signal.SIGKILL)
        service.one.wait_for(rf"Reload failed: worker {new} ")
        for number in range(len(held)):
            service.let_go(f"done{number}")
    new_workers = service.reload()
    assert len(new_workers) == 2
    wait_until(lambda: set(children(service.pid)) == set(new_workers), "the end of all others")
