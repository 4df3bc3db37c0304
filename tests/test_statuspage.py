"""The status page as a client sees it: who may see it, what it says, and what it holds up."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import typing as t
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import ROOT, Live, Running, open_files, wait_until
from flask import Flask
from flask_graceful.statuspage import create_blueprint
from program import Program, connect, is_gone, serving_pids
from statuspages import site
from test_history import tell

PAGES = ("/graceful/", "/graceful/page.css", "/graceful/page.js", "/graceful/state")
NOTHING = "/nothing"


@pytest.fixture
def program(tmp_path: t.Any, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


def app(token: str = "", debug: bool = False, **options: t.Any) -> Flask:
    one = Flask("site")
    one.debug = debug
    one.register_blueprint(create_blueprint(token, **options))
    return one


class Stream(ExitStack):
    """Somebody who watches."""

    def __init__(self, address: t.Any, headers: str = "", query: str = "") -> None:
        super().__init__()
        self.client = self.enter_context(connect(address))
        request = f"GET /graceful/events{query} HTTP/1.1\r\nHost: a\r\n{headers}\r\n"
        self.client.send(request.encode())
        head = self.client._until(b"\r\n\r\n").decode()
        self.status = int(head.split()[1])
        self.head = head.lower()

    def next(self) -> dict[str, t.Any] | None:
        """The next state; None at the end of the stream."""
        while size := int(self.client._until(b"\r\n"), 16):
            block = self.client._exactly(size).decode()
            assert self.client._exactly(2) == b"\r\n"
            if block.startswith("data: "):
                assert block.endswith("\n\n")
                found: dict[str, t.Any] = json.loads(block[6:])
                return found
        assert self.client._exactly(2) == b"\r\n"
        return None

    def states(self) -> t.Iterator[dict[str, t.Any]]:
        while (state := self.next()) is not None:
            yield state


def state_of(address: t.Any) -> dict[str, t.Any]:
    with connect(address) as client:
        found: dict[str, t.Any] = json.loads(client.get("/graceful/state")[2])
        return found


def threads(port: int) -> list[str]:
    with connect(port) as client:
        return client.get("/threads")[2].decode().split()


# Who may see it.


@pytest.mark.parametrize("path", ["/graceful", *PAGES, "/graceful/events"])
def test_without_debug_and_token_there_is_no_page(path: str) -> None:
    for one in (app(), app("open sesame")):
        client = one.test_client()
        for method in ("GET", "HEAD", "OPTIONS", "POST", "DELETE", "BREW"):
            nothing = client.open(NOTHING, method=method)
            for query in ("", "?token=", "?token=wrong", "?token=%ff", "?token=open"):
                answer = client.open(path + query, method=method)
                assert (answer.status_code, answer.data) == (404, nothing.data), (method, query)
                assert dict(answer.headers) == dict(nothing.headers)


@pytest.mark.parametrize(
    "path", ["//graceful", "/graceful//", "/graceful//page.css", "/graceful/x"]
)
def test_no_other_path_tells_that_there_is_a_page(path: str) -> None:
    answer = app("open sesame").test_client().get(path)
    assert (answer.status_code, "Location" in answer.headers) == (404, False)


def test_what_the_application_has_beside_the_page_is_its_own() -> None:
    one = app("open sesame")
    one.add_url_rule("/graceful/own", "own", view_func=lambda: "own", methods=["GET"])
    one.add_url_rule("/gracefully", "ly", view_func=lambda: "gracefully", methods=["GET"])
    client = one.test_client()
    assert client.get("/graceful/own").text == "own"
    assert client.get("/gracefully").text == "gracefully"
    assert client.post("/gracefully").status_code == 405


def test_who_may_see_the_page_is_told_of_a_wrong_method() -> None:
    answer = app(debug=True).test_client().post("/graceful/")
    assert answer.status_code == 405 and "GET" in answer.headers["Allow"]


@pytest.mark.parametrize("cookie", ["", "wrong", "open sesame", "\xff", '"\\377"'])
def test_a_wrong_cookie_opens_nothing(cookie: str) -> None:
    for one in (app(), app("open sesame")):
        header = f"flask_graceful_status={cookie}"
        answer = one.test_client(use_cookies=False).get("/graceful/", headers={"Cookie": header})
        assert answer.status_code == 404


def test_the_token_is_asked_for_once() -> None:
    client = app("open sesame").test_client()
    answer = client.get("/graceful/?token=open+sesame")
    assert answer.status_code == 200
    name, *rest = answer.headers["Set-Cookie"].split("; ")
    assert sorted(rest) == ["HttpOnly", "Path=/graceful/", "SameSite=Strict"]
    assert "sesame" not in name
    assert all(client.get(path).status_code == 200 for path in PAGES)
    assert client.get(NOTHING).status_code == 404
    # Another token, and nobody has been here before.
    value = name.partition("=")[2]
    header = {"Cookie": f"flask_graceful_status={value}"}
    for token, code in (("another", 404), ("open sesame", 200)):
        other = app(token).test_client(use_cookies=False)
        assert other.get("/graceful/", headers=header).status_code == code


def test_the_cookie_is_for_the_page_whatever_the_app_adds_to_urls() -> None:
    one = app("x")
    one.url_defaults(lambda endpoint, values: values.setdefault("lang", "en"))
    client = one.test_client()
    assert client.get("/graceful/?token=x").status_code == 200
    assert client.get("/graceful/page.css").status_code == 200


def test_over_tls_the_cookie_stays_there() -> None:
    client = app("x").test_client()
    answers = [
        client.get("/graceful/?token=x", base_url="https://a/"),
        client.get("/graceful/?token=x", headers={"X-Forwarded-Proto": "https"}),
    ]
    for answer in answers:
        assert "Secure" in answer.headers["Set-Cookie"].split("; ")


def test_the_page_is_found_without_its_slash() -> None:
    client = app(debug=True).test_client()
    answer = client.get("/graceful")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/graceful/")
    query = "token=a%20b&_scheme=http&_external=1&endpoint=x&_anchor=y&filename=z"
    answer = app("a b").test_client().get(f"/graceful?{query}")
    assert answer.headers["Location"] == "/graceful/?token=a+b"


def test_a_token_is_a_string() -> None:
    with pytest.raises(TypeError, match=r"^token: expected a string, got int$"):
        create_blueprint(12345)  # type: ignore[arg-type]


# What it is made of.


@pytest.mark.parametrize("path", PAGES)
def test_nothing_comes_from_elsewhere_and_nobody_frames_it(path: str) -> None:
    for one in (app(debug=True), app(is_open=True)):
        answer = one.test_client().get(path)
        assert answer.status_code == 200
        policy = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect")} == {"'self'"}
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"
        assert not re.search(rb"(https?:)?//[a-z0-9-]+\.", answer.data)
        assert not re.search(rb"\son[a-z]+=|style=|<script>|<style>", answer.data)


def test_a_plain_server_has_no_state(running: t.Callable[..., Running]) -> None:
    one = running(app(debug=True))
    assert state_of(one.address)["error"] == "this application is not served by GracefulServer"
    with Stream(one.address) as stream:
        assert stream.status == 204


def test_without_a_control_socket_the_page_says_so(program: Program) -> None:
    one = program.start(site(control_socket=""))
    with Stream(one.port) as stream:
        state = stream.next()
    assert state is not None and state["error"].startswith("control_socket is off")


def test_a_control_socket_of_one_s_own_is_found(program: Program) -> None:
    one = program.start(site(control_socket="here.sock"))
    assert state_of(one.port)["status"]["pid"] == one.pid


# The streams.


def test_viewers_see_the_state_and_are_no_requests(program: Program) -> None:
    one = program.start(site())
    with Stream(one.port) as first, Stream(one.port) as second:
        assert first.status == 200 and "content-type: text/event-stream" in first.head
        began = time.monotonic()
        for _ in range(4):
            state = first.next()
            assert state is not None and second.next() is not None
        assert time.monotonic() - began < 10
        (worker,) = state["status"]["workers"]
        assert state["by"] == worker["pid"] == one.pid
        assert abs(state["now"] - time.time()) < 5
        assert worker["watching"] == worker["requests"] == 2
        assert state["status"]["restarts"] == []
        # Whoever watches, one asks.
        assert threads(one.port).count("graceful-status") == 1
    wait_until(lambda: "graceful-status" not in threads(one.port), "nobody asks any more")
    wait_until(lambda: state_of(one.port)["status"]["workers"][0]["watching"] == 0, "none left")


def test_all_who_come_at_once_are_told(program: Program) -> None:
    one = program.start(site())
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(one.port)) for _ in range(6)]
        for client in clients:
            client.send(b"GET /graceful/state HTTP/1.1\r\nHost: a\r\n\r\n")
        states = [json.loads(client.response()[2]) for client in clients]
    assert {state["status"]["pid"] for state in states} == {one.pid}


def test_viewers_leave_threads_to_others(program: Program) -> None:
    one = program.start(site(threads=8))
    port = one.port
    with ExitStack() as stack:
        streams = [stack.enter_context(Stream(port)) for _ in range(3)]
        assert [stream.status for stream in streams] == [200, 200, 204]
        wait_until(lambda: state_of(port)["status"]["workers"][0]["watching"] == 2, "two watch")
    wait_until(lambda: state_of(port)["status"]["workers"][0]["watching"] == 0, "room again")
    with Stream(port) as stream:
        assert stream.status == 200


REPLACED = """
@site.after_request
def instead(response):
    if request.args.get("act") == "replace":
        return site.response_class("another one")
    if request.args.get("act") == "fail":
        raise ValueError("as asked for")
    return response

@site.get("/collected")
def collected():
    import gc
    return str(gc.collect())
"""


def test_a_place_that_no_stream_has_is_free(program: Program) -> None:
    """Whatever the application does with the answer, and to whom it only asks for the headers."""
    one = program.start(site(after=REPLACED, threads=4, debug=False, token="x"))
    with connect(one.port) as client:
        for query, code in (("&act=replace", 200), ("&act=fail", 500)):
            assert client.get(f"/graceful/events?token=x{query}")[0] == code
        # An exception's frames, which hold the answer, are in a circle.
        assert client.get("/collected")[0] == 200
        client.send(b"HEAD /graceful/events?token=x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.response(head_only=True)[0] == 200
        assert client.get("/")[0] == 200
    with Stream(one.port, query="?token=x") as stream:
        assert stream.status == 200
        state = stream.next()
    assert state is not None and state["status"]["workers"][0]["watching"] == 1


@pytest.mark.parametrize("env", [{"TMPDIR": ""}, {"TMPDIR": "/tmp"}], ids=["", "TMPDIR"])
def test_without_a_descriptor_left_viewers_are_told_and_the_page_recovers(
    program: Program, env: dict[str, str]
) -> None:
    full = """
import resource

@site.get("/fill")
def fill():
    site.soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    site.held = []
    site.is_full, site.may_end = threading.Event(), threading.Event()
    site.filler = threading.Thread(target=keep_full)
    site.filler.start()
    site.is_full.wait()
    return "full"

def keep_full():
    # Also what is closed later, by who asks just now.
    while not site.may_end.is_set():
        try:
            site.held.append(open(os.devnull))
        except OSError:
            site.is_full.set()
            time.sleep(0.001)

@site.get("/free")
def free():
    site.may_end.set()
    site.filler.join()
    resource.setrlimit(resource.RLIMIT_NOFILE, (site.soft, site.soft))
    for one in site.held:
        one.close()
    return "free"
"""
    one = program.start(site(after=full), **env)
    with Stream(one.port) as stream, connect(one.port) as client:
        assert stream.next() is not None
        assert client.get("/fill")[2] == b"full"
        # Who was asking when the last one went may have heard nothing more.
        assert next(s for s in stream.states() if "Too many open files" in s.get("error", ""))
        assert "error" in json.loads(client.get("/graceful/state")[2])
        assert client.get("/free")[2] == b"free"
        assert next(state for state in stream.states() if "status" in state)
    assert "Traceback" not in one.log


def test_what_nobody_has_thought_of_is_said_now_and_then(program: Program) -> None:
    """And not as often as the viewers can begin another thread."""
    fails = "from flask_graceful import statuspage\nstatuspage.find_by_setting = lambda *_: 1 / 0"
    one = program.start(site(after=fails))
    with connect(one.port) as viewer:
        viewer.send(b"GET /graceful/events HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("The status page can't ask the service")
        time.sleep(0.5)
        assert one.log.count("The status page can't ask the service") < 3
        one.wait_for("ZeroDivisionError", 2)


def test_where_there_is_one_thread_the_page_asks(program: Program) -> None:
    one = program.start(site(threads=1))
    with Stream(one.port) as stream:
        assert stream.status == 204
    assert state_of(one.port)["status"]["pid"] == one.pid


def test_a_stream_ends_in_good_order_before_the_server_s_limit(program: Program) -> None:
    limits: list[dict[str, t.Any]] = [{"write_timeout": 4.0}, {"request_timeout_hard": 4.0}]
    servers = [program.start(site(**limit)) for limit in limits]
    with ExitStack() as stack:
        for one, stream in [(one, stack.enter_context(Stream(one.port))) for one in servers]:
            # One that is cut has no end, and one that is too long has its process replaced.
            assert len(list(stream.states())) >= 2
            assert stream.client.get("/")[2].decode() == str(one.pid)
            assert "To be replaced" not in one.log


# A restart and a stop.


def test_a_viewer_holds_up_no_restart_and_is_handed_over(program: Program) -> None:
    boot = "if has_parent():\n    wait_for_file('boot')"
    one = program.start(site(boot, hammer_time=60))
    with Stream(one.port) as stream:
        assert stream.next() is not None
        os.kill(one.pid, signal.SIGHUP)
        booting = next(
            worker
            for state in stream.states()
            for worker in state["status"]["workers"]
            if worker["state"] == "booting"
        )
        program.let_go("boot")
        list(stream.states())
        # On the same connection.
        second = int(stream.client.get("/")[2])
    wait_until(lambda: is_gone(one.pid), "the old process has gone", 30)
    assert second == serving_pids(one, 2)[1]
    assert (booting["pid"], booting["generation"]) == (second, 2)
    assert "Waiting for:" not in one.log


@pytest.mark.parametrize("workers", [0, 2])
def test_a_viewer_holds_up_no_stop(program: Program, workers: int) -> None:
    one = program.start(site(hammer_time=60, workers=workers))
    one.wait_for("Serving HTTP on" if not workers else "serves with workers")
    with Stream(one.port) as stream:
        assert stream.next() is not None
        began = time.monotonic()
        os.kill(one.pid, signal.SIGTERM)
        list(stream.states())
        one.process.wait(60)
        assert time.monotonic() - began < 30


SMALL = """
import contextlib, socket

@site.before_request
def shrink():
    # So that little fills what the system sends later.
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_viewer_who_does_not_read_holds_up_nothing(program: Program, workers: int) -> None:
    one = program.start(site(after=SMALL, hammer_time=60, workers=workers))
    (old,) = [worker["pid"] for worker in state_of(one.port)["status"]["workers"]]

    def is_stuck() -> bool:
        found = tell(one.pid, "requests", stacks=True)["requests"]
        return any("wait_ready" in line for request in found for line in request["stack"])

    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.connect(("127.0.0.1", one.port))
        sock.sendall(b"GET /graceful/events HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(is_stuck, "nothing more can be sent")
        os.kill(one.pid, signal.SIGHUP)
        wait_until(lambda: is_gone(old), "the old process has gone", 10)
        assert state_of(one.port)["status"]["pid"]
    assert "Hammer Time" not in one.log


def test_workers_all_show_the_whole_service(program: Program) -> None:
    one = program.start(site(workers=2))
    one.wait_for("serves with workers")
    with ExitStack() as stack:
        seen = set()
        for _ in range(8):
            stream = stack.enter_context(Stream(one.port))
            state = stream.next()
            assert state is not None
            seen.add(state["by"])
            assert state["status"]["pid"] == one.pid
            assert len(state["status"]["workers"]) == 2
    assert len(seen) == 2


# The blog.


@pytest.mark.parametrize("mode", ["debug", "release"])
def test_the_blog_has_the_page_in_debug_mode(
    live: t.Callable[..., Live], tmp_path: t.Any, mode: str
) -> None:
    env = {
        "BLOG_RUN_MODE": mode,
        "BLOG_SERVER_HTTP_PORT": "0",
        "BLOG_APP_JWT_SECRET": "not printed anywhere, and long enough",
        "BLOG_DATABASE_NAME": str(tmp_path / "blog.db"),
    }
    one = live("app.py", cwd=ROOT, env=env)
    (pid,) = one.wait_pids(1)
    if mode == "debug":
        port = int(one.wait_for(r"Listening and serving HTTP on \[::\]:(\d+)")[1])
        with Stream(port) as stream:
            state = stream.next()
            assert state is not None and state["status"]["pid"] == pid
    else:
        port = listening_port(pid)
        with connect(port) as client:
            assert client.get("/graceful/")[0] == client.get("/graceful/events")[0] == 404


def listening_port(pid: int) -> int:
    """The TCP port of a process that logs none."""
    own = set(open_files(pid))
    for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in own:
            return int(words[1].rpartition(":")[2], 16)
    raise AssertionError("it listens nowhere")
