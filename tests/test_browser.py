"""The status page in a browser, before, during and after a real `kill -1`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import typing as t
from pathlib import Path

import pytest
from browser import Browser
from conftest import Client, Live, Running, wait_until
from flask_graceful.notice import PATH, Failure, Notice
from program import Program, pid_from, serving_pids
from statuspages import site

BOOT = """
if has_parent():
    wait_for_file("boot")
    if os.path.exists("fail"):
        sys.exit(3)
"""


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


@pytest.fixture
def browser(tmp_path: Path) -> t.Iterator[Browser]:
    one = Browser(tmp_path / "browser")
    yield one
    one.close()


class View:
    """The page, as somebody reads it."""

    def __init__(self, browser: Browser, port: int) -> None:
        self.browser = browser
        browser.open(f"http://127.0.0.1:{port}/graceful/")
        # What a reload would forget.
        browser.run("window.mark = 'kept'")

    def generations(self) -> dict[int, tuple[str, str, str]]:
        """The state, the requests and the connections of each, as they stand there."""
        rows = self.browser.run(
            "return [...document.querySelectorAll('.generation')].map(one => ["
            "Number(one.dataset.generation), ...['.state', '.requests', '.connections']"
            ".map(query => one.querySelector(query).textContent)])"
        )
        return {row[0]: tuple(row[1:]) for row in rows}

    def pids(self, generation: int) -> list[int]:
        cells = f"[data-generation='{generation}'] tbody td:first-child"
        return [int(text) for text in self.browser.texts(cells)]

    def moved(self) -> list[int]:
        """The connections that moved from one to the next."""
        return [int(text) for text in self.browser.texts(".moved:not([hidden]) .count")]

    def is_there(self) -> bool:
        """Is it live, and was it never loaded again?"""
        is_kept = self.browser.run("return window.mark") == "kept"
        return is_kept and self.browser.texts("#link-text") == ["live"]

    def restarts(self) -> list[str]:
        return self.browser.texts("#restarts tbody tr")

    def events(self) -> str:
        return "\n".join(reversed(self.browser.texts("#events li")))

    def shows(self, **states: str) -> None:
        """Wait until these generations are there, and no others; `_1="serving"`."""
        wanted = {int(name[1:]): state for name, state in states.items()}

        def found() -> bool:
            return {n: one[0] for n, one in self.generations().items()} == wanted

        wait_until(found, f"{wanted} on the page: {self.generations()}")


class Clients(contextlib.ExitStack):
    """Those who come beside the browser, until the test is over."""

    def connect(self, port: int) -> Client:
        return self.enter_context(Client(("127.0.0.1", port)))

    def idle(self, port: int, count: int) -> list[Client]:
        """Connections that are kept."""
        found = [self.connect(port) for _ in range(count)]
        for client in found:
            client.get()
        return found

    def hold(self, one: Live, port: int) -> Client:
        """A request that waits for the file `go`."""
        client = self.connect(port).send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held")
        return client


@pytest.fixture
def clients() -> t.Iterator[Clients]:
    with Clients() as found:
        yield found


def test_a_restart_is_seen_from_its_beginning_to_its_end(
    program: Program, browser: Browser, clients: Clients
) -> None:
    one = program.start(site(BOOT))
    (first,) = serving_pids(one, 1)
    port = one.port
    view = View(browser, port)
    view.shows(_1="serving")
    assert view.pids(1) == [first]
    kept = clients.idle(port, 12)
    held = clients.hold(one, port)
    wait_until(lambda: view.generations()[1][1] == "1", "the request on the page")
    assert browser.texts("#kill") == [f"kill -1 {first}"]

    os.kill(first, signal.SIGHUP)
    view.shows(_1="serving", _2="booting")
    assert view.is_there()
    program.let_go("boot")
    view.shows(_1="draining", _2="serving")
    second = serving_pids(one, 2)[1]
    assert (view.pids(1), view.pids(2)) == ([first], [second])
    # The held request is all that the old process has; the page itself is no request.
    wait_until(lambda: view.generations()[1][1:] == ("1", "1"), "the old one's numbers")
    wait_until(lambda: view.generations()[2][1] == "0", "the new one's numbers")
    wait_until(lambda: view.moved() and view.moved()[0] >= 12, "connections that moved")
    assert view.is_there()
    assert f"this page goes on with process {second}" in view.events()

    program.let_go()
    assert held.response()[2] == str(first).encode()
    view.shows(_1="gone", _2="serving")
    (row,) = view.restarts()
    assert re.fullmatch(r"\d\d:\d\d:\d\d2\d+\.\d\d s\d+\.\d\d s\d+", row), row
    view.shows(_2="serving")
    words = ("2 boots", "2 serves", "1 drains: 1 request, 1 connection", "1 has gone")
    places = [view.events().find(f"generation {text}") for text in words]
    # Which of the two in the middle is seen first is chance.
    booted, *between, gone = places
    assert -1 < booted < min(between) and max(between) < gone, view.events()
    assert view.is_there() and browser.complaints() == []
    assert {pid_from(client) for client in kept} == {second}


def test_a_restart_with_workers_is_seen_too(
    program: Program, browser: Browser, clients: Clients
) -> None:
    one = program.start(site(workers=2))
    supervisor = int(one.wait_for(r"^(\d+) Generation 1 serves")[1])
    port = int(one.wait_for(r"Serving HTTP on \[::\]:(\d+)")[1])
    view = View(browser, port)
    view.shows(_1="serving")
    old = view.pids(1)
    kept = clients.idle(port, 8)
    held = clients.hold(one, port)
    assert len(old) == 2 and browser.texts("#kill") == [f"kill -1 {supervisor}"]

    os.kill(supervisor, signal.SIGHUP)
    view.shows(_1="draining", _2="serving")
    wait_until(lambda: len(view.pids(2)) == 2, "two new workers")
    wait_until(lambda: view.generations()[1][1:] == ("1", "1"), "the old one's numbers")
    wait_until(lambda: view.moved() and view.moved()[0] >= 8, "connections that moved")
    wait_until(view.is_there, "the page is live")
    program.let_go()
    assert int(held.response()[2]) in old
    view.shows(_1="gone", _2="serving")
    wait_until(lambda: re.search(r"\.\d\d s\d+\.\d\d s", view.restarts()[0]), "its durations")
    assert view.is_there() and browser.complaints() == []
    assert {pid_from(client) for client in kept} <= set(view.pids(2))


def test_a_restart_that_fails_is_told_with_its_reason(program: Program, browser: Browser) -> None:
    one = program.start(site(BOOT))
    view = View(browser, one.port)
    view.shows(_1="serving")
    program.let_go("fail")
    os.kill(one.pid, signal.SIGHUP)
    view.shows(_1="serving", _2="booting")
    program.let_go("boot")
    view.shows(_1="serving", _2="gone")
    _, why = view.restarts()
    assert re.fullmatch(r"failed after \d+\.\d\d s: successor \d+ exited with status 3", why)
    assert "restart failed: successor" in view.events()
    assert view.is_there()


def test_the_page_waits_for_a_server_that_was_stopped(program: Program, browser: Browser) -> None:
    one = program.start(site())
    port = one.port
    view = View(browser, port)
    view.shows(_1="serving")
    os.kill(one.pid, signal.SIGTERM)
    one.wait_for(r"Serve\(\) returning")
    wait_until(lambda: browser.texts("#link-text") == ["no answer, trying on"], "it says so")
    program.start(site(addr=f":{port}"))
    wait_until(view.is_there, "the page is live again")


def test_without_streams_the_page_asks_and_survives_as_well(
    program: Program, browser: Browser
) -> None:
    one = program.start(site(threads=1))
    view = View(browser, one.port)
    wait_until(lambda: browser.texts("#link-text") == ["asks each second"], "it asks")
    view.shows(_1="serving")
    os.kill(one.pid, signal.SIGHUP)
    view.shows(_1="gone", _2="serving")
    assert view.pids(2) == serving_pids(one, 2)[1:]
    assert browser.run("return window.mark") == "kept"


def test_the_page_fits_a_phone_the_night_and_quiet_eyes(
    program: Program, browser: Browser, clients: Clients
) -> None:
    one = program.start(site())
    view = View(browser, one.port)
    browser.resize(360, 740, 2)
    view.shows(_1="serving")
    held = clients.hold(one, one.port)
    os.kill(one.pid, signal.SIGHUP)
    view.shows(_1="draining", _2="serving")
    assert browser.run("return document.documentElement.scrollWidth") == 360
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(colour)
    browser.prefer(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    dark = browser.run(colour)
    assert brightness(dark) < 0.2 < 0.8 < brightness(light)
    assert browser.run(
        "document.querySelectorAll('.moved')[1].classList.add('flows');"
        "return getComputedStyle(document.querySelectorAll('.arrow')[1], '::before').animationName"
    ) == "none"  # fmt: skip
    browser.resize(1180, 860)
    program.let_go()
    held.response()


def brightness(colour: str) -> float:
    """0: black; 1: white."""
    parts = [int(part) for part in re.findall(r"\d+", colour)[:3]]
    return sum(parts) / 3 / 255


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_written_can_be_read(program: Program, browser: Browser, scheme: str) -> None:
    """WCAG 2: at least 4.5 between a text and what is behind it."""
    view = View(browser, program.start(site()).port)
    browser.prefer(prefers_color_scheme=scheme)
    view.shows(_1="serving")
    names = "ink quiet booting serving draining failed paper card".split()
    found = browser.run(
        "const style = getComputedStyle(document.documentElement);"
        "return arguments[0].map(name => style.getPropertyValue('--' + name).trim())",
        names,
    )
    colours = dict(zip(names, map(luminance, found), strict=True))
    for text in names[:6]:
        for ground in names[6:]:
            low, high = sorted((colours[text], colours[ground]))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, text, ground)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_keyboard_reaches_what_scrolls_and_sees_where_it_is(
    program: Program, browser: Browser
) -> None:
    view = View(browser, program.start(site()).port)
    view.shows(_1="serving")
    reached = []
    for _ in range(3):
        press(browser, "Tab")
        reached.append(browser.run("return document.activeElement.id"))
        width = browser.run("return getComputedStyle(document.activeElement).outlineWidth")
        assert width == "2px"
    assert reached[0] == "generations" and reached[-1] == "events"
    assert browser.run("return document.getElementById('events').getAttribute('aria-live')") == (
        "polite"
    )


def press(browser: Browser, key: str) -> None:
    for kind in ("rawKeyDown", "keyUp"):
        browser.driver.execute_cdp_cmd(
            "Input.dispatchKeyEvent",
            {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": 9},
        )


def test_the_token_does_not_stay_in_the_address(program: Program, browser: Browser) -> None:
    one = program.start(site(token="open sesame", debug=False))
    browser.open(f"http://127.0.0.1:{one.port}/graceful/?token=open+sesame")
    wait_until(lambda: browser.texts(".generation .state") == ["serving"], "the page")
    assert browser.driver.current_url == f"http://127.0.0.1:{one.port}/graceful/"
    # The cookie opens it from now on, and no script sees it.
    browser.driver.refresh()
    wait_until(lambda: browser.texts(".generation .state") == ["serving"], "the page, once more")
    assert browser.run("return document.cookie") == ""


# The notice of the development mode.


def test_a_notice_covers_nothing_and_goes_when_the_code_is_mended(
    browser: Browser, running: t.Callable[..., Running]
) -> None:
    """Behind a proxy too, which sends elsewhere what the notice asks."""
    asked: list[str] = []

    def page(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/html")])
        return [b"<!doctype html><div style='height: 3000px'></div><p>The end</p>"]

    def proxy(environ: t.Any, start_response: t.Any) -> t.Iterable[bytes]:
        if environ["PATH_INFO"] == PATH and notice.failure is not None:
            asked.append(PATH)
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"Not here."]
        return notice(environ, start_response)

    notice = Notice(page, lambda environ: True)
    notice.failure = Failure("worker 1 exited with status 1", ["Traceback"] * 30)
    one = running(proxy)
    browser.open(f"http://127.0.0.1:{one.address[1]}/")
    browser.run("window.mark = 'kept'")
    below = (
        "scrollTo(0, document.documentElement.scrollHeight);"
        "const [end, notice] = ['p', '#graceful-failure'].map("
        "query => document.querySelector(query).getBoundingClientRect());"
        "return notice.height > 0 && end.bottom <= notice.top"
    )
    wait_until(lambda: browser.run(below), "the end of the page above the notice")
    wait_until(lambda: len(asked) >= 2, "a question after the first answer")
    assert browser.run("return window.mark") == "kept"
    notice.failure = None
    wait_until(lambda: browser.run("return window.mark") is None, "the page of the new code")
    assert browser.all("#graceful-failure") == []
