"""The commands with workers: the supervisor answers for all of them."""

from __future__ import annotations

import os
import pty
import re
import signal
import threading
import typing as t
from pathlib import Path

import pytest
from conftest import Live, suspend
from load import KeptLoad, Load
from service import Service, check_nothing_lost
from test_control import Answer, Place, end_of, read_until


class Office(Service):
    """A service with workers and its own runtime directory, and commands that look there."""

    def __init__(self, directory: Path, live: t.Callable[..., Live]) -> None:
        super().__init__(directory, live)
        self.place = Place(directory, live)

    def begin(self, more: str = "", **options: t.Any) -> Live:
        options = {"idle_grace": 0, **options}
        return super().begin(more, env=self.place.env, **options)

    def ask(self, *words: str) -> Answer:  # type: ignore[override]
        return self.place.ask(*words)


@pytest.fixture
def office(tmp_path: Path, live: t.Callable[..., Live]) -> Office:
    return Office(tmp_path, live)


def test_status_shows_the_workers_and_what_they_do(office: Office) -> None:
    office.start()
    with office.slow("go") as (client, pid):
        status = office.place.status()
        assert (status["pid"], status["generation"]) == (office.pid, 1)
        assert status["state"] == "running"
        assert status["addresses"] == [f"[::]:{office.port}"]
        workers = {one["pid"]: one for one in status["workers"]}
        assert sorted(workers) == sorted(office.workers(1))
        for number, one in workers.items():
            is_busy = int(number == pid)
            assert (one["generation"], one["state"]) == (1, "serving")
            assert one["connections"] == {"new": 0, "active": is_busy, "idle": 0, "taken": 0}
            assert one["requests"] == is_busy
            assert one["rss"] > 1 << 20
            assert 0 < one["age"] < 60
        table = office.ask("status").out
        assert re.search(rf"^ *{pid} +1 +serving ", table, re.MULTILINE), table
        # Those that finish are there until they have.
        office.signal(signal.SIGHUP)
        office.workers(2)
        workers = {one["pid"]: one for one in office.place.status()["workers"]}
        assert workers[pid]["state"] == "draining"
        assert workers[pid]["requests"] == 1
        assert {workers[one]["generation"] for one in office.workers(2)} == {2}
        office.let_go("go")
        assert client.response()[0] == 200


def test_requests_of_all_workers_are_shown_with_their_stacks(office: Office) -> None:
    office.start()
    with office.slow("go") as (first, one), office.slow("gone") as (second, other):
        out = office.ask("requests", "--stacks").out
        for pid in (one, other):
            assert re.search(rf"^ *{pid} +\d+\.\ds +GET +/slow +127\.0\.0\.1:\d+$", out, re.M), out
        assert out.count("time.sleep(0.01)") == 2
        office.let_go("go")
        office.let_go("gone")
        assert first.response()[0] == second.response()[0] == 200
    assert office.ask("requests").out == "no request is running\n"


def test_reload_waits_for_the_new_workers(office: Office) -> None:
    """Over the change of the supervisor's own program, and nobody loses a request."""
    office.start()
    with KeptLoad(office.address, [0.002] * 8) as kept, Load(office.address, 2) as fresh:
        for generation in range(2, 5):
            kept.wait_count(kept.count + 50)
            old = office.workers()
            answer = office.ask("reload")
            assert (answer.status, answer.err) == (0, "")
            new = office.workers(generation)
            pids = [" ".join(map(str, some)) for some in (old, new)]
            assert answer.out == f"reloaded: {pids[0]} -> {pids[1]}\n"
        kept.wait_count(kept.count + 50)
    check_nothing_lost(kept, fresh)


def test_whoever_hears_of_a_reload_is_answered_by_the_new_code(office: Office) -> None:
    """The old workers may be busy when they are to give way, and accept until they have done so."""
    busy = """
def busy():
    say(os.getpid(), "is busy")
    while not os.path.exists("loaded"):
        time.sleep(0.01)
    time.sleep(0.5)

server.register_signal_hook(PRE_SIGNAL, signal.SIGUSR1, busy)
"""
    office.start(busy)
    office.signal(signal.SIGUSR1)
    office.one.wait_for(r"^\d+ is busy", 2)
    office.write("open('loaded', 'w').close()")
    assert office.ask("reload").status == 0
    assert {Service.ask(office) for _ in range(20)} <= set(office.workers(2))


def test_a_reload_that_fails_shows_the_traceback_and_the_next_one_works(office: Office) -> None:
    office.start()
    workers = office.workers(1)
    office.write("def broken(): return 1/0\nbroken()")
    answer = office.ask("reload")
    assert (answer.status, answer.out) == (1, "")
    first = answer.err.splitlines()[0]
    assert re.fullmatch(r"flask_graceful: reload: worker \d+ exited with status 1", first)
    assert "| ZeroDivisionError: division by zero" in answer.err
    assert "in broken" in answer.err
    assert [one["pid"] for one in office.place.status()["workers"]] == workers
    office.write()
    assert office.ask("reload").status == 0
    assert not set(workers) & set(office.workers(2))


def test_all_who_ask_for_a_reload_are_answered(office: Office) -> None:
    """By whichever program the supervisor runs then."""
    office.start()
    asking = [office.place.begin("reload") for _ in range(4)]
    answers = [end_of(one) for one in asking]
    assert [one.status for one in answers] == [0] * 4, answers
    newest = " ".join(map(str, office.workers()))
    assert any(one.out.endswith(f"-> {newest}\n") for one in answers)


def test_hooks_refuse_a_reload_and_a_stop(office: Office) -> None:
    refuse = """
@server.before_restart
def check():
    raise ValueError("not on a Friday")

@server.before_shutdown
def stay():
    return os.path.exists("go")
"""
    office.start(refuse)
    answer = office.ask("reload")
    assert (answer.status, answer.out) == (1, "")
    assert answer.err == "flask_graceful: reload: refused by before_restart hook: not on a Friday\n"
    answer = office.ask("stop")
    assert answer.err == "flask_graceful: stop: refused by before_shutdown hook\n"
    assert office.place.status()["state"] == "running"
    office.let_go("go")
    assert office.ask("stop").out == "stopped\n"
    assert office.one.process.wait(60) == 0


def test_stop_waits_for_requests_and_can_be_shortened(office: Office) -> None:
    office.start()
    with office.slow("never") as (client, _):
        patient = office.place.begin("stop")
        office.one.wait_for("Waiting for workers to finish")
        state = office.place.ask("status", "--json")
        # It can't be asked anew, but who waits is answered.
        assert state.status in (0, 1)
        answer = office.ask("stop", f"--pid={office.pid}", "--timeout=0.2")
        assert (answer.status, answer.out) == (0, "stopped\n")
        assert end_of(patient).out == "stopped\n"
        assert client.rest() == b""
    assert office.one.process.wait(60) == 0


def test_stop_shows_on_a_terminal_what_all_workers_wait_for(office: Office) -> None:
    office.start()
    ours, theirs = pty.openpty()
    with office.slow("go") as (first, _), office.slow("go") as (second, _):
        process = office.place.begin("stop", stderr=theirs)
        os.close(theirs)
        shown = read_until(ours, rb"2 requests, 2 connections \([1-9]\d*s\)")
        assert shown.startswith(b"\rWaiting for ") and b"\n" not in shown
        office.let_go("go")
        assert first.response()[0] == second.response()[0] == 200
    assert end_of(process).out == "stopped\n"
    os.close(ours)
    office.check_over()


def test_a_worker_that_hangs_is_shown_as_far_as_others_can_see(office: Office) -> None:
    office.start()
    stopped, other = office.workers(1)
    suspend(stopped)
    try:
        workers = {one["pid"]: one for one in office.place.status()["workers"]}
        assert workers[stopped]["state"] == "serving"
        assert workers[stopped]["connections"] is None
        assert workers[stopped]["rss"] > 1 << 20
        assert workers[other]["requests"] == 0
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_a_stop_answers_who_waits_for_a_reload(office: Office) -> None:
    office.start()
    office.write("while not os.path.exists('go'): time.sleep(0.01)")
    reload = office.place.begin("reload")
    office.one.wait_for("loads", 5)
    done = threading.Event()
    stop = office.place.begin("stop")
    answer = end_of(reload)
    done.set()
    assert answer.err == "flask_graceful: reload: the service is shutting down\n"
    assert end_of(stop).out == "stopped\n"
    office.check_over()
