"""The list of running requests: which, for whom, how long, and where each one's thread is."""

from __future__ import annotations

import threading
import time
import typing as t

from conftest import Running, wait_until
from flask_graceful.running import RunningRequest
from test_server import Gate, Start


def only(one: Running) -> RunningRequest:
    (request,) = one.server.running_requests()
    return request


def test_a_running_request_is_listed_with_the_place_where_it_is(running: Start) -> None:
    gate = Gate()
    one = running(gate)
    assert one.server.running_requests() == []
    with one.connect() as client:
        began = time.monotonic()
        client.send(b"POST /a%0Ab\xff?secret HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        gate.wait()
        request = only(one)
        assert request.method == "POST"
        assert request.path == "/a%0Ab\\xff"
        assert request.peer == "{}:{}".format(*client.sock.getsockname())
        assert 0 <= request.age <= time.monotonic() - began
        assert str(request).startswith(rf"POST /a%0Ab\xff of {request.peer} after 0.")
        assert request.thread in [thread.ident for thread in threading.enumerate()]
        # From the application's first function on, as in a traceback; nothing of the server's.
        stack = request.stack()
        assert stack[0].startswith('  File "') and stack[0].endswith(", in __call__")
        assert __file__.replace("test_running", "test_server") in stack[0]
        assert not any("exchange.py" in line or "in _bootstrap" in line for line in stack)
        gate.leave.set()
        assert client.response()[0] == 200
        wait_until(lambda: not one.server.running_requests(), "nothing runs")


def test_the_oldest_comes_first_and_who_has_no_thread_says_so(running: Start) -> None:
    """The application has answered, and its client reads slowly: no thread is busy with that."""
    size = 64 << 20

    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        if environ["PATH_INFO"] == "/large":
            start_response("200 OK", [("Content-Length", str(size))])
            return [bytes(size)]
        return gate(environ, start_response)

    gate = Gate()
    one = running(app)
    with one.connect() as first, one.connect() as second:
        first.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: [one.thread for one in one.server.running_requests()] == [0], "answered")
        second.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        gate.wait()
        large, held = one.server.running_requests()
        assert (large.path, held.path) == ("/large", "/held")
        assert large.age > held.age
        assert (large.stack(), bool(held.thread)) == ([], True)
        gate.leave.set()
