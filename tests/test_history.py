"""What a service knows of its restarts and of the processes before: real ones, asked over the
control socket."""

from __future__ import annotations

import os
import signal
import threading
import time
import typing as t
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import Client, Live, suspend, wait_until
from flask_graceful.ask import Caller, find
from flask_graceful.history import MOST_RESTARTS, History
from flask_graceful.inquiry import ANSWER_TIME
from program import Program, one_server, serving_pids

BROKEN = "raise SystemExit(3)\n"
REFUSES = """
@server.before_restart
def refuse():
    raise ValueError("not now")
"""


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


@pytest.fixture
def held() -> t.Iterator[t.Callable[[Live, str], Client]]:
    """A request that waits for the file of its name, with `go` for `held`."""
    with ExitStack() as stack:

        def hold(one: Live, name: str) -> Client:
            client = stack.enter_context(Client(("127.0.0.1", one.port)))
            client.send(f"GET /{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            one.wait_for(f"^{name}$")
            return client

        yield hold


def tell(pid: int, command: str = "status", **arguments: t.Any) -> dict[str, t.Any]:
    with Caller(find(pid)[0].path) as caller:
        return caller.ask(command, **arguments)


def restart(one: Live, pid: int, count: int) -> int:
    """The pid of the `count`th process that serves, once the one before accepts no more."""
    os.kill(pid, signal.SIGHUP)
    one.wait_for(rf"^{pid} Waiting for connections to finish")
    return serving_pids(one, count)[count - 1]


def restarts_when_over(pid: int) -> list[dict[str, t.Any]]:
    def found() -> list[dict[str, t.Any]]:
        rows = tell(pid)["restarts"]
        return rows if rows and all(row["over"] is not None for row in rows) else []

    return t.cast("list[dict[str, t.Any]]", wait_until(found, "the restarts are over"))


def test_all_old_processes_are_asked_through_those_between(
    program: Program, held: t.Callable[[Live, str], Client]
) -> None:
    one = program.start(one_server(idle_grace=0))
    pids = serving_pids(one, 1)
    first = held(one, "held-1")
    pids.append(restart(one, pids[0], 2))
    second = [held(one, "held-2"), held(one, "held-3")]
    pids.append(restart(one, pids[1], 3))
    with Client(("127.0.0.1", one.port)) as idle:
        idle.get()
        expected = [
            (pids[2], 3, "running"), (pids[1], 2, "relieved"), (pids[0], 1, "relieved"),
        ]  # fmt: skip

        def is_relieved() -> bool:
            found = tell(pids[2])["workers"]
            return [(w["pid"], w["generation"], w["state"]) for w in found] == expected

        wait_until(is_relieved, "all three, the newest first")
        workers = tell(pids[2])["workers"]

        def active() -> list[tuple[int, int]]:
            found = tell(pids[2])["workers"]
            return [(one["requests"], one["connections"]["active"]) for one in found]

        wait_until(lambda: active() == [(0, 0), (2, 2), (1, 1)], "what each of them does")
        assert all(w["age"] and w["rss"] for w in workers)
    running = tell(pids[2], "requests", stacks=True)["requests"]
    assert [(r["pid"], r["path"]) for r in running] == [
        (pids[0], "/held-1"), (pids[1], "/held-2"), (pids[1], "/held-3"),
    ]  # fmt: skip
    assert all("in app" in "".join(r["stack"]) for r in running)
    for name in ("go-1", "go-2", "go-3"):
        program.let_go(name)
    assert [int(client.response()[2]) for client in (first, *second)] == [
        pids[0], pids[1], pids[1],
    ]  # fmt: skip


def test_an_old_process_that_hangs_is_not_waited_for(
    program: Program, held: t.Callable[[Live, str], Client]
) -> None:
    one = program.start(one_server(idle_grace=0))
    (old,) = serving_pids(one, 1)
    held(one, "held")
    new = restart(one, old, 2)
    wait_until(lambda: len(tell(new)["workers"]) == 2, "both are there")
    suspend(old)
    try:
        began = time.monotonic()
        workers = tell(new)["workers"]
        assert time.monotonic() - began < 5
        assert (workers[1]["pid"], workers[1]["requests"]) == (old, None)
        assert workers[1]["rss"] > 0
    finally:
        os.kill(old, signal.SIGCONT)
    program.let_go()


def test_an_old_process_that_dies_is_not_waited_for(
    program: Program, held: t.Callable[[Live, str], Client]
) -> None:
    one = program.start(one_server(idle_grace=0))
    (old,) = serving_pids(one, 1)
    held(one, "held")
    new = restart(one, old, 2)
    suspend(old)
    killer = threading.Timer(0.05, os.kill, (old, signal.SIGKILL))
    killer.start()
    began = time.monotonic()
    assert len(tell(new)["workers"]) == 1
    # Its death is the answer.
    assert time.monotonic() - began < ANSWER_TIME
    killer.join()


def test_a_restart_is_remembered_with_its_times_and_connections(
    program: Program, held: t.Callable[[Live, str], Client]
) -> None:
    one = program.start(one_server(idle_grace=0))
    (first,) = serving_pids(one, 1)
    assert tell(first)["restarts"] == []
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(("127.0.0.1", one.port))) for _ in range(5)]
        for client in clients:
            client.get()
        slow = held(one, "held")
        second = restart(one, first, 2)

        def moved() -> list[dict[str, int]]:
            return [one["moved"] for one in tell(second)["workers"]]

        wait_until(lambda: moved() == [{"in": 5, "out": 0}, {"in": 0, "out": 5}], "5 moved")
        (row,) = tell(second)["restarts"]
        assert (row["generation"], row["over"], row["error"]) == (2, None, "")
        assert 0 < row["ready"] < 20 and abs(time.time() - row["at"]) < 20
        program.let_go()
        slow.response()
        (row,) = restarts_when_over(second)
        assert row["over"] >= row["ready"] and row["moved"] == 6
        third = restart(one, second, 3)
        rows = restarts_when_over(third)
        assert [(r["generation"], r["moved"]) for r in rows] == [(3, 6), (2, 6)]


def test_a_boot_is_seen_and_one_that_fails_is_remembered(program: Program) -> None:
    one = program.start(one_server())
    (pid,) = serving_pids(one, 1)
    program.write("wait_for_file('boot')\n" + BROKEN)
    os.kill(pid, signal.SIGHUP)
    workers = wait_until(lambda: (w := tell(pid)["workers"])[1:] and w, "it boots")
    assert (workers[0]["generation"], workers[0]["state"]) == (2, "booting")
    assert 0 <= workers[0]["age"] < 20 and workers[0]["requests"] is None
    program.let_go("boot")
    (row,) = restarts_when_over(pid)
    assert (row["generation"], row["ready"], row["moved"]) == (2, None, 0)
    assert row["error"] == f"successor {workers[0]['pid']} exited with status 3"
    program.write(one_server())
    new = restart(one, pid, 2)
    rows = restarts_when_over(new)
    assert [(bool(r["error"]), r["generation"]) for r in rows] == [(False, 2), (True, 2)]
    program.write(one_server(REFUSES))
    pid = restart(one, new, 3)
    os.kill(pid, signal.SIGHUP)
    assert "before_restart" in wait_until(lambda: tell(pid)["restarts"][0]["error"], "it refuses")


def test_one_that_dies_while_the_old_one_is_there_is_remembered_as_failed(
    program: Program, held: t.Callable[[Live, str], Client]
) -> None:
    one = program.start(one_server(idle_grace=0))
    (old,) = serving_pids(one, 1)
    held(one, "held")
    new = restart(one, old, 2)
    wait_until(lambda: len(tell(new)["workers"]) == 2, "both are there")
    os.kill(new, signal.SIGKILL)
    one.wait_for("this process serves again")
    (row,) = tell(old)["restarts"]
    assert row["error"] == f"successor {new} was killed by SIGKILL"
    program.let_go()


def test_workers_have_the_same_over_their_supervisor_s_own_restart(
    program: Program, held: t.Callable[[Live, str], Client]
) -> None:
    one = program.start(one_server(workers=2, idle_grace=0))
    pid = int(one.wait_for(r"^(\d+) Generation 1 serves")[1])
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(("127.0.0.1", one.port))) for _ in range(5)]
        for client in clients:
            client.get()
        slow = held(one, "held")
        os.kill(pid, signal.SIGHUP)
        one.wait_for("Generation 2 serves")
        (row,) = tell(pid)["restarts"]
        assert (row["generation"], row["over"]) == (2, None) and row["ready"] > 0
        program.let_go()
        slow.response()
        (row,) = restarts_when_over(pid)
        assert row["moved"] == 6 and row["over"] >= row["ready"]
        new = [w for w in tell(pid)["workers"] if w["generation"] == 2]
        assert sum(w["moved"]["in"] for w in new) == 6
    program.write(BROKEN)
    os.kill(pid, signal.SIGHUP)
    one.wait_for("Reload failed")
    program.write(one_server(REFUSES, workers=2, idle_grace=0))
    os.kill(pid, signal.SIGHUP)
    one.wait_for(r"Generation \d serves", 3)
    os.kill(pid, signal.SIGHUP)
    one.wait_for("Reload failed", 2)
    errors = [row["error"] for row in restarts_when_over(pid)]
    assert "before_restart" in errors[0]
    assert errors[1] == errors[3] == "" and "exited with status 3" in errors[2]


def test_only_the_last_ones_are_remembered() -> None:
    history = History()
    for generation in range(2, 2 * MOST_RESTARTS):
        history.begin(generation)
        history.take_over()
        history = History(history.record())
        history.end(generation)
    generations = [row["generation"] for row in history.rows()]
    assert generations == sorted(generations, reverse=True)
    assert len(generations) == MOST_RESTARTS and generations[0] == 2 * MOST_RESTARTS - 1


def test_what_has_not_begun_does_not_end() -> None:
    history = History()
    history.take_over()
    history.fail("no reason")
    history.move(1, 3)
    history.end(1)
    assert history.rows() == []
    history.begin(2)
    history.end(2)
    assert history.rows()[0]["over"] is None
    history.take_over()
    history.end(2)
    over = history.rows()[0]["over"]
    history.fail("too late")
    assert history.rows()[0] == {**history.rows()[0], "over": over, "error": ""}
