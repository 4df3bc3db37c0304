"""What people meet who run a service with workers: what it prints, and what it makes of the things
that they do to it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from conftest import Live
from service import END, Service, check_quiet, wait_accepting
from test_control import Answer, end_of

# In the program: is this a worker, and not the process that becomes the supervisor?
IN_WORKER = f"os.getppid() != {os.getpid()}"


class User:
    """Who has started a service, and asks it from a shell."""

    def __init__(self, directory: Path, live: t.Callable[..., Live]) -> None:
        self.service = Service(directory, live)
        self.directory = directory
        (directory / "run").mkdir()
        self.env = {"RUNTIME_DIRECTORY": str(directory / "run")}

    def begin(self, more: str = "", **options: t.Any) -> Live:
        return self.service.begin(more, env=self.env, idle_grace=0, **options)

    def start(self, more: str = "", **options: t.Any) -> Service:
        self.begin(more, **options)
        wait_accepting(self.service.pid, len(self.service.workers(1)))
        return self.service

    def ask(self, *words: str) -> Answer:
        command = [sys.executable, "-m", "flask_graceful", *words]
        pipe = subprocess.PIPE
        env = {**os.environ, **self.env}
        return end_of(
            subprocess.Popen(
                command, cwd=self.directory, env=env, text=True, stdout=pipe, stderr=pipe
            )
        )


@pytest.fixture
def user(tmp_path: Path, live: t.Callable[..., Live]) -> User:
    return User(tmp_path, live)


# Both workers print at the same time, in many small pieces as a traceback is printed.
CHATTER = """
for number in range(200):
    os.write(2, b"<%d>" % os.getpid())
    time.sleep(0.001)
os.write(2, b"\\n")
"""


def test_what_two_workers_print_at_the_same_time_does_not_mix(user: User) -> None:
    service = user.start()
    service.write(CHATTER)
    for pid in service.reload():
        assert f"<{pid}>" * 200 + "\n" in service.one.log


def test_who_prints_without_end_is_seen_before_it_serves(user: User) -> None:
    """A block that does not end is passed on when it gets long."""
    service = user.start()
    endless = "while not os.path.exists('enough'): say(os.getpid(), 'is'); time.sleep(0.01)"
    service.write(endless)
    service.signal(signal.SIGHUP)
    service.one.wait_for(r"^\d+ is$")
    assert service.generations() == 1
    service.let_go("enough")
    service.workers(2)


def test_worker_that_is_given_up_is_not_said_to_be_killed(user: User) -> None:
    service = user.start()
    # Whoever is first boots for long; the other one fails, and that is the end of both.
    service.write(
        "try: os.mkdir('first')\nexcept FileExistsError: sys.exit('too late')\ntime.sleep(100)"
    )
    service.signal(signal.SIGHUP)
    service.one.wait_for(r"Reload failed: worker \d+ exited with status 1; nothing has changed\.$")
    service.one.wait_for(rf"^{service.pid} Worker \d+ was given up\.$")
    assert "SIGKILL" not in service.one.log
    check_quiet(service.one)


def test_a_start_that_is_interrupted_shows_no_traceback_of_workers(user: User) -> None:
    """Ctrl+c in a terminal goes to the workers, too, while they load the application."""
    one = user.begin(f"if {IN_WORKER}: time.sleep(100)")
    one.wait_for(r"^\d+ loads one", 3)
    os.killpg(one.pid, signal.SIGINT)
    user.service.check_over()
    assert "KeyboardInterrupt" not in one.log


def test_term_to_all_processes_replaces_none(user: User) -> None:
    """As `kill %1` in a shell, `pkill` and systemd's KillMode=control-group have it."""
    service = user.start()
    os.killpg(service.pid, signal.SIGTERM)
    service.check_over()
    assert "replaced" not in service.one.log
    assert len(re.findall(r"loads", service.one.log)) == 3


def test_hang_up_of_a_terminal_reloads_once_and_is_said_once(user: User) -> None:
    service = user.start()
    os.killpg(service.pid, signal.SIGHUP)
    service.workers(2)
    service.signal(signal.SIGTERM)
    service.check_over()
    assert service.one.log.count("Received SIGHUP") == 1
    assert service.generations() == 2


def test_worker_that_gets_hup_says_whose_it_is(user: User) -> None:
    service = user.start()
    worker = service.workers()[0]
    os.kill(worker, signal.SIGHUP)
    service.one.wait_for(
        rf"^{worker} Received SIGHUP, which is for the supervisor: kill -1 {service.pid} "
        r"restarts the service\.$"
    )
    assert service.ask() in service.workers()
    assert service.generations() == 1


def test_log_tells_of_a_reload_and_of_a_stop_who_wants_it(user: User) -> None:
    service = user.start()
    pid = service.pid
    assert user.ask("reload").status == 0
    service.one.wait_for(
        rf"^{pid} Told to reload\.\n{pid} Supervisor starts generation 2\.\n(.*\n)*"
        rf"{pid} Generation 2 serves with workers"
    )
    assert user.ask("stop").status == 0
    service.one.wait_for(rf"^{pid} Told to stop\.\n{pid} \S+ Listener closed\.$")
    service.check_over()


def test_status_while_the_first_workers_and_later_ones_boot(user: User) -> None:
    one = user.begin(f"while {IN_WORKER} and not os.path.exists('boot'): time.sleep(0.01)")
    one.wait_for(r"Supervisor starts generation 1\.$")
    one.wait_for(r"^\d+ loads one", 3)
    assert user.ask("status").out.startswith(f"{one.pid} booting, generation 1: [::]:")
    user.service.let_go("boot")
    user.service.workers(1)
    os.unlink(user.directory / "boot")
    user.service.signal(signal.SIGHUP)
    one.wait_for(r"^\d+ loads one", 5)
    shown = user.ask("status").out
    # What boots may never serve.
    assert re.match(rf"{one.pid} running, generation 1: \[::\]:\d+\n", shown)
    assert len(re.findall(r"^ *\d+ +2  booting ", shown, re.MULTILINE)) == 2
    user.service.let_go("boot")
    user.service.workers(2)
    assert user.ask("status").out.startswith(f"{one.pid} running, generation 2: ")


@pytest.mark.parametrize(
    ("word", "command"), [("relaod", "reload"), ("restart", "reload"), ("stauts", "status")]
)
def test_command_that_is_mistyped(user: User, word: str, command: str) -> None:
    status, out, err = user.ask(word)
    assert (status, out) == (2, "")
    assert re.fullmatch(
        rf"flask_graceful: no module named '{word}' in .*; or is it the command '{command}'\?\n",
        err,
    )


def test_start_on_an_address_in_use_says_so_once(user: User) -> None:
    """In the process that was started, before there are workers; its code gets the exception."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        end = END + "except OSError as err:\n    say(type(err).__name__, err)\n    sys.exit(9)\n"
        one = user.begin(end=end, addr=[":0", f"127.0.0.1:{port}"])
        assert one.process.wait(60) == 9
    one.wait_for(r"^ListenError ")
    assert one.log.count("address already in use") == 1
    assert one.log.count("loads one") == 1
    assert "Supervisor" not in one.log


def test_start_whose_pid_file_can_t_be_written_says_so_once(user: User) -> None:
    one = user.begin(pid_file="none/pid")
    assert one.process.wait(60) == 1
    one.wait_for(r"no such file or directory$")
    assert len(re.findall(r"pid file .*none/pid", one.log)) == 1


def test_socket_file_of_a_start_that_fails_later_is_removed(user: User) -> None:
    path = user.directory / "sock"
    one = user.begin(f"if {IN_WORKER}: sys.exit(3)", addr=f"unix:{path}")
    assert one.process.wait(60) == 1
    one.wait_for(r"Start failed: worker \d+ exited with status 3")
    assert not path.exists()
