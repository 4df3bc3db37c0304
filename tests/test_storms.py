"""Signals to a service with workers in every order and at every moment: in the end it serves with
all its workers, or has ended with nothing left behind."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import time
import typing as t
from pathlib import Path

import pytest
from conftest import Live, wait_until
from load import KeptLoad, Load
from service import Service, check_nothing_lost, check_quiet

# Stops, and what may come together with them.
STOPS = ["SIGTERM", "SIGINT", "SIGQUIT"]
OTHERS = ["SIGHUP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2"]


@pytest.fixture
def service(tmp_path: Path, live: t.Callable[..., Live]) -> Service:
    return Service(tmp_path, live)


def send(service: Service, name: str) -> None:
    # It may have ended.
    with contextlib.suppress(ProcessLookupError):
        if service.one.process.poll() is None:
            service.signal(getattr(signal, name))


@pytest.mark.parametrize("seed", range(3))
def test_storm_of_everything_but_stops(service: Service, seed: int) -> None:
    """With nothing lost under load, and not one worker too many or too few."""
    chance = random.Random(seed)
    service.start()
    with KeptLoad(service.port, [0.02] * 8) as kept, Load(service.port, 1, pause=0.01) as fresh:
        for _ in range(40):
            send(service, chance.choice(OTHERS))
            time.sleep(chance.choice([0, 0, 0.01, 0.05, 0.2]))
        # What was asked for is over when one more reload has come to serve.
        service.write(release="last")
        send(service, "SIGHUP")
        service.one.wait_for(r"^\d+ loads last$", 2, 60)
        wait_until(lambda: len(service.processes()) == 3, "two workers", 60)
        kept.wait_served_by(service.processes())
        kept.stop()
        fresh.stop()
    print(f"{service.generations()} generations, {kept.count} requests")
    check_nothing_lost(kept, fresh)
    send(service, "SIGTERM")
    service.check_over()


@pytest.mark.parametrize("seed", range(3))
def test_storm_with_workers_that_die(service: Service, seed: int) -> None:
    chance = random.Random(seed)
    service.start()
    for _ in range(30):
        workers = sorted(service.processes() - {service.pid})
        if workers and chance.random() < 0.4:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(workers), chance.choice([signal.SIGKILL, signal.SIGTERM]))
        else:
            send(service, chance.choice(OTHERS))
        time.sleep(chance.choice([0, 0.01, 0.05, 0.2]))
    service.write(release="last")
    for count in itertools.count(1):
        # A worker of the new code may have been killed, too, and the reload with it.
        send(service, "SIGHUP")
        before = service.generations()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: service.generations() > before, "a reload", 20)  # noqa: B023
            break
        assert count < 3, service.one.log
    wait_until(lambda: len(service.processes()) == 3, "two workers", 60)
    assert service.ask() in service.processes()
    send(service, "SIGTERM")
    service.check_over()


@pytest.mark.parametrize("seconds", [0, 0.03, 0.08, 0.15, 0.25, 0.4])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signal_while_it_starts(service: Service, name: str, seconds: float) -> None:
    """Before the process has become a supervisor, the signal ends it as it ends any process."""
    service.begin()
    time.sleep(seconds)
    send(service, name)
    with contextlib.suppress(AssertionError):
        service.workers(1)
    if name == "SIGHUP" and service.generations():
        assert service.ask()
        send(service, "SIGTERM")
    status = service.one.process.wait(20)
    assert status in (0, -getattr(signal, name))
    service.check_over(status, is_quiet=False)
    assert "internal error" not in service.one.log


@pytest.mark.parametrize("second", STOPS)
@pytest.mark.parametrize("pause", [0, 0.02, 0.1, 0.3])
def test_stop_during_a_reload(service: Service, pause: float, second: str) -> None:
    """At any of its moments, with any signal; and with more of them."""
    service.start(idle_grace=0.1)
    send(service, "SIGHUP")
    time.sleep(pause)
    send(service, second)
    time.sleep(pause / 3)
    send(service, "SIGHUP")
    send(service, second)
    service.check_over()


@pytest.mark.parametrize("names", list(itertools.permutations(["SIGHUP", "SIGTERM", "SIGQUIT"])))
def test_signals_in_all_orders(service: Service, names: tuple[str, ...]) -> None:
    """At once, while a boot is held and a request is in flight."""
    service.start(idle_grace=0.1)
    service.write("while not os.path.exists('boot'): time.sleep(0.01)", release="two")
    send(service, "SIGHUP")
    service.one.wait_for("loads two", 2)
    with service.slow("done"):
        for name in names:
            send(service, name)
        service.one.wait_for("Hammer Time")
        service.let_go("done")
    service.check_over()


def test_stop_at_every_step_of_a_reload(service: Service) -> None:
    """The supervisor's log tells the steps; the signal comes right after each line of it."""
    steps = [
        r"Received SIGHUP",
        r"loads two",
        r"Serving HTTP on .*\n(.*\n)*.* loads two",
        "Waiting",
    ]
    for step in steps:
        service.start(idle_grace=0.1)
        service.write(release="two")
        send(service, "SIGHUP")
        service.one.wait_for(step)
        send(service, "SIGTERM")
        service.check_over()
        assert not re.search("Start failed|Reload failed", service.one.log)


def test_worker_killed_at_every_step_of_a_reload(service: Service) -> None:
    """Old or new: in the end two workers serve, and another reload works."""
    service.start()
    for step in ("Received SIGHUP", r"loads \d", r"Waiting for connections"):
        for which in (0, -1):
            number = str(random.randrange(10**6))
            service.write(release=number)
            seen = len(re.findall(step, service.one.log))
            send(service, "SIGHUP")
            service.one.wait_for(step, seen + 1)
            workers = sorted(service.processes() - {service.pid})
            with contextlib.suppress(ProcessLookupError):
                os.kill(workers[which], signal.SIGKILL)
            wait_until(
                lambda: service.processes() and len(service.processes()) == 3, "two workers", 40
            )
            assert service.ask()
            service.workers(service.generations())
    count = service.generations()
    send(service, "SIGHUP")
    service.workers(count + 1)
    send(service, "SIGTERM")
    service.check_over()
    check_quiet(service.one)
