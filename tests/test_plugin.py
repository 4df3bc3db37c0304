"""What Go's plugin package is for: another application in the place of the one that runs, by a
restart or in the running process."""

from __future__ import annotations

import os
import signal
import threading
import typing as t
from pathlib import Path

import pytest
from conftest import Live
from load import Load
from program import connect
from test_server import GET, Start


def named(name: bytes) -> t.Any:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [])
        return [name]

    return app


WEB = """
def app(environ, start_response):
    start_response("200 OK", [])
    return [part.NAME]
"""


def test_each_generation_of_the_command_loads_the_application_afresh(
    tmp_path: Path, live: t.Callable[..., Live]
) -> None:
    """With everything that it imports; the connection stays."""
    (tmp_path / "web.py").write_text("import part\n" + WEB)
    (tmp_path / "part.py").write_text("NAME = b'first'")
    one = live("-m", "flask_graceful", "--bind=:0", "web:app", cwd=tmp_path)
    with connect(one.port) as client:
        assert client.get()[2] == b"first"
        pid = one.pid
        for count, name in enumerate((b"second one", b"third"), 2):
            (tmp_path / "part.py").write_text(f"NAME = {name!r}")
            os.kill(pid, signal.SIGHUP)
            one.wait_for(rf"^{pid} Waiting for connections")
            assert client.get()[2] == name
            pid = int(one.wait_for(r"^(\d+) Serving HTTP on", count)[1])


def test_the_application_is_swapped_between_two_requests(running: Start) -> None:
    entered, leave = threading.Event(), threading.Event()

    def old(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        start_response("200 OK", [])
        yield b"old "
        entered.set()
        assert leave.wait(20)
        yield b"to the end"

    one = running(old)
    with one.connect().send(GET) as first, one.connect() as second:
        assert entered.wait(20)
        one.server.app = named(b"new")
        # What has begun ends with the application that began it.
        assert second.get()[2] == b"new"
        leave.set()
        assert first.response()[2] == b"old to the end"
        assert first.get()[2] == b"new"


def test_swaps_under_load_lose_nothing(running: Start) -> None:
    names = [b"%d" % i for i in range(50)]
    one = running(named(b"before"))
    with Load(one.address[1], clients=4) as load:
        for name in names:
            one.server.app = named(name)
            load.wait_count(load.count + 10)
        load.stop()
    assert load.failed == []
    assert set(load.answers) >= set(names)
    with pytest.raises(TypeError, match="app: expected a WSGI application, got 'web:app'"):
        one.server.app = "web:app"  # type: ignore[assignment]
    with one.connect() as client:
        assert client.get()[2] == names[-1]
