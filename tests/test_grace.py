"""What facebookgo/grace offers (rows G), in real processes: several servers that restart together,
and sockets from systemd."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Live, wait_until
from program import (
    Program,
    ask,
    children,
    connect,
    is_refused,
    one_server,
    pid_from,
    serving_pids,
    signal_and_wait,
)
from test_tls import Files, TLSClient


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


@pytest.fixture
def taken() -> t.Iterator[str]:
    """An address that somebody else serves."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield f"127.0.0.1:{other.getsockname()[1]}"


def test_G2_one_address_that_is_taken_serves_none(program: Program, taken: str) -> None:
    path = program.directory / "s"
    text = (
        "a = GracefulServer('unix:s', app)\n"
        f"b = GracefulServer({taken!r}, app)\n"
        "try:\n"
        "    serve(a, b)\n"
        "except ListenError as err:\n"
        "    say('error', err, a.state)\n"
    )
    one = program.start(text)
    assert one.process.wait(60) == 0
    one.wait_for(f"^error listen tcp {taken}: bind: address already in use")
    assert "Serving" not in one.log
    assert not path.exists()


def test_G3_G11_the_hand_off_is_logged(program: Program) -> None:
    one = program.start(one_server(addr=[":0", "127.0.0.1:0"], idle_grace=0))
    second = int(one.wait_for(r"Serving HTTP on 127\.0\.0\.1:(\d+)")[1])
    signal_and_wait(one, one.pid, signal.SIGHUP)
    new = serving_pids(one, 2)[1]
    where = rf"\[::\]:{one.port}, 127\.0\.0\.1:{second}"
    handed = f"^{new} Graceful handoff of {where} with new pid {new} and old pid {one.pid}$"
    one.wait_for(handed)
    # Only then was the old process told.
    assert one.log.index("Graceful handoff") < one.log.index(f"{one.pid} Received SIGTERM.")
    assert len(re.findall("Graceful handoff", one.log)) == 1


def test_G4_restart_by_another_signal(program: Program) -> None:
    """One that is asked for during a boot follows it, also then."""
    text = one_server("", idle_grace=0, restart_signal=signal.SIGUSR2.value)
    one = program.start(text)
    (old,) = serving_pids(one, 1)
    os.kill(old, signal.SIGHUP)
    one.wait_for(f"^{old} Received SIGHUP.$")
    program.write("wait_for_file('go')\n" + text)
    os.kill(old, signal.SIGUSR2)
    one.wait_for(f"^{old} Received SIGUSR2. forking.$")
    os.kill(old, signal.SIGUSR2)
    one.wait_for("another one follows it")
    assert ask(one.port) == old
    program.let_go()
    _, second, third = serving_pids(one, 3)
    for pid in (old, second):
        one.wait_for(rf"^{pid} Serve\(\) returning")
    assert ask(one.port) == third
    signal_and_wait(one, third, signal.SIGTERM)


def test_G5_a_hook_can_refuse_the_restart(program: Program) -> None:
    more = (
        "@server.before_restart\n"
        "def check():\n"
        "    if not os.path.exists('go'):\n"
        "        raise ValueError('not today')\n"
        "    say('checked')\n"
    )
    one = program.start(one_server(more, idle_grace=0))
    (old,) = serving_pids(one, 1)
    for count in (1, 2):
        os.kill(old, signal.SIGHUP)
        one.wait_for(
            f"^{old} Restart refused by before_restart hook: not today; this process goes on "
            "serving.$",
            count,
        )
        assert children(old) == []
        assert ask(one.port) == old
    # It means what it says; who reads the log looks for no mistake.
    assert "Traceback" not in one.log
    program.let_go()
    signal_and_wait(one, old, signal.SIGHUP)
    assert ask(one.port) == serving_pids(one, 2)[1]
    assert one.log.index("checked\n") < one.log.index("Graceful handoff")


FORMS = {
    "all interfaces": (":0", [":{}", "0.0.0.0:{}", "[::]:{}", ":{}"]),
    "one name": ("127.0.0.1:0", ["127.0.0.1:{}", "localhost:{}", "127.0.0.1:{}"]),
}


@pytest.mark.parametrize("name", FORMS)
def test_G8_addresses_are_matched_however_they_are_written(program: Program, name: str) -> None:
    """A socket that were not found again could not be bound twice."""
    first, forms = FORMS[name]
    one = program.start(one_server(addr=first, idle_grace=0))
    port = int(one.wait_for(r"Serving HTTP on .*:(\d+)$")[1])
    pids = serving_pids(one, 1)
    for form in forms:
        program.write(one_server(addr=form.format(port), idle_grace=0))
        signal_and_wait(one, pids[-1], signal.SIGHUP)
        pids = serving_pids(one, len(pids) + 1)
        assert ask(port) == pids[-1]


def test_G8_each_address_keeps_its_socket_in_another_order(program: Program) -> None:
    """Among them two that say the same and mean two ports."""
    one = program.start(one_server(addr=[":0", "127.0.0.1:0", "unix:s"], idle_grace=0))
    second = int(one.wait_for(r"Serving HTTP on 127\.0\.0\.1:(\d+)")[1])
    everywhere = (one.port, second, str(program.directory / "s"))
    program.write(one_server(addr=["unix:s", "127.0.0.1:0", ":0"], idle_grace=0))
    signal_and_wait(one, one.pid, signal.SIGHUP)
    new = serving_pids(one, 2)[1]
    assert [ask(address) for address in everywhere] == [new] * 3
    served = re.findall(rf"^{new} Serving HTTP on (.*)$", one.log, re.M)
    assert served == ["unix:s", f"127.0.0.1:{second}", f"[::]:{one.port}"]


def test_G8_a_changed_port_is_bound_and_the_old_one_is_given_up(program: Program) -> None:
    one = program.start(one_server(addr="127.0.0.1:0", idle_grace=0))
    (old,) = serving_pids(one, 1)
    first = int(one.wait_for(r"Serving HTTP on .*:(\d+)$")[1])
    program.write(one_server(addr="localhost:0", idle_grace=0))
    with connect(first) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held$")
        os.kill(old, signal.SIGHUP)
        one.wait_for(f"^{old} Waiting for connections")
        wait_until(lambda: is_refused(first), "the old address given up")
        second = int(one.wait_for(r"Serving HTTP on .*:(\d+)$", 2)[1])
        assert ask(second) == serving_pids(one, 2)[1]
        program.let_go()
        # Nobody goes on with the address.
        code, headers, body = client.response()
        assert (code, headers["connection"], int(body)) == (200, "close", old)
    one.wait_for(rf"^{old} Serve\(\) returning")


def test_G8_an_address_that_cannot_be_bound_fails_the_restart(program: Program, taken: str) -> None:
    """Before anything is stopped."""
    one = program.start(one_server())
    (old,) = serving_pids(one, 1)
    with connect(one.port) as client:
        assert pid_from(client) == old
        program.write(one_server(addr=[":0", taken]))
        os.kill(old, signal.SIGHUP)
        one.wait_for("Restart failed: successor .* exited with status 1; this process goes on")
        assert f"listen tcp {taken}: bind: address already in use" in one.log
        code, headers, body = client.get()
        assert (code, int(body)) == (200, old)
        assert "connection" not in headers
    assert ask(one.port) == old


class Group:
    """An HTTP and an HTTPS server in one process, and requests on both."""

    TEXT = (
        "options = dict(idle_grace=0)\n"
        "a = GracefulServer(':0', app, **options)\n"
        "b = GracefulServer(\n"
        "    '127.0.0.1:0', app, certfile='cert.pem', keyfile='key.pem', **options)\n"
        "say('serve returned', serve(a, b))\n"
    )

    def __init__(self, one: Live, files: Files) -> None:
        self._files = files
        self.plain = ("127.0.0.1", one.port)
        self.secure = (
            "127.0.0.1",
            int(one.wait_for(r"Serving HTTPS on 127\.0\.0\.1:(\d+)")[1]),
        )

    def connect(self) -> tuple[Client, TLSClient]:
        return Client(self.plain), TLSClient(self.secure, self._files.client)

    def ask(self) -> set[int]:
        """Who answers, on fresh connections."""
        with contextlib.ExitStack() as stack:
            return {pid_from(stack.enter_context(client)) for client in self.connect()}


def test_G16_http_and_https_fast_and_slow_across_two_restarts(program: Program) -> None:
    """grace's TestComplex: every answer comes from the process that it was asked of."""
    files = Files(program.directory)
    one = program.start(Group.TEXT)
    group = Group(one, files)
    waiting: list[tuple[int, Client]] = []
    asking_on: list[Client] = []
    with contextlib.ExitStack() as stack:
        for generation in range(3):
            pid = serving_pids(one, generation + 1)[-1]
            assert group.ask() == {pid}
            for kind, client in zip(("plain", "secure"), group.connect(), strict=True):
                stack.enter_context(client)
                client.send(f"GET /held-{generation}-{kind} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                one.wait_for(f"^held-{generation}-{kind}$")
                waiting.append((pid, client))
            if generation < 2:
                os.kill(pid, signal.SIGHUP)
                one.wait_for(f"^{pid} Waiting for connections")
        # All three processes have requests to finish; the last one answers.
        assert group.ask() == {pid}
        for generation in range(3):
            for kind in ("plain", "secure"):
                program.let_go(f"go-{generation}-{kind}")
        for asked, client in waiting:
            code, headers, body = client.response()
            assert (code, int(body)) == (200, asked)
            stays = asked == pid or not isinstance(client, TLSClient)
            assert headers.get("connection") == (None if stays else "close")
            asking_on += [client] * stays
        one.wait_for("^serve returned None$", 2)
        # The same connections, whose old processes are gone.
        assert [pid_from(client) for client in asking_on] == [pid] * 4
    signal_and_wait(one, pid, signal.SIGTERM)
    one.wait_for("^serve returned None$", 3)


ACTIVATE = """
import os, socket, sys

# Sockets as systemd passes them, then the program in the place of this one.
count, names, *command = sys.argv[1:]
socks = [socket.socket(), socket.socket(socket.AF_UNIX), socket.socket()]
socks[0].bind(("127.0.0.1", 0))
socks[1].bind("activated")
socks[2].bind(("127.0.0.1", 0))
for sock in socks:
    sock.listen()
ports = [socks[0].getsockname()[1], socks[2].getsockname()[1]]
print("ports", *ports, flush=True)
for number, sock in enumerate(socks, 13):
    os.dup2(sock.fileno(), number)
for number in range(3):
    os.dup2(number + 13, number + 3)
os.closerange(6, 100)
pid = str(os.getpid())
environ = dict(LISTEN_PID=pid, LISTEN_FDS=count, LISTEN_FDNAMES=names)
command = [word.replace("PORT", str(ports[0])) for word in command]
os.execve(sys.executable, [sys.executable, *command], {**os.environ, **environ})
"""

WEB = """
import os
def app(environ, start_response):
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/environ":
        return ["\\n".join(os.environ).encode()]
    return [str(os.getpid()).encode()]
"""


class Activated:
    """The command, started as systemd starts it: with a TCP socket `web`, a Unix socket `local`
    and a TCP socket `spare`, which nobody else holds."""

    def __init__(self, directory: Path, live: t.Callable[..., Live]) -> None:
        (directory / "activate.py").write_text(ACTIVATE)
        (directory / "web.py").write_text(WEB)
        self._directory = directory
        self._live = live
        self.path = directory / "activated"

    def start(self, *flags: str, count: str = "3", names: str = "web:local:spare") -> Live:
        command = ("-m", "flask_graceful", *flags, "--idle-grace=0", "web")
        one = self._live("activate.py", count, names, *command, cwd=self._directory)
        match = one.wait_for(r"^ports (\d+) (\d+)$")
        self.web, self.spare = int(match[1]), int(match[2])
        return one


@pytest.fixture
def activated(tmp_path: Path, live: t.Callable[..., Live]) -> Activated:
    return Activated(tmp_path, live)


def test_G3_G6_sockets_from_systemd_are_served_and_handed_on(activated: Activated) -> None:
    one = activated.start("--bind=systemd:local", "--bind=systemd:web")
    (old,) = serving_pids(one, 1)
    assert old == one.pid
    for where in ("unix:activated", rf"127\.0\.0\.1:{activated.web}"):
        one.wait_for(f"^{old} Listening on init activated {where}$")
    addresses = (str(activated.path), activated.web)
    assert [ask(address) for address in addresses] == [old, old]
    with connect(activated.web) as client:
        # What was meant for this process alone is gone from the environment.
        assert b"LISTEN_" not in client.get("/environ")[2]
    signal_and_wait(one, old, signal.SIGHUP)
    new = serving_pids(one, 2)[1]
    assert [ask(address) for address in addresses] == [new, new]
    assert f"{new} Listening on init" not in one.log
    signal_and_wait(one, new, signal.SIGTERM)
    # It is systemd's.
    assert activated.path.exists()


def test_G8_sockets_from_systemd_are_found_by_address(activated: Activated) -> None:
    one = activated.start("--bind=127.0.0.1:PORT", "--bind=unix:activated")
    (old,) = serving_pids(one, 1)
    addresses = (str(activated.path), activated.web)
    assert [ask(address) for address in addresses] == [old, old]
    signal_and_wait(one, old, signal.SIGHUP)
    new = serving_pids(one, 2)[1]
    assert [ask(address) for address in addresses] == [new, new]
    signal_and_wait(one, new, signal.SIGTERM)
    assert activated.path.exists()


def test_G8_any_socket_from_systemd(activated: Activated) -> None:
    one = activated.start("--bind=systemd:", count="1", names="")
    (old,) = serving_pids(one, 1)
    assert ask(activated.web) == old
    signal_and_wait(one, old, signal.SIGHUP)
    assert ask(activated.web) == serving_pids(one, 2)[1]


def test_G9_sockets_that_nobody_asks_for_are_closed(activated: Activated) -> None:
    one = activated.start("--bind=systemd:web")
    (old,) = serving_pids(one, 1)
    assert ask(activated.web) == old
    assert is_refused(activated.spare)
    with pytest.raises(ConnectionRefusedError):
        connect(str(activated.path))
    assert activated.path.exists()


@pytest.mark.parametrize(
    ("count", "flags", "line"),
    [
        ("a", ["--bind=systemd:web"], "found invalid count value: LISTEN_FDS=a"),
        ("-1", ["--bind=systemd:web"], "found invalid count value: LISTEN_FDS=-1"),
        ("9", ["--bind=systemd:web"], "error inheriting socket fd \\d+: .*"),
        ("0", ["--bind=systemd:web"], "listen systemd:web: systemd has not passed a socket named 'web'"),  # noqa: E501
        ("3", ["--bind=systemd:wob"], "listen systemd:wob: systemd has not passed a socket named 'wob'"),  # noqa: E501
        ("", ["--bind=systemd:"], "listen systemd:: systemd has not passed a socket"),
    ],
)  # fmt: skip
def test_G7_what_is_wrong_with_the_sockets_is_one_line(
    activated: Activated, count: str, flags: list[str], line: str
) -> None:
    one = activated.start(*flags, count=count)
    assert one.process.wait(60) == 1
    one.wait_for("^flask_graceful: ")
    _, said = one.log.splitlines()
    assert re.fullmatch(f"flask_graceful: {line}", said), said


def test_G7_sockets_for_another_process_are_left_alone(
    activated: Activated, live: t.Callable[..., Live], tmp_path: Path
) -> None:
    """LISTEN_PID is another's. The variables stay for whom they are meant."""
    command = ("-m", "flask_graceful", "--bind=systemd:web", "web")
    env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3"}
    one = live(*command, cwd=tmp_path, env=env)
    assert one.process.wait(60) == 1
    one.wait_for("^flask_graceful: listen systemd:web: systemd has not passed a socket named 'web'")
    one = live("-m", "flask_graceful", "--bind=:0", "web", cwd=tmp_path, env=env)
    with connect(one.port) as client:
        assert b"LISTEN_FDS" in client.get("/environ")[2]
