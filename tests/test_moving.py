"""What a restart does to a connection, one kind a test: real processes, real signals. The table of
it is in docs/features.md."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import time
import typing as t
from pathlib import Path

import pytest
from conftest import DEADLINE, Client, Live, replace, wait_until
from test_hijack import WebSocket
from test_tls import Files, TLSClient, files  # noqa: F401  fixture

PROGRAM = '''
import hashlib, json, os, time
from flask_graceful import GracefulServer, ServerClosed

LARGE = hashlib.shake_256(b"large").digest(10_000_000)

def say(*words):
    # In one piece: two processes write to the same file.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def wait_for(name):
    say(f"waits for {name}")
    while not os.path.exists(name):
        time.sleep(0.005)

def sha(data):
    return hashlib.sha256(data).hexdigest()

def events(environ, heeds):
    """Server-sent events, until the server says that it stops; or without heeding it."""
    told = environ["flask_graceful.shutdown"]
    yield f"data: {os.getpid()}\\n\\n".encode()
    while not (told.wait(0.05) and heeds):
        time.sleep(0.05)
        yield b"data: tick\\n\\n"
    yield b"data: bye\\n\\n"

def stream(name):
    yield b"begins"
    wait_for(name)
    yield b"ends"

def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    body = None
    headers = [("X-Pid", str(os.getpid()))]
    if path == "/wait":
        wait_for(query)
    elif path == "/read":
        say("reads")
        body = sha(environ["wsgi.input"].read())
    elif path == "/off":
        environ["flask_graceful.server"].set_keep_alives_enabled(False)
    elif path == "/stream":
        start_response("200 OK", headers)
        return stream(query)
    elif path == "/events":
        start_response("200 OK", [*headers, ("Content-Type", "text/event-stream")])
        return events(environ, query == "heed")
    elif path == "/large":
        start_response("200 OK", [*headers, ("Content-Length", str(len(LARGE)))])
        if query == "file":
            with open("large", "wb") as file:
                file.write(LARGE)
            return environ["wsgi.file_wrapper"](open("large", "rb"))
        size = len(LARGE) if query == "memory" else 1_000_000
        return [LARGE[at : at + size] for at in range(0, len(LARGE), size)]
    text = json.dumps({
        "pid": os.getpid(),
        "peer": [environ.get("REMOTE_ADDR"), environ.get("REMOTE_PORT")],
        "query": query,
        "field": sha(environ.get("HTTP_X_FIELD", "").encode()),
        "body": body,
        "context": environ.get("app.context"),
    })
    start_response("200 OK", [*headers, ("Content-Length", str(len(text)))])
    return [text.encode()]

server = GracefulServer(ADDRESSES, app, **OPTIONS)
server.conn_state = lambda one, state: say(f"{os.getpid()} {one.peer_name()} {state}")

@server.before_begin
def log_pid(addr):
    say("Serving HTTP on", addr)

#MORE
say("Actual pid is", os.getpid())
try:
    server.listen_and_serve()
except ServerClosed as err:
    say(f"{os.getpid()} Server err: {err}")
'''

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
# How long a client is silent here that is "silent for a while", in seconds.
WHILE = 0.1


class Service:
    """PROGRAM in a process, and the one that takes over from it."""

    def __init__(self, start: t.Callable[..., Live], directory: Path, place: str) -> None:
        self._start = start
        self.directory = directory
        self._addresses = [f"unix:{directory}/s" if place == "unix" else ":0"]
        self._env = {"FLASK_GRACEFUL_POLLER": "portable"} if place == "portable" else {}
        self.new = 0

    def write(self, more: str = "", *addresses: str, **options: t.Any) -> None:
        """Write the program, for the first process or for its successor."""
        text = PROGRAM.replace("ADDRESSES", repr(addresses or self._addresses))
        text = text.replace("OPTIONS", repr(options)).replace("#MORE", more)
        replace(self.directory / "program.py", text)

    def begin(self, more: str = "", *addresses: str, **options: t.Any) -> Service:
        self.write(more, *addresses, **options)
        self.live = self._start("program.py", cwd=self.directory, env=self._env)
        self.old = self.live.pid
        self.address = self._address()
        return self

    def _address(self) -> t.Any:
        where = self.live.wait_for(r"Serving HTTP on (?:\[::\]:(\d+)|(/.*))$")
        return where[2] or ("127.0.0.1", int(where[1]))

    def connect(self) -> Client:
        return Client(self.address)

    def hup(self) -> None:
        os.kill(self.old, signal.SIGHUP)

    def restart(self) -> None:
        """Have a successor serve, and all connections leave that can."""
        self.hup()
        self.wait_restarted()

    def wait_restarted(self) -> None:
        self.live.wait_for(f"^{self.old} Waiting for connections")
        self.new = self.live.wait_pids(2)[1]

    def release(self, name: str) -> None:
        """Have the application go on, where it waits for that."""
        (self.directory / name).touch()

    def states(self, client: Client) -> list[str]:
        """The states of a connection, in the old process and then in the new one: they write at
        the same time. `old` or `new`, and the state."""
        peer = peer_name(client)
        found = re.findall(rf"^(\d+) {re.escape(peer)} (\w+)$", self.live.log, re.MULTILINE)
        states = [f"{'old' if int(pid) == self.old else 'new'} {state}" for pid, state in found]
        return sorted(states, key=lambda state: state.startswith("new"))

    def wait_state(self, client: Client, pid: int, state: str) -> None:
        self.live.wait_for(f"^{pid} {re.escape(peer_name(client))} {state}$")

    def is_old_alive(self) -> bool:
        return self.live.process.poll() is None

    def wait_old_ended(self) -> None:
        """The old process ends by itself, in order."""
        assert self.live.process.wait(DEADLINE) == 0
        self.live.wait_for(f"^{self.old} Server err: accept ")


Begin = t.Callable[..., Service]


@pytest.fixture
def service(live: t.Callable[..., Live], tmp_path: Path) -> t.Iterator[Begin]:
    """A service that is not begun yet, at a place: tcp, unix, or portable (tcp, other poller)."""
    made: list[Service] = []

    def make(place: str = "tcp") -> Service:
        made.append(Service(live, tmp_path, place))
        return made[-1]

    yield make
    for one in made:
        assert "Traceback" not in one.live.log, one.live.log
        assert "internal error" not in one.live.log, one.live.log


PLACES = pytest.mark.parametrize("place", ["tcp", "unix", "portable"])


def peer_name(client: Client) -> str:
    name = client.sock.getsockname()
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "@"


def answer(client: Client) -> dict[str, t.Any]:
    """The application's next answer: what it says, the process, and the Connection header."""
    code, headers, body = client.response()
    assert code == 200
    found: dict[str, t.Any] = json.loads(body)
    name = client.sock.getsockname()
    assert found["peer"] == ([name[0], str(name[1])] if isinstance(name, tuple) else [None, None])
    assert headers["x-pid"] == str(found["pid"])
    return {**found, "connection": headers.get("connection", "")}


def by(client: Client) -> tuple[int, str]:
    """Which process gives the next answer, and the Connection header of it."""
    found = answer(client)
    return found["pid"], found["connection"]


def ask(client: Client, path: str = "/") -> tuple[int, str]:
    return by(client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()))


def begin_to_wait(one: Service, client: Client, name: str, method: str = "GET") -> None:
    """Have the application be within a request of the client, until `name` is released."""
    client.send(f"{method} /wait?{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    one.live.wait_for(f"^waits for {name}$")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_page_has_a_row_for_every_kind() -> None:
    this = Path(__file__)
    page = (this.parent.parent / "docs" / "features.md").read_text()
    _, _, section = page.partition("\n## What a restart does to a connection\n")
    section, _, _ = section.partition("\n## ")
    tests = set(re.findall(r"^def test_(\w+)", this.read_text(), re.MULTILINE))
    tests.remove("the_page_has_a_row_for_every_kind")
    # In the last cell of a row, or in the sentence on hooks.
    rows = [line for line in section.splitlines() if line.startswith("|")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[-2])}
    assert named | {"the_server_s_hooks_see_the_move"} == tests
    assert "`the_server_s_hooks_see_the_move`" in section


# Idle connections.


@pytest.mark.parametrize(("place", "longest"), [("tcp", 3.0), ("unix", 0.3), ("portable", 0.3)])
def test_idle_connections_move(service: Begin, place: str, longest: float) -> None:
    one = service(place).begin()
    with one.connect() as idle_for_long, one.connect() as idle, one.connect() as not_idle:
        clients = [idle_for_long, idle, not_idle]
        assert ask(idle_for_long) == (one.old, "")
        time.sleep(longest)
        assert ask(idle) == (one.old, "")
        time.sleep(0.1)
        assert ask(not_idle) == (one.old, "")
        one.restart()
        assert [ask(client) for client in clients] == [(one.new, "")] * 3
        one.wait_old_ended()
        assert [ask(client) for client in clients] == [(one.new, "")] * 3


@PLACES
def test_a_connection_without_pause_moves(service: Begin, place: str) -> None:
    """Each request follows the last response at once, before, during and after the restart."""
    one = service(place).begin()
    with one.connect() as client:
        seen = [ask(client)]
        one.hup()
        while [pid for pid, _ in seen[-20:]].count(one.old) or len(seen) < 20:
            seen.append(ask(client))
        one.wait_restarted()
        count = seen.count((one.old, ""))
        assert count > 0
        assert seen == [(one.old, "")] * count + [(one.new, "")] * (len(seen) - count)
        one.wait_old_ended()
        assert ask(client) == (one.new, "")


# Each flag that the server sets takes effect for a while before it sets the next one.
SLOW_CHANGE = """
class Slow(GracefulServer):
    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name in ("moving", "keeps_alive", "is_stopping", "closes_idle"):
            time.sleep(0.02)

server.__class__ = Slow
"""


def test_at_no_moment_of_the_change_a_response_says_close(service: Begin) -> None:
    one = service().begin(SLOW_CHANGE)
    with one.connect() as client:
        one.hup()
        while (seen := ask(client)) == (one.old, ""):
            pass
        one.wait_restarted()
        assert seen == (one.new, "")


def test_a_connection_moves_at_each_restart(service: Begin) -> None:
    """Also one that is busy for two of them: it passes the process between, which answers nothing
    of what comes with it."""
    one = service().begin()
    with one.connect() as idle, one.connect() as busy:
        assert ask(idle) == (one.old, "")
        busy.send(GET.replace(b"/", b"/wait?go", 1) + GET)
        one.live.wait_for("^waits for go$")
        one.restart()
        assert ask(idle) == (one.new, "")
        os.kill(one.new, signal.SIGHUP)
        one.live.wait_for(f"^{one.new} Waiting for connections")
        newest = one.live.wait_pids(3)[2]
        assert ask(idle) == (newest, "")
        assert one.is_old_alive()
        one.release("go")
        assert by(busy) == (one.old, "")
        assert by(busy) == (newest, "")
        one.wait_old_ended()
        one.live.wait_for(f"^{one.new} Server err: accept ")
        assert ask(busy) == ask(idle) == (newest, "")


def test_a_silent_new_connection_moves(service: Begin) -> None:
    one = service().begin()
    with one.connect() as client:
        one.wait_state(client, one.old, "new")
        one.restart()
        one.wait_old_ended()
        time.sleep(WHILE)
        assert ask(client) == (one.new, "")
        one.wait_state(client, one.new, "idle")
        assert one.states(client) == [
            "old new", "old handed_over",
            "new new", "new active", "new idle",
        ]  # fmt: skip


# Heads.


@PLACES
@pytest.mark.parametrize("size", [10, 500_000])
def test_half_a_head_moves(service: Begin, place: str, size: int) -> None:
    """On a new connection, and as the second request of one."""
    field = os.urandom(size // 2).hex()
    request = f"GET /?half HTTP/1.1\r\nHost: a\r\nX-Field: {field}\r\n\r\n".encode()
    half = len(request) // 2
    one = service(place).begin()
    with one.connect() as new, one.connect() as used:
        assert ask(used) == (one.old, "")
        for client in (new, used):
            client.send(request[:half])
        one.restart()
        one.wait_old_ended()
        for client in (new, used):
            found = answer(client.send(request[half:]))
            assert (found["pid"], found["connection"]) == (one.new, "")
            assert (found["query"], found["field"]) == ("half", sha(field.encode()))
            assert ask(client) == (one.new, "")


def test_deadlines_go_on_counting(service: Begin) -> None:
    """read_header_timeout from the first byte on (for a first request: from the connection on),
    idle_timeout from the last response on."""
    limit, lead = 4.0, 1.5
    one = service().begin(read_header_timeout=limit, idle_timeout=limit)
    # However long the successor boots, the move is not late.
    one.write("wait_for('go')", read_header_timeout=limit, idle_timeout=limit)
    one.hup()
    one.live.wait_for("^waits for go$")
    with one.connect() as new, one.connect() as used, one.connect() as idle:
        ask(used), ask(idle)
        began = time.monotonic()
        new.send(GET[:9])
        used.send(GET[:9])
        time.sleep(lead)
        moved = time.monotonic()
        one.release("go")
        one.wait_restarted()
        one.wait_old_ended()
        for client in (new, used, idle):
            assert client.is_closed()
            # Counted anew, they would end a whole limit after the move.
            assert time.monotonic() < moved + limit
        assert time.monotonic() > began + limit - 0.5
        for client, state in ((new, "new"), (used, "idle"), (idle, "idle")):
            one.wait_state(client, one.new, "closed")
            end = ["old handed_over", f"new {state}", "new closed"]
            assert one.states(client)[-3:] == end


# Requests in flight.


def test_half_a_body_is_read_by_the_old_process(service: Begin) -> None:
    one = service().begin()
    body = os.urandom(100_000)
    chunked = b"".join(
        b"2710\r\n%b\r\n" % body[at : at + 10_000] for at in range(0, 100_000, 10_000)
    )
    posts = [
        b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + body,
        b"POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunked
        + b"0\r\n\r\n",
    ]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(one.connect()) for _ in posts]
        for client, post in zip(clients, posts, strict=True):
            client.send(post[:50_000])
        one.live.wait_for("^reads$", len(posts))
        one.restart()
        for client, post in zip(clients, posts, strict=True):
            found = answer(client.send(post[50_000:]))
            assert found["body"] == sha(body)
            assert (found["pid"], found["connection"]) == (one.old, "")
            assert ask(client) == (one.new, "")
        one.wait_old_ended()


@PLACES
def test_two_pipelined_requests(service: Begin, place: str) -> None:
    one = service(place).begin()
    with one.connect() as client:
        client.send(GET.replace(b"/", b"/wait?go", 1) + GET.replace(b"/", b"/?second", 1))
        one.live.wait_for("^waits for go$")
        one.restart()
        assert one.is_old_alive()
        one.release("go")
        assert by(client) == (one.old, "")
        found = answer(client)
        assert (found["pid"], found["connection"], found["query"]) == (one.new, "", "second")
        one.wait_old_ended()
        assert ask(client) == (one.new, "")


def numbered(number: int) -> bytes:
    return f"GET /?{number} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def test_many_pipelined_requests(service: Begin) -> None:
    """More than what is received at once."""
    one = service().begin()
    count = 3000
    with one.connect() as client:
        begin_to_wait(one, client, "go")
        client.send(b"".join(map(numbered, range(count))))
        one.restart()
        one.release("go")
        assert by(client) == (one.old, "")
        for number in range(count):
            found = answer(client)
            assert (found["query"], found["pid"], found["connection"]) == (str(number), one.new, "")
        one.wait_old_ended()


def test_requests_that_are_always_under_way(service: Begin) -> None:
    """A client with 50 requests under way at any time, before, during and after the restart."""
    one = service().begin()
    with one.connect() as client:
        sent = done = since = 0
        pids: list[int] = []
        while since < 200:
            while sent < done + 50:
                client.send(numbered(sent))
                sent += 1
            if not done:
                one.hup()
            found = answer(client)
            assert (found["query"], found["connection"]) == (str(done), "")
            done += 1
            pids.append(found["pid"])
            since += found["pid"] != one.old
        one.wait_restarted()
        count = pids.count(one.old)
        assert count > 0
        assert pids == [one.old] * count + [one.new] * (len(pids) - count)
        for _ in range(sent - done):
            assert by(client) == (one.new, "")
        one.wait_old_ended()


@pytest.mark.parametrize("is_answered", [False, True])
def test_a_small_unread_upload_is_drained(service: Begin, is_answered: bool) -> None:
    """The restart comes before the answer, or when the answer is out and the body is not in."""
    one = service().begin()
    size = 200_000
    with one.connect() as client:
        client.send(b"POST /wait?go HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        client.send(b"x" * 1000)
        one.live.wait_for("^waits for go$")
        if is_answered:
            one.release("go")
            assert by(client) == (one.old, "")
        one.restart()
        assert one.is_old_alive()
        if not is_answered:
            one.release("go")
            assert by(client) == (one.old, "")
        client.send(b"x" * (size - 1000))
        assert ask(client) == (one.new, "")
        one.wait_old_ended()


def test_a_large_unread_upload_ends_its_connection(service: Begin) -> None:
    """As without a restart: the whole answer, which says close, and no reset."""
    one = service().begin()
    size = 1_000_000
    with one.connect() as client:
        client.send(b"POST /wait?go HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        one.live.wait_for("^waits for go$")
        one.restart()
        one.release("go")
        client.send(b"x" * (size // 2))
        assert by(client) == (one.old, "close")
        client.send(b"x" * (size // 2))
        assert client.is_closed()
    one.wait_old_ended()


def test_expect_100_continue(service: Begin) -> None:
    expect = b"POST /%s HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    read_late = (
        "inner = app\n"
        "def late(environ, start_response):\n"
        "    if environ['PATH_INFO'] == '/late':\n"
        "        wait_for('late')\n"
        "        environ['PATH_INFO'] = '/read'\n"
        "    return inner(environ, start_response)\n"
        "server.app = late\n"
    )
    one = service().begin(read_late)
    with one.connect() as before, one.connect() as after:
        # Told to go on before the restart, or after it.
        before.send(expect % b"read")
        assert before.response()[0] == 100
        after.send(expect % b"late")
        one.live.wait_for("^waits for late$")
        one.restart()
        one.release("late")
        assert after.response()[0] == 100
        for client in (before, after):
            found = answer(client.send(b"body"))
            assert (found["pid"], found["connection"]) == (one.old, "")
            assert found["body"] == sha(b"body")
            assert ask(client) == (one.new, "")
        one.wait_old_ended()


# Long responses.


@pytest.mark.parametrize("kind", ["memory", "file", "blocks"])
def test_a_slow_reader_gets_everything(service: Begin, kind: str) -> None:
    """10 MB, and the answer to a request that was sent behind it."""
    one = service().begin()
    with one.connect() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send(GET.replace(b"/", b"/large?" + kind.encode(), 1) + GET)
        _, headers, _ = client.response(head_only=True)
        assert (headers["x-pid"], headers.get("connection")) == (str(one.old), None)
        one.restart()
        time.sleep(WHILE)
        # More than the system keeps for the client.
        assert one.is_old_alive()
        body = client._exactly(int(headers["content-length"]))
        assert sha(body) == sha(hashlib.shake_256(b"large").digest(10_000_000))
        assert by(client) == (one.new, "")
        one.wait_old_ended()
        assert ask(client) == (one.new, "")


def begin_events(client: Client, how: bytes) -> int:
    """Subscribe; the process that sends the events."""
    client.send(GET.replace(b"/", b"/events?" + how, 1))
    code, headers, _ = client.response(head_only=True)
    assert (code, headers["transfer-encoding"]) == (200, "chunked")
    assert event(client) == b"data: %b\n\n" % headers["x-pid"].encode()
    return int(headers["x-pid"])


def begin_stream(one: Service, client: Client, name: str) -> None:
    """Have a response begin that ends when `name` is released."""
    client.send(f"GET /stream?{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    code, headers, _ = client.response(head_only=True)
    assert (code, headers["x-pid"], headers.get("connection")) == (200, str(one.old), None)
    assert event(client) == b"begins"


def end_stream(client: Client) -> None:
    assert (event(client), event(client)) == (b"ends", b"")


def event(client: Client) -> bytes:
    """The next chunk; b"" at the end."""
    content = client._exactly(int(client._until(b"\r\n"), 16))
    assert client._exactly(2) == b"\r\n"
    return content


def test_events_that_heed_the_restart_end_by_themselves(service: Begin) -> None:
    one = service().begin()
    with one.connect() as client:
        assert begin_events(client, b"heed") == one.old
        assert event(client) == b"data: tick\n\n"
        one.restart()
        while (last := event(client)) == b"data: tick\n\n":
            pass
        assert (last, event(client)) == (b"data: bye\n\n", b"")
        one.wait_old_ended()
        # The connection is still good for the next subscription.
        assert begin_events(client, b"heed") == one.new


def test_events_that_do_not_heed_it_are_cut_by_the_hammer(service: Begin) -> None:
    one = service().begin(hammer_time=1.0)
    with one.connect() as client:
        assert begin_events(client, b"go-on") == one.old
        began = time.monotonic()
        one.restart()
        peer = peer_name(client)
        with pytest.raises((ConnectionError, ValueError)):
            # To the end of the connection, within the chunks.
            while event(client) == b"data: tick\n\n":
                pass
        assert time.monotonic() - began > 0.95
        one.wait_old_ended()
    one.live.wait_for(rf"^{one.old} \[STOP - Hammer Time\] Forcefully shutting down parent$")
    one.live.wait_for(rf"^{one.old} Cut: GET /events of {peer} after \d+\.\d seconds$")
    with one.connect() as client:
        assert begin_events(client, b"heed") == one.new


def test_the_hammer_closes_no_connection_that_is_about_to_leave(service: Begin) -> None:
    """What is answered in the moment that is left goes on in the new process."""
    one = service().begin("from flask_graceful import life\nlife.DEPARTURE_TIME = 60")
    with one.connect() as client:
        begin_to_wait(one, client, "go")
        one.restart()
        os.kill(one.old, signal.SIGUSR2)
        one.live.wait_for(rf"^{one.old} \[STOP - Hammer Time\]")
        one.release("go")
        assert by(client) == (one.old, "")
        assert ask(client) == (one.new, "")
        one.wait_old_ended()
    assert "Cut: " not in one.live.log


# Connections in the application's hands.

SOCK = """
from flask import Flask, request
from flask_sock import Sock

flask_app = Flask("program")
sock = Sock(flask_app)

@sock.route("/echo")
def echo(ws):
    while True:
        ws.send(f"{os.getpid()} {ws.receive()}")

@sock.route("/heed")
def heed(ws):
    told = request.environ["flask_graceful.shutdown"]
    while not told.is_set():
        if (data := ws.receive(timeout=0.05)) is not None:
            ws.send(f"{os.getpid()} {data}")
    ws.close(1012, "the server restarts")

server.app = flask_app.wsgi_app
"""


def web_socket(one: Service, path: str) -> WebSocket:
    return WebSocket(f"ws://127.0.0.1:{one.address[1]}/{path}")


def echoed_by(ws: WebSocket) -> int:
    ws.send("hello")
    pid, _, text = ws.receive(timeout=DEADLINE).partition(" ")
    assert text == "hello"
    return int(pid)


def end(ws: WebSocket) -> None:
    ws.close()
    ws.thread.join(DEADLINE)
    assert not ws.thread.is_alive()


def test_web_sockets_stay_until_they_end(service: Begin) -> None:
    one = service().begin(SOCK)
    stays, heeds = web_socket(one, "echo"), web_socket(one, "heed")
    assert echoed_by(stays) == echoed_by(heeds) == one.old
    one.restart()
    # Who was told says so in the words of the protocol.
    heeds.wait_closed()
    assert (heeds.close_reason, heeds.close_message) == (1012, "the server restarts")
    for _ in range(3):
        assert echoed_by(stays) == one.old
        time.sleep(WHILE)
    again = web_socket(one, "echo")
    assert echoed_by(again) == one.new
    assert one.is_old_alive()
    end(stays)
    one.wait_old_ended()
    assert echoed_by(again) == one.new
    end(again)


def test_web_sockets_that_do_not_end_are_cut_by_the_hammer(service: Begin) -> None:
    one = service().begin(SOCK, hammer_time=1.0)
    ws = web_socket(one, "echo")
    assert echoed_by(ws) == one.old
    one.restart()
    assert echoed_by(ws) == one.old
    ws.wait_closed()
    one.wait_old_ended()
    one.live.wait_for(rf"^{one.old} Cut: GET /echo of 127\.0\.0\.1:\d+ after \d+\.\d seconds$")


# Clients with a will of their own.


def test_http_1_0(service: Begin) -> None:
    one = service().begin()
    keep = b"GET %s HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    with one.connect() as idle, one.connect() as busy, one.connect() as ends:
        assert by(idle.send(keep % b"/")) == (one.old, "keep-alive")
        busy.send(keep % b"/wait?busy")
        one.live.wait_for("^waits for busy$")
        ends.send(b"GET /wait?ends HTTP/1.0\r\n\r\n")
        one.live.wait_for("^waits for ends$")
        one.restart()
        assert by(idle.send(keep % b"/")) == (one.new, "keep-alive")
        one.release("busy")
        assert by(busy) == (one.old, "keep-alive")
        assert by(busy.send(keep % b"/")) == (one.new, "keep-alive")
        one.release("ends")
        assert by(ends) == (one.old, "close")
        assert ends.is_closed()
        one.wait_old_ended()


def test_clients_that_say_that_they_end(service: Begin) -> None:
    """By a header, or by closing their side after the request."""
    one = service().begin()
    with one.connect() as says_close, one.connect() as half_closed:
        says_close.send(b"GET /wait?close HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        one.live.wait_for("^waits for close$")
        half_closed.send(GET.replace(b"/", b"/wait?half", 1) + GET)
        one.live.wait_for("^waits for half$")
        half_closed.sock.shutdown(socket.SHUT_WR)
        one.restart()
        one.release("close")
        assert by(says_close) == (one.old, "close")
        assert says_close.is_closed()
        one.release("half")
        assert by(half_closed) == (one.old, "")
        # It closes when it has its answers.
        assert by(half_closed) == (one.new, "")
        assert half_closed.is_closed()
        one.wait_old_ended()


def test_the_server_s_hooks_see_the_move(service: Begin) -> None:
    """`conn_context` is asked in each process; `conn_state` sees handed_over as the last state."""
    one = service().begin(
        "def context(entries, connection):\n"
        "    say(f'{os.getpid()} context of {connection.peer_name()}')\n"
        "    return {'app.context': f'{os.getpid()} {connection.peer_name()}'}\n"
        "server.conn_context = context\n"
    )
    with one.connect() as idle, one.connect() as busy:
        found = answer(idle.send(GET))
        assert found["context"] == f"{one.old} {peer_name(idle)}"
        begin_to_wait(one, busy, "go")
        one.restart()
        one.release("go")
        assert by(busy) == (one.old, "")
        one.wait_old_ended()
        for client in (idle, busy):
            found = answer(client.send(GET))
            assert found["context"] == f"{one.new} {peer_name(client)}"
            one.wait_state(client, one.new, "active")
            wait_until(lambda client=client: one.states(client)[-1] == "new idle", "idle")  # type: ignore[misc]
            assert one.states(client) == [
                "old new", "old active", "old idle", "old handed_over",
                "new idle", "new active", "new idle",
            ]  # fmt: skip
            assert len(re.findall(f"context of {peer_name(client)}$", one.live.log, re.M)) == 2


# Connections that can't move.


def test_tls_connections_end_in_the_old_process(service: Begin, files: Files) -> None:  # noqa: F811
    # Time enough for all that is asked within it.
    grace = 3.0
    paths = f"{files.certfile!r}, {files.keyfile!r}"
    tls = f"server.listen_and_serve = lambda: server.listen_and_serve_tls({paths})"
    one = service().begin(tls, idle_grace=grace)

    def connect() -> TLSClient:
        return TLSClient(one.address, files.client)

    with contextlib.ExitStack() as stack:
        late, silent, busy, first, second = (stack.enter_context(connect()) for _ in range(5))
        shaking = stack.enter_context(one.connect())
        one.wait_state(shaking, one.old, "new")
        assert ask(late) == ask(silent) == (one.old, "")
        begin_to_wait(one, busy, "go")
        # Their heads are out, and promise that the connection goes on.
        begin_stream(one, first, "first")
        begin_stream(one, second, "second")
        one.restart()
        began = time.monotonic()
        new = stack.enter_context(connect())
        assert ask(new) == (one.new, "")
        assert ask(late) == (one.old, "close")
        assert late.is_closed()
        one.release("go")
        assert by(busy) == (one.old, "close")
        assert busy.is_closed()
        shaking.sock = files.client.wrap_socket(shaking.sock, server_hostname="localhost")
        assert ask(shaking) == (one.old, "close")
        # Who becomes idle meanwhile has the same time for another request, from then on.
        time.sleep(max(0, began + grace / 2 - time.monotonic()))
        one.release("first")
        end_stream(first)
        # An end without close_notify would be an error.
        assert silent.is_closed()
        assert time.monotonic() - began > grace - 1
        assert ask(first) == (one.old, "close")
        one.release("second")
        end_stream(second)
        time.sleep(WHILE)
        assert ask(second) == (one.old, "close")
        assert second.is_closed()
        one.wait_old_ended()
        assert ask(new) == (one.new, "")


def test_an_address_that_is_dropped_keeps_its_connections_to_the_end(service: Begin) -> None:
    one = service()
    kept, dropped = (f"{one.directory}/{name}" for name in ("kept", "dropped"))
    grace = 3.0
    one.begin("", f"unix:{kept}", f"unix:{dropped}", idle_grace=grace)
    one.live.wait_for(f"Serving HTTP on {dropped}")
    with contextlib.ExitStack() as stack:
        moves = stack.enter_context(Client(kept))
        idle, silent, busy, new = (stack.enter_context(Client(dropped)) for _ in range(4))
        assert ask(moves) == ask(idle) == ask(silent) == (one.old, "")
        begin_to_wait(one, busy, "go")
        one.write("", f"unix:{kept}", idle_grace=grace)
        one.restart()
        assert ask(moves) == (one.new, "")
        for client in (idle, new):
            assert ask(client) == (one.old, "close")
            assert client.is_closed()
        one.release("go")
        assert by(busy) == (one.old, "close")
        assert busy.is_closed()
        assert silent.is_closed()
        one.wait_old_ended()
        assert ask(moves) == (one.new, "")


FEW_DESCRIPTORS = """
import resource

@server.before_begin
def limit(addr):
    # 30 more, however the numbers of those that are open lie.
    is_open = {int(name) for name in os.listdir("/proc/self/fd")}
    most = [number for number in range(1000) if number not in is_open][30]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
"""


def test_what_the_successor_can_t_take_stays(service: Begin) -> None:
    """Its table of descriptors is full: of a record it gets a part of them, or none."""
    one = service().begin(idle_grace=10)
    count = 300
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(one.connect()) for _ in range(count)]
        busy = stack.enter_context(one.connect())
        for client in clients:
            assert ask(client) == (one.old, "")
        begin_to_wait(one, busy, "go")
        one.write(FEW_DESCRIPTORS, idle_grace=10)
        one.restart()
        # Half a request, and a request, on connections of both processes.
        for client in clients[:-1]:
            client.send(GET[:9])
        pids = [by(client.send(GET[9:])) for client in clients[:-1]]
        stayed = pids.count((one.old, "close"))
        assert 0 < count - 1 - stayed < 30
        assert sorted(pids) == sorted(
            [(one.new, "")] * (count - 1 - stayed) + [(one.old, "close")] * stayed
        )
        # It promised that the connection goes on, before anybody knew.
        one.release("go")
        assert by(busy) == (one.old, "")
        # Which connections find room is chance, and the successor may have closed a descriptor of
        # its boot since: each goes on in one of the two, and none is lost.
        either = {(one.old, "close"), (one.new, "")}
        assert ask(busy) in either
        assert ask(clients[-1]) in either
        one.wait_old_ended()
        for client, (pid, _) in zip(clients, pids, strict=False):
            if pid == one.new:
                assert ask(client) == (one.new, "")


def test_what_comes_back_late_has_its_time_too(service: Begin) -> None:
    """The successor's table is full still when a request ends, after idle_grace."""
    one = service().begin(idle_grace=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(one.connect()) for _ in range(100)]
        busy = stack.enter_context(one.connect())
        for client in clients:
            assert ask(client) == (one.old, "")
        begin_to_wait(one, busy, "go")
        one.write(FEW_DESCRIPTORS, idle_grace=2)
        one.restart()
        # Of those that are idle, the most have come back, had their time, and are closed.
        one.live.wait_for(rf"^{one.old} .* closed$", 60)
        one.release("go")
        assert by(busy) == (one.old, "")
        time.sleep(WHILE)
        assert ask(busy) == (one.old, "close")
        one.wait_old_ended()


def test_with_keep_alives_off_nothing_moves(service: Begin) -> None:
    one = service().begin()
    with one.connect() as idle, one.connect() as new, one.connect() as busy, one.connect() as off:
        assert ask(idle) == (one.old, "")
        begin_to_wait(one, busy, "go")
        assert ask(off, "/off") == (one.old, "close")
        assert idle.is_closed()
        one.restart()
        assert ask(new) == (one.old, "close")
        assert new.is_closed()
        one.release("go")
        assert by(busy) == (one.old, "close")
        assert busy.is_closed()
        one.wait_old_ended()
        assert "handed_over" not in one.live.log
        with one.connect() as client:
            assert ask(client) == (one.new, "")


def test_keep_alives_stay_off_when_the_old_process_serves_again(service: Begin) -> None:
    one = service().begin()
    with one.connect() as busy, one.connect() as off:
        begin_to_wait(one, busy, "go")
        assert ask(off, "/off") == (one.old, "close")
        one.restart()
        os.kill(one.new, signal.SIGKILL)
        one.live.wait_for(f"^{one.old} Successor {one.new} .*; this process serves again")
        with one.connect() as client:
            assert ask(client) == (one.old, "close")
        one.release("go")
        assert by(busy) == (one.old, "close")
