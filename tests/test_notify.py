"""What systemd is told, read from a socket as systemd has one."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
import time
import typing as t
from pathlib import Path

import pytest
from flask_graceful import notify
from flask_graceful.notify import Notifier


class Manager:
    """systemd's end: what it was told, in order."""

    def __init__(self, path: str) -> None:
        self.variable = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + path[1:] if path.startswith("@") else path)
        self.sock.settimeout(5)

    def message(self) -> list[str]:
        return self.sock.recv(65536).decode().split("\n")

    def messages(self) -> list[list[str]]:
        """All that have come and were not read."""
        self.sock.setblocking(False)
        found = []
        try:
            while True:
                found.append(self.message())
        except BlockingIOError:
            self.sock.settimeout(5)
            return found


@pytest.fixture(params=["file", "name"])
def manager(tmp_path: Path, request: pytest.FixtureRequest) -> t.Iterator[Manager]:
    name = f"@flask-graceful-test-{os.getpid()}"
    one = Manager(name if request.param == "name" else str(tmp_path / "notify"))
    yield one
    one.sock.close()


def test_a_life_is_told_in_order(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.variable})
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.status("Booting")
    notifier.ready("2 workers")
    notifier.reloading()
    notifier.ready("Reload failed: no module")
    notifier.watchdog()
    notifier.stopping("Stopping")
    notifier.extend(1.5, "Waiting for 2 workers")
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    *start, reloading, failed, alive, stopping, extended = manager.messages()
    assert start == [["STATUS=Booting"], ["READY=1", "STATUS=2 workers"]]
    # systemd looks for the moment in the same message.
    name, _, usec = reloading[1].partition("=")
    assert [reloading[0], name] == ["RELOADING=1", "MONOTONIC_USEC"]
    assert before <= int(usec) <= after
    assert failed == ["READY=1", "STATUS=Reload failed: no module"]
    assert alive == ["WATCHDOG=1"]
    assert stopping == ["STOPPING=1", "STATUS=Stopping"]
    assert extended == ["EXTEND_TIMEOUT_USEC=1500000", "STATUS=Waiting for 2 workers"]


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("Reload failed: no\nREADY=1\r\nMAINPID=1", "Reload failed: no READY=1 MAINPID=1"),
        ("caf\u00e9", "caf\u00e9"),
        ("bad \udcff byte", "bad ? byte"),
        ("\u20ac" * 5000, "\u20ac" * (notify.MOST_STATUS // 3)),
        ("", ""),
    ],
)
def test_a_status_is_one_line_that_systemd_can_read(
    tmp_path: Path, status: str, shown: str
) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with manager.sock:
        Notifier({"NOTIFY_SOCKET": manager.variable}).ready(status)
        assert manager.message() == ["READY=1", f"STATUS={shown}"]


def test_the_variables_are_taken_out_of_the_environment(manager: Manager) -> None:
    environ = {
        "NOTIFY_SOCKET": manager.variable,
        "WATCHDOG_USEC": "20000000",
        "WATCHDOG_PID": str(os.getpid()),
        "NOTIFY": "the user's",
    }
    notifier = Notifier.claim(environ)
    assert environ == {"NOTIFY": "the user's"}
    assert notifier.watchdog_time == 10.0
    # As the program that goes on gets them.
    same = Notifier(json.loads(json.dumps(notifier.variables)))
    assert same.watchdog_time == 10.0
    same.ready("again")
    assert manager.message() == ["READY=1", "STATUS=again"]


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "0"}, 0.0),
        ({"WATCHDOG_USEC": "-5"}, 0.0),
        ({"WATCHDOG_USEC": "\u0663"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": ""}, 0.0),
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000", "NOTIFY_SOCKET": ""}, 0.0),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_asked(
    variables: dict[str, str], seconds: float
) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/nowhere", **variables}).watchdog_time == seconds


def test_without_a_manager_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    for variables in ({}, {"NOTIFY_SOCKET": ""}):
        notifier = Notifier(variables)
        notifier.ready("here")
        notifier.watchdog()
        assert notifier.watchdog_time == 0
    assert caplog.records == []


@pytest.mark.parametrize(
    "address",
    [
        "/nowhere/at/all",
        "/etc/passwd",
        "@nobody-has-this-name",
        "@",
        "/" + "long" * 100,
        "@" + "long" * 100,
        "relative/path",
        "vsock:2:1234",
        "/with\udcffbytes",
        "/with\0nul",
    ],
)
def test_an_address_that_can_not_be_used_is_one_line_of_the_log(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("here")
    notifier.reloading()
    notifier.stopping("Stopping")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert "systemd can't be told READY=1: NOTIFY_SOCKET" in text
    assert text.isprintable()
    if address[0] not in "/@":
        assert text.endswith("expected a path such as /run/systemd/notify, or @name")


def test_a_manager_that_comes_back_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": path})
    notifier.ready("nobody hears it")
    with Manager(path).sock:
        notifier.status("heard")
    notifier.status("nobody hears it")
    assert len(caplog.records) == 2


def test_a_manager_that_does_not_read_is_waited_for_a_moment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier({"NOTIFY_SOCKET": manager.variable})
    with manager.sock:
        began = time.monotonic()
        while not caplog.records:
            notifier.watchdog()
        assert notify.SEND_TIME / 2 < time.monotonic() - began < 10 * notify.SEND_TIME
        assert "timed out" in caplog.text
        manager.messages()
        notifier.ready("at last")
        assert manager.message() == ["READY=1", "STATUS=at last"]


def test_a_message_tells_who_sends_it(tmp_path: Path) -> None:
    """systemd goes by the pid that the kernel tells it (NotifyAccess=main); nothing is inherited
    by a program that is executed in place, and the pid is the same."""
    manager = Manager(str(tmp_path / "notify"))
    program = textwrap.dedent("""
        import os, sys
        from flask_graceful.notify import Notifier
        if len(sys.argv) == 1:
            notifier = Notifier.claim(os.environ)
            notifier.reloading()
            assert "NOTIFY_SOCKET" not in os.environ
            words = [sys.executable, __file__, notifier.variables["NOTIFY_SOCKET"]]
            os.execv(sys.executable, words)
        Notifier({"NOTIFY_SOCKET": sys.argv[1]}).ready("new code")
    """)
    (tmp_path / "program.py").write_text(program)
    with manager.sock:
        manager.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        environ = {**os.environ, "NOTIFY_SOCKET": manager.variable}
        child = subprocess.Popen([sys.executable, tmp_path / "program.py"], env=environ)
        assert child.wait(20) == 0
        for word in (b"RELOADING=1", b"READY=1"):
            data, ancillary, _, _ = manager.sock.recvmsg(4096, socket.CMSG_SPACE(12))
            assert data.startswith(word)
            assert int.from_bytes(ancillary[0][2][:4], sys.byteorder) == child.pid
