"""The control socket and the commands that use it: real servers, asked by real commands."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import typing as t
from pathlib import Path

import pytest
from conftest import ROOT, Client, Live, suspend, wait_until
from flask_graceful import ask as asking
from flask_graceful.commands import duration, safe, size
from load import KeptLoad
from program import Program, ask, is_gone, one_server, serving_pids

NOBODY = 65534
BARE = {"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": ""}
# A successor that waits for a file, and fails if it is the first one.
HELD_BOOT = """
if has_parent():
    say("booting")
    wait_for_file("boot")
    if os.path.exists("fail"):
        os.unlink("fail")
        sys.exit(3)
"""


class Answer(t.NamedTuple):
    status: int
    out: str
    err: str


class Place:
    """A directory with a program, a runtime directory of its own, and commands that look there."""

    def __init__(self, directory: Path, live: t.Callable[..., Live]) -> None:
        self.program = Program(directory, live)
        self.directory = directory
        # As systemd does it: commands that have this variable look nowhere else.
        self.runtime = directory / "run"
        self.runtime.mkdir()
        self.env = {"RUNTIME_DIRECTORY": str(self.runtime)}

    def start(self, more: str = "", **options: t.Any) -> Live:
        options = {"idle_grace": 0, **options}
        one = self.program.start(one_server(more, **options), **self.env)
        one.wait_for(r"Serving HTTP on")
        return one

    def begin(self, *words: str, **options: t.Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flask_graceful", *words],
            cwd=self.directory, env={**os.environ, **self.env}, text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )  # fmt: skip

    def ask(self, *words: str) -> Answer:
        return end_of(self.begin(*words))

    def status(self, *words: str) -> dict[str, t.Any]:
        answer = self.ask("status", "--json", *words)
        assert (answer.status, answer.err) == (0, ""), answer
        found: dict[str, t.Any] = json.loads(answer.out)
        return found

    def sockets(self) -> list[str]:
        return sorted(os.listdir(self.runtime))


def end_of(process: subprocess.Popen[str]) -> Answer:
    out, err = process.communicate(timeout=60)
    return Answer(process.returncode, out, err)


def is_one_line(answer: Answer, line: str) -> bool:
    return (answer.status, answer.out, answer.err) == (1, "", f"flask_graceful: {line}\n")


@pytest.fixture
def place(tmp_path: Path, live: t.Callable[..., Live]) -> Place:
    return Place(tmp_path, live)


def held(one: Live, name: str = "held") -> Client:
    """A request that waits for the file `go`."""
    client = Client(("127.0.0.1", one.port))
    client.send(f"GET /{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    one.wait_for("^" + re.match(r"[a-z-]+", name)[0])
    return client


def talk(path: Path, data: bytes) -> bytes:
    """What the control socket says to this."""
    with Client(str(path)) as client:
        client.send(data)
        return client.rest()


# status and requests


def test_status_shows_the_process(place: Place) -> None:
    one = place.start("server.spawn(wait_for_file, 'go')")
    with Client(("127.0.0.1", one.port)) as idle:
        idle.get()

        def is_idle() -> dict[str, t.Any] | None:
            found = place.status()
            return found if found["workers"][0]["connections"]["idle"] else None

        # It has its answer a moment before.
        status = wait_until(is_idle, "an idle connection")
        worker = status["workers"][0]
        assert {name: status[name] for name in ("pid", "generation", "state", "addresses")} == {
            "pid": one.pid,
            "generation": 1,
            "state": "running",
            "addresses": [f"[::]:{one.port}"],
        }
        assert worker["connections"] == {"new": 0, "active": 0, "idle": 1, "taken": 0}
        assert (worker["pid"], worker["requests"], worker["tracked"]) == (one.pid, 0, 1)
        assert 0 < worker["age"] < 60
        assert 1 << 20 < worker["rss"] < 1 << 30
        answer = place.ask("status")
        place.program.let_go()
    lines = answer.out.splitlines()
    assert lines[0] == f"{one.pid} running, generation 1: [::]:{one.port}"
    assert (
        lines[2].split() == "PID GEN STATE AGE NEW ACTIVE IDLE TAKEN REQUESTS TRACKED RSS".split()
    )
    row = lines[3].split()
    assert row[:3] + row[4:10] == [str(one.pid), "1", "running", "0", "0", "1", "0", "0", "1"]
    assert len(lines[3]) == len(lines[2])


def test_requests_shows_what_runs_and_where(place: Place) -> None:
    one = place.start()
    assert place.ask("requests") == Answer(0, "no request is running\n", "")
    with held(one, "held-\xe9") as client:
        answer = place.ask("requests", "--stacks")
        head, row, *stack = answer.out.splitlines()
        assert head.split() == ["PID", "AGE", "METHOD", "PATH", "PEER"]
        name = "127.0.0.1:" + str(client.sock.getsockname()[1])
        assert re.fullmatch(rf"{one.pid} +\d+\.\ds  GET     /held-\S+  +{name}", row)
        assert row.isascii() and row.isprintable()
        assert any(re.fullmatch(r'     *File ".*program.py", line \d+, in app', x) for x in stack)
        (found,) = json.loads(place.ask("requests", "--json").out)["requests"]
        assert found.keys() == {"pid", "age", "method", "path", "peer"}
        assert (found["pid"], found["method"], found["peer"]) == (one.pid, "GET", name)
        place.program.let_go("go-\xc3\xa9")


def test_nothing_reaches_the_terminal_that_it_would_obey() -> None:
    assert safe("/a\x1b[31m\r\n\x9b\u202e\udc80é") == "/a\\x1b[31m\\r\\n\\x9b\\u202e\\udc80é"
    assert [duration(x) for x in (None, 0.4, 61, 3600, 90061)] == ["-", "0s", "1m1s", "1h", "1d1h"]
    assert [size(None), size(3 << 19)] == ["-", "1.5M"]


# reload


def test_reload_waits_for_the_new_process(place: Place) -> None:
    one = place.start()
    (file,) = place.sockets()
    assert file == f"{one.pid}.sock"
    answer = place.ask("reload")
    new = serving_pids(one, 2)[1]
    assert answer == Answer(0, f"reloaded: {one.pid} -> {new}\n", "")
    assert ask(one.port) == new
    wait_until(lambda: place.sockets() == [f"{new}.sock"], "one socket")
    status = place.status()
    assert (status["pid"], status["generation"]) == (new, 2)


def test_a_reload_that_fails_shows_the_traceback_and_the_next_one_works(place: Place) -> None:
    one = place.start()
    program = place.directory / "program.py"
    text = program.read_text()
    program.write_text("def")
    answer = place.ask("reload")
    assert answer.status == 1 and answer.out == ""
    lines = answer.err.splitlines()
    assert re.fullmatch(r"flask_graceful: reload: successor \d+ exited with status 1", lines[0]), (
        answer.err
    )
    assert lines[1] == "Its last lines:"
    assert lines[-1] == "| SyntaxError: invalid syntax"
    assert ask(one.port) == one.pid
    program.write_text(text)
    answer = place.ask("reload")
    assert answer == Answer(0, f"reloaded: {one.pid} -> {serving_pids(one, 2)[1]}\n", "")
    assert place.status()["generation"] == 2


def test_a_hook_refuses_a_reload_and_a_stop(place: Place) -> None:
    one = place.start(
        "@server.before_restart\ndef no():\n    raise ValueError('not now')\n"
        "server.before_shutdown(lambda: os.path.exists('go'))"
    )
    answer = place.ask("reload")
    assert answer.status == 1 and "before_restart" in answer.err and answer.err.count("\n") == 1
    line = "stop: refused by before_shutdown hook"
    assert is_one_line(place.ask("stop"), line)
    assert ask(one.port) == one.pid
    place.program.let_go()
    assert place.ask("stop") == Answer(0, "stopped\n", "")


@pytest.mark.parametrize("fails", [False, True])
def test_a_reload_asked_for_during_another_is_answered_at_its_own_end(
    place: Place, fails: bool
) -> None:
    one = place.start()
    place.program.write(HELD_BOOT + one_server(idle_grace=0))
    if fails:
        place.program.let_go("fail")
    first = place.begin("reload")
    one.wait_for("^booting")
    second = place.begin("reload")
    one.wait_for("another one follows")
    assert second.poll() is None
    place.program.let_go("boot")
    answers = [end_of(first), end_of(second)]
    one.wait_for("^booting", 2)
    pids = serving_pids(one, 2 if fails else 3)
    if fails:
        assert "exited with status 3" in answers[0].err
        assert answers[1].out == f"reloaded: {pids[0]} -> {pids[1]}\n"
    else:
        assert [answer.out for answer in answers] == [
            f"reloaded: {old} -> {new}\n" for old, new in itertools.pairwise(pids)
        ]
    assert [answer.status for answer in answers] == [int(fails), 0]
    assert place.status()["generation"] == len(pids)
    wait_until(lambda: place.sockets() == [f"{pids[-1]}.sock"], "one socket")


def test_who_asks_for_a_reload_and_goes_only_loses_the_answer(place: Place) -> None:
    one = place.start()
    place.program.write(HELD_BOOT + one_server(idle_grace=0))
    asker = place.begin("reload")
    one.wait_for("^booting")
    asker.kill()
    asker.communicate()
    place.program.let_go("boot")
    new = serving_pids(one, 2)[1]
    wait_until(lambda: ask(one.port) == new, "the new process")


def test_a_stop_during_a_boot_answers_who_waits_for_it(place: Place) -> None:
    one = place.start()
    ignores = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    place.program.write(ignores + HELD_BOOT + one_server(idle_grace=0))
    asker = place.begin("reload")
    one.wait_for("^booting")
    assert place.ask("stop").status == 0
    assert is_one_line(end_of(asker), "reload: the server has stopped")
    assert is_gone(one.pid)


def test_a_new_process_that_dies_leaves_the_old_one_to_be_asked(place: Place) -> None:
    one = place.start()
    with held(one) as client:
        assert place.ask("reload").status == 0
        new = serving_pids(one, 2)[1]
        workers = place.status()["workers"]
        assert [(w["pid"], w["generation"], w["state"]) for w in workers] == [
            (new, 2, "running"),
            (one.pid, 1, "relieved"),
        ]
        os.kill(new, signal.SIGKILL)
        one.wait_for("this process serves again")
        status = place.status("--pid", str(one.pid))
        assert (status["generation"], status["state"]) == (1, "running")
        place.program.let_go()
        assert client.response()[0] == 200


def test_no_request_is_lost_by_reloads(place: Place) -> None:
    more = """
def app(environ, start_response):
    body = environ["wsgi.input"].read() or environ["QUERY_STRING"].encode()
    start_response("200 OK", [])
    return [str(os.getpid()).encode() + b" " + body]
"""
    one = place.program.start(more + one_server(), **place.env)
    with KeptLoad(one.port, [0.002] * 8) as load:
        for number in range(1, 6):
            load.wait_count(load.count + 200)
            answer = place.ask("reload")
            assert answer.status == 0, answer
            assert place.status()["generation"] == number + 1
        load.wait_count(load.count + 200)
    assert (load.failed, load.connects, load.said_close) == ([], 8, 0)


# stop


def test_stop_waits_for_requests_and_shows_them_on_a_terminal(place: Place) -> None:
    one = place.start()
    ours, theirs = pty.openpty()
    with held(one) as client:
        process = place.begin("stop", stderr=theirs)
        os.close(theirs)
        shown = read_until(ours, rb"1 request, 1 connection \([1-9]\d*s\)")
        assert shown.startswith(b"\rWaiting for 1 request, 1 connection (")
        assert b"\n" not in shown
        # Who comes later waits too, and cuts nothing.
        other = place.begin("stop")
        one.wait_for("Waiting for connections")
        assert place.status()["state"] == "shutting_down"
        assert process.poll() is None and other.poll() is None
        place.program.let_go()
        assert client.response()[0] == 200
    assert (process.wait(60), end_of(other)) == (0, Answer(0, "stopped\n", ""))
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.read() == "stopped\n"
    os.close(ours)
    assert is_gone(one.pid)
    assert place.sockets() == []


def read_until(fd: int, pattern: bytes) -> bytes:
    data = b""
    while not re.search(pattern, data):
        assert select.select([fd], [], [], 20)[0], data
        data += os.read(fd, 65536)
    return data


def test_stop_cuts_after_its_timeout(place: Place) -> None:
    one = place.start()
    with held(one) as client:
        assert place.ask("stop", "--timeout", "0.2") == Answer(0, "stopped\n", "")
        assert client.is_closed()
    one.wait_for("Cut: GET /held")


def test_a_later_stop_can_shorten_the_wait(place: Place) -> None:
    one = place.start()
    with held(one):
        first = place.begin("stop")
        one.wait_for("Waiting for connections")
        assert place.ask("stop", "--timeout", "0.2").status == 0
        assert end_of(first).status == 0
    assert is_gone(one.pid)


def test_stop_knows_the_end_of_a_process_that_is_killed(place: Place) -> None:
    one = place.start()
    with held(one):
        process = place.begin("stop")
        one.wait_for("Waiting for connections")
        os.kill(one.pid, signal.SIGKILL)
        assert end_of(process) == Answer(0, "stopped\n", "")


# Which server


def test_without_a_server_there_is_one_line(place: Place) -> None:
    for command in ("reload", "requests", "status", "stop"):
        answer = place.ask(command)
        assert answer.status == 1 and answer.out == ""
        begin = f"flask_graceful: no server is running; looked for its socket in {place.runtime}"
        assert answer.err.startswith(begin) and answer.err.count("\n") == 1


def test_several_servers_are_told_apart_by_pid(place: Place) -> None:
    both = [place.start(), place.start()]
    answer = place.ask("status")
    pids = sorted(one.pid for one in both)
    names = {one.pid: f"{one.pid} ([::]:{one.port})" for one in both}
    listed = ", ".join(names[pid] for pid in pids)
    assert is_one_line(answer, f"2 servers are running: {listed}; choose one with --pid")
    for one in both:
        assert place.status("--pid", str(one.pid))["pid"] == one.pid
    answer = place.ask("status", "--pid", str(os.getpid()))
    begin = f"flask_graceful: process {os.getpid()} has no control socket in "
    assert answer.status == 1 and answer.err.startswith(begin) and answer.err.count("\n") == 1
    assert place.ask("stop", "--pid", str(both[0].pid)).status == 0
    both[0].process.wait(60)
    assert place.status()["pid"] == both[1].pid
    gone = f"no process has the pid {both[0].pid}"
    assert is_one_line(place.ask("status", "--pid", str(both[0].pid)), gone)


def test_a_pid_leads_to_a_server_with_another_environment(place: Place, tmp_path: Path) -> None:
    one = place.start()
    other = place.program.start(one_server(), RUNTIME_DIRECTORY="", XDG_RUNTIME_DIR=str(tmp_path))
    other.wait_for("Serving HTTP")
    assert place.status()["pid"] == one.pid
    assert place.status("--pid", str(other.pid))["pid"] == other.pid
    place.env = {"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": str(tmp_path / "elsewhere")}
    assert place.status("--pid", str(one.pid))["pid"] == one.pid


def test_a_socket_that_a_killed_server_left_is_removed(place: Place) -> None:
    one = place.start()
    os.kill(one.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(one.pid), "the end")
    assert place.sockets() == [f"{one.pid}.sock"]
    path = place.runtime / f"{one.pid}.sock"
    line = f"nobody listens at {path}: its server has ended"
    assert is_one_line(place.ask("status", "--socket", str(path)), line)
    other = place.start()
    assert place.sockets() == [f"{other.pid}.sock"]
    os.kill(other.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(other.pid), "the end")
    assert "no server is running" in place.ask("status").err
    assert place.sockets() == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("status --pid x", "argument --pid: expected a process id, got 'x'"),
        ("status --pid 0", "argument --pid: expected a process id, got '0'"),
        ("status --pid 1 --socket a", "argument --socket: not allowed with argument --pid"),
        (
            "stop --timeout soon",
            "argument --timeout: expected a number of seconds, 0 or more, got 'soon'",
        ),
        (
            "stop --timeout=-1",
            "argument --timeout: expected a number of seconds, 0 or more, got '-1'",
        ),
        ("status --jsno", "status: unknown flag '--jsno'; did you mean '--json'?"),
        ("requests --stack=1", "requests: unknown flag '--stack'; did you mean '--stacks'?"),
        ("reload --timeout 3", "reload: unknown flag '--timeout'; known: --pid, --socket"),
        (
            "stop hello:app",
            "stop: 'hello:app' is one word too many; known: --pid, --socket, --timeout",
        ),
    ],
)
def test_wrong_flags_are_one_line_and_status_2(place: Place, arguments: str, line: str) -> None:
    assert place.ask(*arguments.split()) == Answer(2, "", f"flask_graceful: {line}\n")


def test_a_module_with_a_command_s_name_can_be_served(place: Place) -> None:
    (place.directory / "status.py").write_text("from program import app\n")
    place.program.write("")
    one = place.program._live(
        "-m", "flask_graceful", "--bind", ":0", "status:app", cwd=place.directory, env=place.env
    )
    assert place_serves(one)
    assert place.status()["pid"] == one.pid


def place_serves(one: Live) -> bool:
    return ask(one.port) == one.pid


# What is no server of ours


def listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_foreign_sockets_are_one_line(place: Place) -> None:
    path = place.directory / "s"
    (place.directory / "file").write_text("")
    for name, line in (("file", "file is no socket"), ("none", "there is no socket none")):
        assert is_one_line(place.ask("status", "--socket", name), line)
    for said, line in (
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "who listens at s is no flask_graceful server"),
        (b"[]\n", "who listens at s is no flask_graceful server"),
        (b'{"progr', "who listens at s is no flask_graceful server"),
        (b"", f"server {os.getpid()} has gone without an answer"),
    ):
        with listener(path) as sock:
            process = place.begin("status", "--socket", "s")
            other, _ = sock.accept()
            with other:
                other.recv(1000)
                other.send(said)
            assert is_one_line(end_of(process), line)
        path.unlink()


def test_a_server_that_hangs_is_not_waited_for(place: Place) -> None:
    one = place.start()
    path = str(place.runtime / f"{one.pid}.sock")
    suspend(one.pid)
    with asking.Caller(path, patience=0.3) as caller:
        with pytest.raises(asking.AskError) as raised:
            caller.ask("status")
    assert str(raised.value) == f"server {one.pid} has said nothing for 0.3 seconds"
    os.kill(one.pid, signal.SIGCONT)
    # One that works may take longer than that: it says so.
    place.program.write(HELD_BOOT + one_server(idle_grace=0))
    beats: list[object] = []
    with asking.Caller(path, patience=2) as caller:
        done: list[dict[str, t.Any]] = []
        thread = threading.Thread(target=lambda: done.append(caller.ask("reload", beats.append)))
        thread.start()
        wait_until(lambda: len(beats) > 5, "more beats than patience")
        place.program.let_go("boot")
        thread.join(20)
    assert done[0]["old"] == [one.pid]


# Who may ask

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


# What is imported later can't be read then.
BECOME_NOBODY = (
    f"import encodings.ascii; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
)


def ask_as_nobody(*words: str) -> Answer:
    """Run a command as another user, who may not be able to read the package."""
    code = (
        "import encodings.unicode_escape, locale, os, sys; from flask_graceful import commands\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); commands.main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60,
        env={**os.environ, **BARE},
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def public() -> t.Iterator[Path]:
    """A directory that everybody can write to."""
    with tempfile.TemporaryDirectory(prefix="graceful-", dir="/tmp") as name:
        os.chmod(name, 0o1777)
        yield Path(name)


def test_files_are_the_user_s_alone(place: Place) -> None:
    place.env = {**BARE, "XDG_RUNTIME_DIR": str(place.directory)}
    one = place.start("os.umask(0)", control_socket="auto")
    runtime = place.directory / "flask-graceful"
    assert os.listdir(runtime) == [f"{one.pid}.sock"]
    assert stat.S_IMODE(os.stat(runtime).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(runtime / f"{one.pid}.sock").st_mode) == 0o600


@ROOT_ONLY
def test_other_users_may_not_ask(place: Place, public: Path) -> None:
    path = public / "s"
    one = place.start(control_socket=str(path))
    line = f"no permission for {path}; it belongs to uid 0"
    assert is_one_line(ask_as_nobody("status", "--socket", str(path)), line)
    # Nor when somebody has opened the file to them.
    path.chmod(0o666)
    line = f"status: uid {NOBODY} may not ask; expected uid 0 or root"
    assert is_one_line(ask_as_nobody("status", "--socket", str(path)), line)
    assert ask_as_nobody("stop", "--socket", str(path)).status == 1
    assert ask(one.port) == one.pid


@ROOT_ONLY
def test_root_may_ask_a_user_s_server(place: Place, public: Path) -> None:
    place.env = {**BARE, "TMPDIR": str(public)}
    one = place.start(BECOME_NOBODY)
    (name,) = os.listdir(public)
    assert name == f"flask-graceful-{NOBODY}"
    assert place.status("--pid", str(one.pid))["pid"] == one.pid


def make_link(path: Path) -> None:
    (path.parent / "aim").mkdir()
    path.symlink_to("aim")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (make_link, "is a symbolic link; expected a directory"),
        (Path.touch, "is no directory"),
        (lambda path: path.mkdir(0o700), "belongs to uid 0; expected one of uid 65534"),
        (
            lambda path: (path.mkdir(), os.chown(path, NOBODY, 0), path.chmod(0o770)),
            "has mode 0770; expected 0700",
        ),
    ],
)
@ROOT_ONLY
def test_a_directory_that_somebody_else_has_made_is_refused(
    place: Place, public: Path, spoil: t.Callable[[Path], object], reason: str
) -> None:
    path = public / f"flask-graceful-{NOBODY}"
    spoil(path)
    place.env = {**BARE, "TMPDIR": str(public)}
    one = place.start(BECOME_NOBODY)
    one.wait_for(f"^{one.pid} control socket: {path} {reason}$")
    assert ask(one.port) == one.pid


# Who asks badly


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"", 'expected a line such as {"command": "status"}'),
        (b"status", 'expected a line such as {"command": "status"}'),
        (b"[1]", 'expected a line such as {"command": "status"}'),
        (b"[" * 4000, 'expected a line such as {"command": "status"}'),
        (b"\xff", 'expected a line such as {"command": "status"}'),
        (b'{"command": 1}', "unknown command 1; expected one of reload, requests, status, stop"),
        (b'{"command": "stop", "timeout": -1}', "timeout: expected 0 or more seconds, got -1"),
        (b'{"command": "stop", "timeout": "1"}', 'timeout: expected 0 or more seconds, got "1"'),
        (b'{"command": "stop", "timeout": NaN}', "timeout: expected 0 or more seconds, got NaN"),
        (b'{"command": "requests", "stacks": 1}', "stacks: expected true or false, got 1"),
        (b"x" * 5000, "a command has at most 4096 bytes"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_told_why(place: Place, line: bytes, error: str) -> None:
    one = place.start()
    path = place.runtime / f"{one.pid}.sock"
    assert json.loads(talk(path, line + b"\n")) == {"error": error, "lines": []}
    assert place.status()["state"] == "running"


def come_in(path: str) -> Client | None:
    try:
        return Client(path)
    except BlockingIOError:
        return None


def test_silent_and_greedy_clients_disturb_nobody(place: Place) -> None:
    one = place.start()
    path = str(place.runtime / f"{one.pid}.sock")
    with Client(("127.0.0.1", one.port)) as http:
        # As many as are let in, and a few more.
        silent = [wait_until(lambda: come_in(path), "a place in the queue") for _ in range(40)]
        for client in silent[:10]:
            client.send(b'{"comm')
        for _ in range(200):
            # Those who send for ever are cut, those who come and go are forgotten.
            with wait_until(lambda: come_in(path), "a place in the queue") as client:
                with contextlib.suppress(OSError):
                    client.send(b"x" * 100_000)
        assert http.get()[0] == 200
        said = [client.rest() for client in silent]
        for client in silent:
            client.sock.close()
        assert said.count(b"") >= 32
        assert all(b"32 others are asking already" in one for one in said if one)
        assert any(said)
        assert place.status()["workers"][0]["connections"]["idle"] == 1
    assert len(os.listdir(f"/proc/{one.pid}/fd")) < 30


# Where the socket is


def test_a_socket_of_one_s_own_is_taken_over_and_removed(place: Place) -> None:
    one = place.start(control_socket="ctl")
    path = place.directory / "ctl"
    first = path.stat().st_ino
    assert place.ask("status").status == 1
    assert place.status("--socket", "ctl")["pid"] == one.pid
    answer = place.ask("reload", "--socket", "ctl")
    new = serving_pids(one, 2)[1]
    assert answer.out == f"reloaded: {one.pid} -> {new}\n"
    wait_until(lambda: is_gone(one.pid), "the end of the old process")
    assert place.status("--socket", "ctl")["pid"] == new
    assert path.stat().st_ino != first
    # A new process that has taken the place and does not come to serve gives it back.
    place.program.write(one_server(control_socket="ctl", pid_file="/no/where"))
    answer = place.ask("reload", "--socket", "ctl")
    assert answer.status == 1 and "PidFileError" in answer.err
    assert place.status("--socket", "ctl")["pid"] == new
    assert place.ask("stop", "--socket", "ctl").status == 0
    assert set(os.listdir(place.directory)) - {"__pycache__"} == {"program.py", "run"}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("used", "in use by another server"),
        ("file", "there is a file that is no socket"),
        ("no/where", "no such file or directory"),
        ("x" * 108, "a path with more than 107 bytes can't be a socket's"),
    ],
)
def test_a_path_that_can_t_be_is_one_line_and_status_1(
    place: Place, path: str, reason: str
) -> None:
    (place.directory / "file").write_text("")
    place.program.write("")
    with listener(place.directory / "used"):
        answer = place.ask("--bind", ":0", "--control-socket", path, "program:app")
    line = f"control socket {place.directory.resolve() / path}: {reason}"
    assert (answer.status, answer.err) == (1, f"flask_graceful: {line}\n")
    left = set(os.listdir(place.directory)) - {"__pycache__"}
    assert left == {"file", "program.py", "run", "used"}


def test_a_socket_that_a_killed_server_left_is_bound_again(place: Place) -> None:
    one = place.start(control_socket="ctl")
    os.kill(one.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(one.pid), "the end")
    other = place.start(control_socket="ctl")
    assert place.status("--socket", "ctl")["pid"] == other.pid


def test_systemd_s_runtime_directory_comes_first(place: Place) -> None:
    given = place.directory / "flask-graceful"
    given.mkdir(0o755)
    place.env = {"RUNTIME_DIRECTORY": f"{given}:/no/where", "XDG_RUNTIME_DIR": str(place.directory)}
    one = place.start()
    assert os.listdir(given) == [f"{one.pid}.sock"]
    assert place.status()["pid"] == one.pid
    place.env = BARE
    assert place.status("--pid", str(one.pid))["pid"] == one.pid


def test_it_can_be_switched_off(place: Place) -> None:
    one = place.start(control_socket="off")
    assert place.sockets() == []
    assert ask(one.port) == one.pid


# Over execve(2)

SELF_REPLACING = """
import json, os, sys
from flask_graceful.control import Control
from flask_graceful.loop import Loop, Timer

class Service:
    def reload(self, answer):
        answer.progress({"program": 1})
        loop.set(Timer(replace), 0.1)
    def status(self, answer):
        waiting.append(answer)

def replace():
    for fd in control.fds():
        os.set_inheritable(fd, True)
    os.execv(sys.executable, [sys.executable, "program.py", json.dumps(control.record())])

waiting = []
loop = Loop()
control = Control(loop, Service(), json.loads(sys.argv[1]) if sys.argv[1:] else None)
control.open("ctl")
print("open", flush=True)
def answer():
    for one in control.waiting():
        one.result({"program": 2, "pid": os.getpid()})
if sys.argv[1:]:
    loop.set(Timer(answer), 0.7)
while True:
    loop.turn()
"""


def test_who_waits_is_answered_by_the_next_program(
    place: Place, live: t.Callable[..., Live]
) -> None:
    (place.directory / "program.py").write_text(SELF_REPLACING)
    one = live("program.py", cwd=place.directory)
    one.wait_for("open")
    path = place.directory / "ctl"
    inode = path.stat().st_ino
    with Client(str(path)) as other:
        other.send(b'{"command": "status"}\n')
        said = talk(path, b'{"command": "reload"}\n').splitlines()
        lines = [json.loads(line) for line in said]
        # The others are not forgotten, but told by the end of their connection.
        assert b"result" not in other.rest()
    assert lines[0] == {"progress": {"program": 1}}
    assert {"progress": {}} in lines
    assert lines[-1] == {"result": {"program": 2, "pid": one.pid}}
    one.wait_for("open", 2)
    assert path.stat().st_ino == inode
    with Client(str(path)) as again:
        again.send(b'{"command": "nonsense"}\n')
        assert b"unknown command" in again.rest()


def test_the_commands_are_in_the_documents() -> None:
    text = (ROOT / "docs" / "command.md").read_text()
    for name in ("reload", "status", "requests", "stop"):
        assert f"python -m flask_graceful {name}" in text
