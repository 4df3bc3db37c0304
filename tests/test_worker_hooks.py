"""What an application with workers hears of its service, and has it do: hooks, signals, and calls
from a request."""

from __future__ import annotations

import re
import signal
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Live, suspend, wait_until
from service import Service, pid_from, said_by

# A page that asks for a restart in the way that it is told, and says how that has ended.
PAGES = """
def restart(said):
    try:
        return f"{server.restart(wait=said == 'wait')}"
    except RestartError as error:
        return f"RestartError: {error}"

pages["/restart"] = restart
pages["/stop"] = lambda said: str(server.stop(float(said) if said else None))
pages["/parent"] = lambda said: f"{has_parent()} {server.wait_for_parent(0)}"
"""


@pytest.fixture
def service(tmp_path: Path, live: t.Callable[..., Live]) -> Service:
    return Service(tmp_path, live)


def count(service: Service, pattern: str) -> int:
    return len(re.findall(pattern, service.one.log, re.M))


def test_before_begin_runs_in_each_worker(service: Service) -> None:
    """Not in the process that becomes the supervisor, and before any worker accepts."""
    service.start("server.before_begin(lambda addr: say(os.getpid(), 'begins'))")
    for generation in (1, 2):
        for pid in service.workers():
            assert count(service, f"^{pid} begins$") == 1
        assert count(service, r"^\d+ begins$") == 2 * generation
        service.reload()


def test_before_restart_refuses_a_reload(service: Service) -> None:
    service.start(
        PAGES
        + """
@server.before_restart
def ask():
    say(os.getpid(), "is asked")
    if os.path.exists("busy"):
        raise RuntimeError("a backup runs")
"""
    )
    old = service.workers()
    (service.directory / "busy").touch()
    service.signal(signal.SIGHUP)
    why = "refused by before_restart hook: a backup runs"
    service.one.wait_for(rf"^{service.pid} Reload failed: {why}; nothing has changed\.$")
    with Client(service.address) as client:
        assert said_by(client, "/restart?wait") == f"RestartError: {why}"
        assert service.processes() == {service.pid, *old}
        # One of them is asked for all.
        assert count(service, r"^\d+ is asked$") == 2
        (service.directory / "busy").unlink()
        service.reload()
        assert said_by(client, "/restart?wait") == "None"
        (service.directory / "busy").touch()
        service.workers(3)
        service.signal(signal.SIGHUP)
        service.one.wait_for(rf"Reload failed: {why}; nothing has changed\.$", 3)


def test_before_shutdown_refuses_a_stop(service: Service) -> None:
    service.start(
        PAGES
        + """
@server.before_shutdown
def ask():
    is_busy = os.path.exists("busy")
    say(os.getpid(), "is asked")
    return not is_busy
"""
    )
    (service.directory / "busy").touch()
    for number in (1, 2):
        service.signal(signal.SIGTERM)
        service.one.wait_for(
            rf"^{service.pid} Not stopped: refused by before_shutdown hook\.$", number
        )
    with Client(service.address) as client:
        assert said_by(client, "/stop") == "True"
        service.one.wait_for(r"^\d+ is asked$", 3)
        assert client.get()[0] == 200
        (service.directory / "busy").unlink()
        service.signal(signal.SIGTERM)
        assert client.is_closed()
    service.check_over()
    assert count(service, r"^\d+ is asked$") == 4


def test_stop_does_not_wait_for_a_worker_that_gives_no_answer(service: Service) -> None:
    """It is stopped, in any sense. Another signal does not wait for it either."""
    service.start("server.before_shutdown(lambda: True)", idle_grace=0)
    for pid in service.workers():
        suspend(pid)
    service.signal(signal.SIGTERM)
    service.one.wait_for("Received SIGTERM")
    service.signal(signal.SIGQUIT)
    service.one.wait_for(r"does not end; killing it", 2)
    service.check_over()


def test_a_worker_that_dies_of_a_hook_is_the_only_one_that_is_asked(service: Service) -> None:
    """Nothing is reloaded then; a stop goes on."""
    service.start(
        """
def ask():
    say(os.getpid(), "is asked")
    os._exit(1)

server.before_restart(ask)
server.before_shutdown(ask)
""",
        idle_grace=0,
    )
    asked, other = service.workers()
    service.signal(signal.SIGHUP)
    why = "the worker that was asked whether a hook refuses gives no answer"
    service.one.wait_for(f"^{service.pid} Reload failed: {why}; nothing has changed")
    assert service.ask() == other
    service.one.wait_for(f"Worker {asked} exited with status 1 .* another one is started now")
    service.signal(signal.SIGTERM)
    service.check_over()
    assert re.findall(r"^(\d+) is asked$", service.one.log, re.M) == [str(asked), str(other)]
    assert service.generations() == 1


def test_hooks_of_signals_run_in_each_worker(service: Service) -> None:
    service.start(
        """
for name in ("SIGUSR1", "SIGHUP", "SIGTERM"):
    for when in (PRE_SIGNAL, POST_SIGNAL):
        server.register_signal_hook(
            when, getattr(signal, name), lambda name=name, when=when: say(os.getpid(), when, name)
        )
"""
    )
    old = service.workers()

    def check(name: str, pids: t.Iterable[int]) -> None:
        for pid in pids:
            for when in ("0", "1"):
                service.one.wait_for(rf"^{pid} {when} {name}$")

    service.signal(signal.SIGUSR1)
    check("SIGUSR1", old)
    new = service.reload()
    check("SIGHUP", old)
    service.signal(signal.SIGTERM)
    check("SIGTERM", new)
    service.check_over()
    assert count(service, r"^\d+ . SIG") == 3 * 4


def test_hooks_of_the_end_run_once_in_each_worker(service: Service) -> None:
    """At a stop, and at a reload for those that go."""
    service.start(
        """
server.register_on_shutdown(lambda: say(os.getpid(), "shuts down"))
server.shutdown_initiated(lambda: say(os.getpid(), "initiated"))
"""
    )
    old = service.workers()
    new = service.reload()
    service.signal(signal.SIGTERM)
    service.check_over()
    for pid in [*old, *new]:
        assert count(service, f"^{pid} shuts down$") == 1
        assert count(service, f"^{pid} initiated$") == 1


@pytest.mark.parametrize("how", ["", "wait"])
def test_a_request_restarts_the_service(service: Service, how: str) -> None:
    """It is answered by the old worker, and with `wait` when the new ones serve."""
    service.start(PAGES)
    old = service.workers()
    with Client(service.address) as client:
        pid, _, said = client.get(f"/restart?{how}")[2].decode().partition(" ")
        assert (int(pid) in old, said) == (True, "None")
        if how:
            assert service.ask() not in old
        new = service.workers(2)
        wait_until(lambda: pid_from(client) in new, "the connection's way to a new worker")
    for pid in old:
        service.wait_gone(pid)


def test_a_request_is_told_why_there_is_no_restart(service: Service) -> None:
    service.start(PAGES)
    old = service.workers()
    service.write("sys.exit('no database')")
    with Client(service.address) as client:
        assert re.fullmatch(
            r"RestartError: worker \d+ exited with status 1", said_by(client, "/restart?wait")
        )
        assert int(client.get()[2].split()[0]) in old


def test_a_request_that_asks_twice_is_answered(service: Service) -> None:
    """The worker has given way when it asks for the second time."""
    service.start(PAGES + "pages['/twice'] = lambda said: restart('wait') + ' ' + restart('wait')")
    with Client(service.address) as client:
        assert said_by(client, "/twice") == "None None"
    service.workers(3)


def test_requests_that_ask_at_the_same_time_are_answered(service: Service) -> None:
    service.start(PAGES)
    clients = [Client(service.address) for _ in range(6)]
    for client in clients:
        client.send(b"GET /restart?wait HTTP/1.1\r\nHost: a\r\n\r\n")
    for client in clients:
        assert client.response()[2].endswith(b" None")
        client.sock.close()
    service.signal(signal.SIGTERM)
    service.check_over()
    assert service.generations() <= 3


def test_a_request_stops_the_service(service: Service) -> None:
    """Its own answer is the last."""
    service.start(PAGES)
    with service.slow("never"), Client(service.address) as client:
        assert said_by(client, "/stop?0.5") == "True"
        service.one.wait_for(r"Worker \d+ asks for a stop")
        # The thread of the slow request lives on, as long as it likes.
        service.one.wait_for("Hammer Time")
        service.let_go("never")
    service.check_over()


def test_wait_for_parent_waits_for_the_old_workers(service: Service) -> None:
    service.start(PAGES)
    with Client(service.address) as client:
        assert said_by(client, "/parent") == "False True"
    with service.slow("done"):
        service.signal(signal.SIGHUP)
        new = service.workers(2)
        with Client(service.address) as client:
            wait_until(lambda: pid_from(client) in new, "the connection's way to a new worker")
            assert said_by(client, "/parent") == "True False"
            service.let_go("done")
            wait_until(lambda: said_by(client, "/parent") == "True True", "the old workers gone")
