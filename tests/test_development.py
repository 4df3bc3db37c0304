"""`flask graceful run --debug`: code that changes under real servers, under load, on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import typing as t
from functools import partial
from pathlib import Path

import pytest
from conftest import Client, Live, Running, wait_until
from flask_graceful.notice import PATH, Failure, Notice
from flask_graceful.sources import Sources
from flaskapp import COMMAND, FlaskApp
from flaskapp import hello as hello
from load import KeptLoad, Load
from program import Program, is_gone, one_server, serving_pids
from service import check_nothing_lost, session
from test_proxies import free_addresses, pair

BROWSER = "Accept: text/html,*/*;q=0.8\r\nSec-Fetch-Dest: document\r\n"
SYNTAX = "def broken(:"
GENERATION = r"Generation \d+ serves with worker (\d+)"
RUNS = r"^ \* Running on (\S+)$"
RESTARTED = r"^ \* Restarted( in \d+\.\d s)?$"
TITLE = "<!doctype html><title>one</title>"


# The same without the command.
PROGRAM = ("hello.py",)
RUN = """
if __name__ == "__main__":
    from flask_graceful import Graceful
    Graceful(app).run(app, port=0, debug=True)
"""
DOORS = [(COMMAND, ""), (PROGRAM, RUN)]


def develop(hello: FlaskApp, *flags: str, command: t.Sequence[str] = COMMAND, **env: str) -> Live:
    if command == PROGRAM:
        one = hello.one = hello.begin(command=command, **env)
    else:
        one = hello.run("--debug", *flags, command=command, **env)
    one.wait_for(RUNS)
    return one


def wait_for_release(hello: FlaskApp, release: str) -> None:
    wait_until(lambda: hello.says("/release") == release, f"release {release}")


def wait_for_failure(hello: FlaskApp, text: str) -> None:
    """The pages say why the new code does not serve."""
    wait_until(lambda: text in hello.get(PATH)[2], f"{text} in the page of the failure")


# The promise.


def test_broken_code_is_shown_and_the_old_code_answers_until_it_is_mended(hello: FlaskApp) -> None:
    one = develop(hello)
    old = hello.pid()
    with Load(hello.address, 2) as fresh, KeptLoad(hello.address, [0, 0.01, 0.2]) as kept:
        kept.wait_count(50)
        hello.write("two", SYNTAX)
        # In the terminal,
        one.wait_for(r"^\| SyntaxError: invalid syntax")
        assert f'File "{hello.directory / "hello.py"}", line' in one.log
        # in the browser,
        wait_for_failure(hello, "SyntaxError")
        code, fields, text = hello.get("/page", BROWSER)
        assert (code, fields["cache-control"]) == (200, "no-store")
        assert text.startswith(TITLE)
        assert SYNTAX in text and "SyntaxError" in text
        # and the old code answers, programs as before.
        assert (hello.pid(), hello.says("/page")) == (old, TITLE)
        kept.wait_served_by({old})
        kept.wait_count(kept.count + 200)
        fresh.wait_count(fresh.count + 100)
        hello.write("three")
        wait_for_release(hello, "three")
        new = hello.pid()
        kept.wait_served_by({new})
        kept.wait_count(kept.count + 100)
    assert new != old
    assert "SyntaxError" not in hello.get("/page", BROWSER)[2]
    assert hello.get(PATH)[0] == 404
    check_nothing_lost(kept, fresh)


def test_requests_in_flight_end_in_the_code_that_they_began_in(hello: FlaskApp) -> None:
    one = develop(hello)
    with Client(hello.address) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held ")
        hello.write("two")
        wait_for_release(hello, "two")
        (hello.directory / "go").touch()
        assert client.response()[2] == b"one"
        # And the connection goes on, in the new code.
        assert client.get("/release")[2] == b"two"


def test_ctrl_c_says_what_it_waits_for_and_the_second_one_cuts(hello: FlaskApp) -> None:
    one = develop(hello)
    with Client(hello.address) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held ")
        os.kill(one.pid, signal.SIGINT)
        one.wait_for(r"^ \* Waiting for requests to finish; CTRL\+C cuts them$")
        os.kill(one.pid, signal.SIGINT)
        assert client.is_closed()
        (hello.directory / "go").touch()
    assert one.process.wait(20) == 0


def test_a_worker_that_dies_while_it_finishes_is_no_secret(hello: FlaskApp) -> None:
    one = develop(hello)
    with Client(hello.address) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        old = int(one.wait_for(r"^held (\d+)")[1])
        hello.write("two")
        one.wait_for(RESTARTED)
        os.kill(old, signal.SIGKILL)
        one.wait_for(rf"^{one.pid} Worker {old} was killed by SIGKILL\.$")


@pytest.mark.parametrize("workers", [0, 3])
def test_a_program_s_own_run_develops_too(hello: FlaskApp, workers: int) -> None:
    """As `app.run(debug=True)`; in one process, whatever is configured for others."""
    more = f"app.config['GRACEFUL_WORKERS'] = {workers}{RUN}"
    hello.write(more=more)
    one = develop(hello, command=PROGRAM)
    one.wait_for(r"^ \* Debugger PIN")
    one.wait_for(rf"^Press CTRL\+C to quit; kill -1 {one.pid} restarts it without a change$")
    with KeptLoad(hello.address, [0.01] * 2) as kept:
        hello.write("two", SYNTAX + more)
        one.wait_for(r"^\| SyntaxError: invalid syntax")
        wait_for_failure(hello, "SyntaxError")
        with Client(hello.address) as client:
            assert client.get("/release")[2] == b"one"
            assert b"SyntaxError" in client.get("/page", BROWSER, host="localhost")[2]
        hello.write("three", more)
        one.wait_for(RESTARTED)
        wait_for_release(hello, "three")
    check_nothing_lost(kept)
    assert one.log.count("Debugger PIN") == 1


@pytest.mark.parametrize("command, run", DOORS, ids=["command", "program"])
def test_the_terminal_tells_what_a_developer_needs_and_no_more(
    hello: FlaskApp, command: tuple[str, ...], run: str
) -> None:
    hello.write(more=run)
    one = develop(hello, command=command)
    hello.write("two", run)
    wait_for_release(hello, "two")
    one.wait_for(RESTARTED)
    os.kill(one.pid, signal.SIGHUP)
    one.wait_for(RESTARTED, 2)
    hello.write("three", SYNTAX + run)
    one.wait_for("Reload failed")
    os.kill(one.pid, signal.SIGINT)
    assert one.process.wait(20) == 0
    wait_until(lambda: one._is_over, "the end of the log")
    said = [line for line in one.log.splitlines() if '"GET /' not in line]
    # The lines of the traceback are the last ones of the new process, and indented.
    assert [re.sub(r"\d[\d.]*", "N", line) for line in said if line[:2] not in ("  ", "| ")] == [
        " * Serving Flask app 'hello'",
        " * Debug mode: on",
        " * Running on http://N:N",
        "Press CTRL+C to quit; kill -N N restarts it without a change",
        " * Debugger PIN: N-N-N",
        " * Detected change in 'hello.py', restarting",
        " * Restarted in N s",
        " * Restarted",
        " * Detected change in 'hello.py', restarting",
        "SyntaxError: invalid syntax",
        "N Reload failed: worker N exited with status N; nothing has changed.",
        "Its last lines:",
    ]


# What is looked after.


@pytest.mark.parametrize("command, run", DOORS, ids=["command", "program"])
def test_a_change_during_a_boot_is_not_overlooked(
    hello: FlaskApp, command: tuple[str, ...], run: str
) -> None:
    hello.write("one", run)
    one = develop(hello, command=command)
    hold = "print('boots', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    hello.write("two", hold + run)
    one.wait_for("^boots")
    # The process that is told so is the one that has loaded what is old already.
    hello.write("three", run)
    (hello.directory / "go").touch()
    wait_for_release(hello, "three")


def test_what_a_program_writes_and_imports_each_time_is_no_change(hello: FlaskApp) -> None:
    """Also by its own `run`, which begins to look when all has been imported."""
    made = """
import flask_graceful
with open("made.py", "w") as file:
    file.write("value = 1")
import made
"""
    hello.write("one", made + RUN)
    one = develop(hello, command=PROGRAM)
    hello.write("two", made + RUN)
    wait_for_release(hello, "two")
    assert set(re.findall(r"Detected change in (.*), restarting", one.log)) == {"'hello.py'"}


def test_code_that_nobody_has_imported_counts(hello: FlaskApp) -> None:
    """What is missing or broken is mended in a file that the old code does not know."""
    develop(hello)
    hello.write("two", "import parts.one")
    wait_for_failure(hello, "No module named 'parts'")
    hello.replace("parts/one.py", SYNTAX)
    wait_for_failure(hello, "SyntaxError")
    hello.replace("parts/one.py", "")
    wait_for_release(hello, "two")


def test_code_that_is_imported_late_counts(hello: FlaskApp, tmp_path_factory: t.Any) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    (place / "late.py").write_text("value = 'early'")
    more = f"@app.get('/late')\ndef late():\n sys.path.append({str(place)!r})\n import late\n"
    hello.write(more="import sys\n" + more + " sys.path.pop()\n return late.value")
    one = develop(hello)
    assert hello.says("/late") == "early"
    (place / "late.py").write_text("value = 'later'")
    one.wait_for(r" \* Detected change in '.*late\.py', restarting")
    one.wait_for(RESTARTED)
    assert hello.says("/late") == "later"


def test_extra_files_count_and_excluded_ones_do_not(hello: FlaskApp) -> None:
    for name in ("words.txt", "other.txt", "left_out.py"):
        hello.replace(name, "")
    flags = ("--extra-files", "words.txt:.", "--exclude-patterns", "*/left_*:*.nothing")
    one = develop(hello, *flags)
    hello.replace("other.txt", "other")
    hello.replace("left_out.py", "1 / 0")
    hello.replace("words.txt", "words")
    one.wait_for(RESTARTED)
    assert re.findall(r"Detected change in (.*), restarting", one.log) == ["'words.txt'"]


@pytest.mark.parametrize("reads_anew", [True, False])
def test_templates_restart_only_what_does_not_read_them_anew(
    hello: FlaskApp, reads_anew: bool
) -> None:
    hello.write(
        more=f"app.config['TEMPLATES_AUTO_RELOAD'] = {reads_anew}\n"
        "from flask import render_template\n"
        "app.add_url_rule('/t', view_func=lambda: render_template('t.html'), endpoint='t')"
    )
    hello.replace("templates/t.html", "one")
    one = develop(hello)
    old = hello.pid()
    assert hello.says("/t") == "one"
    hello.replace("templates/t.html", "two, and longer")
    wait_until(lambda: hello.says("/t") == "two, and longer", "the new template")
    assert (hello.pid() == old) is reads_anew
    assert ("Detected change" in one.log) is not reads_anew


def test_settings_in_files_of_the_environment_are_read_anew(hello: FlaskApp) -> None:
    pytest.importorskip("dotenv")
    hello.replace(".env", "GREETING=one")
    hello.write("' + os.environ['GREETING'] + '".replace("'", '"'))
    develop(hello)
    assert hello.says("/release") == "one"
    hello.replace(".env", "GREETING=two")
    wait_for_release(hello, "two")


def test_a_system_that_does_not_tell_of_changes_is_looked_at(hello: FlaskApp) -> None:
    (hello.directory / "sitecustomize.py").write_text(
        "import sys; sys.modules['watchfiles'] = None"
    )
    one = develop(hello, PYTHONPATH=str(hello.directory))
    assert " * watchfiles is not installed" in one.log
    assert "pip install 'flask-graceful[dev]'" in one.log
    hello.write("two")
    wait_for_release(hello, "two")
    # Once, by who has started it.
    assert one.log.count("watchfiles is not installed") == 1


def test_no_reload_restarts_nothing_and_no_debugger_shows_no_traceback(hello: FlaskApp) -> None:
    hello.write(more="app.add_url_rule('/boom', view_func=lambda: 1 / 0, endpoint='boom')")
    one = develop(hello, "--no-reload")
    assert "ZeroDivisionError" in hello.get("/boom")[2]
    os.kill(one.pid, signal.SIGTERM)
    assert one.process.wait(60) == 0
    one = develop(hello, "--no-debugger")
    assert "ZeroDivisionError" not in hello.get("/boom")[2]
    one.wait_for(r'^127\.0\.0\.1 "GET /boom" 500 \d+ ms$')
    hello.write("two")
    wait_for_release(hello, "two")


def test_sources_know_what_was_loaded(tmp_path: Path) -> None:
    """In a process of its own: from `begin` on, it notes what is imported there."""
    (tmp_path / "known.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "made.py").write_text("")
    (tmp_path / "look.py").write_text(
        "import os, known\n"
        "from flask_graceful.sources import Sources\n"
        "def changed(): print(*map(os.path.basename, sources.changed()))\n"
        "def write(name, text=''): open(name, 'w').write(text)\n"
        "sources = Sources(['notes.txt'], ['*/excluded*'])\n"
        "sources.begin()\n"
        # Made and loaded after the first look, and then made anew.
        "write('late.py', 'a = 1')\nimport late\nwrite('late.py', 'a = 22')\n"
        # Nobody has loaded these: the program itself may make them each time.
        "write('other.py')\nwrite('made.py', 'a = 1')\n"
        "sources.complete()\n"
        "changed()\nchanged()\n"
        "os.unlink('known.py'); write('new.py'); write('excluded.py'); changed()\n"
        "os.mkdir('deep'); write('deep/er.py'); write('notes.txt', 'x'); changed()\n"
        "os.mkdir('.venv'); write('.venv/a.py'); write('x.txt'); changed()\n"
        "import json.tool; print(any('json' in path for path in sources._known))\n"
    )
    said = subprocess.run(
        [sys.executable, "look.py"], cwd=tmp_path, text=True, capture_output=True, check=True
    )
    assert said.stdout.splitlines() == [
        "late.py",
        "",
        "known.py new.py",
        "er.py notes.txt",
        "",
        "False",
    ]


def test_sources_say_what_could_be_a_change(tmp_path: Path) -> None:
    sources = Sources([str(tmp_path / "words.txt")])
    (tmp_path / "some").mkdir()
    assert [sources.concerns(str(tmp_path / name)) for name in ("a.py", "some", "db.sqlite")] == [
        True,
        True,
        False,
    ]


# The debugger.


def test_the_debugger_shows_and_evaluates_in_any_thread(hello: FlaskApp) -> None:
    hello.write(more="@app.get('/boom')\ndef boom():\n secret = 6\n return 1 / 0")
    one = develop(hello)
    pin = one.wait_for(r"Debugger PIN: ([\d-]+)")[1]
    code, _, body = local(hello, "/boom")
    page = body.decode()
    assert code == 500 and "ZeroDivisionError" in page
    secret = re.findall(r'SECRET = "(\w+)"', page)[0]
    frame = re.findall(r'id="frame-(\d+)"', page)[-1]
    where = f"/boom?__debugger__=yes&s={secret}"
    answer, cookie = authenticate(hello, f"{where}&cmd=pinauth&pin={pin}")
    assert answer == {"auth": True, "exhausted": False}
    for _ in range(3):
        asked = f"{where}&cmd=secret*7&frm={frame}"
        assert "42" in local(hello, asked, cookie)[2].decode()
    # One process, and one line of the PIN, whoever serves.
    hello.write("two")
    wait_for_release(hello, "two")
    assert one.log.count("Debugger PIN") == 1


@pytest.mark.parametrize("command, run", DOORS, ids=["command", "program"])
@pytest.mark.parametrize("key", ["SERVER_NAME", "GRACEFUL_BIND"])
def test_the_debugger_is_for_the_address_that_is_configured(
    hello: FlaskApp, command: tuple[str, ...], run: str, key: str
) -> None:
    (address,) = free_addresses(1)
    host, port = pair(address)
    hello.write(
        more="app.add_url_rule('/boom', view_func=lambda: 1 / 0, endpoint='boom')\n"
        f"app.config[{key!r}] = {address!r}" + run.replace("port=0, ", "")
    )
    one = hello.begin(*(["--debug"] if command == COMMAND else []), command=command)
    one.wait_for(f" on (?:http://)?{re.escape(address)}")
    pin = one.wait_for(r"Debugger PIN: ([\d-]+)")[1]
    with Client((host, port)) as client:
        page = client.get("/boom", host=address)[2].decode()
        secret = re.findall(r'SECRET = "(\w+)"', page)[0]
        where = f"/boom?__debugger__=yes&s={secret}&cmd=pinauth&pin={pin}"
        code, _, body = client.get(where, host=address)
    assert (code, json.loads(body)["auth"]) == (200, True)


def authenticate(hello: FlaskApp, path: str) -> tuple[dict[str, bool], str]:
    _, fields, body = local(hello, path)
    return json.loads(body), fields["set-cookie"].partition(";")[0]


def local(hello: FlaskApp, path: str, cookie: str = "") -> tuple[int, dict[str, str], bytes]:
    with Client(hello.address) as client:
        lines = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n\r\n"
        return client.send(lines.encode()).response()


@pytest.mark.parametrize("command, run", DOORS, ids=["command", "program"])
def test_what_only_the_serving_process_is_to_do_is_done_there(
    hello: FlaskApp, command: tuple[str, ...], run: str
) -> None:
    """As applications ask under Flask's reloader, whose parent loads them too."""
    more = "if os.environ.get('WERKZEUG_RUN_MAIN') == 'true': print('begins', os.getpid())\n"
    hello.write(more=more + run)
    one = develop(hello, command=command)
    pid = hello.pid()
    assert re.findall(r"^begins (\d+)$", one.log, re.MULTILINE) == [str(pid)]


def test_requests_are_logged(hello: FlaskApp) -> None:
    one = develop(hello)
    hello.get("/page?a=1")
    hello.get("/nothing%1b[31m")
    hello.get(PATH)
    one.wait_for(r'^127\.0\.0\.1 "GET /page\?a=1" 200 \d+ ms$')
    # What opens the status page is not written down.
    hello.get("/page?a=1&token=secret&b=2")
    one.wait_for(r'^127\.0\.0\.1 "GET /page\?a=1&token=\.\.\.&b=2" 200 \d+ ms$')
    one.wait_for(r'^127\.0\.0\.1 "GET /nothing%1b\[31m" 404 \d+ ms$')
    assert PATH not in one.log


def test_what_serves_is_said_whatever_the_application_logs(hello: FlaskApp) -> None:
    """By its own `run` as by the command."""
    hello.write(more="import logging; logging.basicConfig()" + RUN)
    one = develop(hello, command=PROGRAM)
    hello.get("/page")
    one.wait_for(r'"GET /page" 200 \d+ ms$')
    hello.write("two", "import logging; logging.basicConfig()" + RUN)
    one.wait_for(r" \* Detected change in 'hello.py', restarting")


# The terminal.

# Gives a program a terminal of its own, as a shell in a window has it.
ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Terminal:
    """A program on a terminal, what it shows, and somebody who types."""

    def __init__(self, hello: FlaskApp) -> None:
        self._ours, theirs = pty.openpty()
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, *COMMAND, "--debug", "--port", "0"],
            cwd=hello.directory,
            env={**os.environ, **hello.env, "TERM": "dumb"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        until = time.monotonic() + 20
        while len(found := list(re.finditer(pattern, self.shown))) < count:
            assert time.monotonic() < until, self.shown
            if select.select([self._ours], [], [], 0.1)[0]:
                self.shown += self._read()
        return found[count - 1]

    def _read(self) -> str:
        try:
            return os.read(self._ours, 65536).decode("utf-8", "replace")
        except OSError:
            # Nobody has it any more.
            return ""

    def processes(self) -> list[int]:
        """All that are in its session and have not ended."""
        return [pid for pid, _, state in session(self.process.pid) if state != "Z"]

    def close(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.wait(60)
        os.close(self._ours)


@pytest.fixture
def terminal(hello: FlaskApp) -> t.Iterator[Terminal]:
    more = (
        "@app.get('/stop-here')\ndef stop():\n answer = 6 * 7\n breakpoint()\n return str(answer)"
    )
    hello.write(more=more)
    one = Terminal(hello)
    yield one
    one.close()


def test_ctrl_c_ends_everything_and_a_breakpoint_can_be_talked_to(
    hello: FlaskApp, terminal: Terminal
) -> None:
    address = ("127.0.0.1", int(terminal.wait_for(r"Running on http://127\.0\.0\.1:(\d+)")[1]))
    # In a later generation as in the first one.
    (hello.directory / "hello.py").touch()
    terminal.wait_for(r"\* Restarted in ")
    with Client(address) as client:
        client.send(b"GET /stop-here HTTP/1.1\r\nHost: a\r\n\r\n")
        terminal.wait_for(r"\(Pdb\) ")
        terminal.type("answer + 1000\n")
        terminal.wait_for("1042")
        terminal.type("answer = 1\nc\n")
        assert client.response()[2] == b"1"
    # What does not start is shown once.
    (hello.directory / "hello.py").write_text(SYNTAX)
    terminal.wait_for("Reload failed")
    assert terminal.shown.count("SyntaxError") == 1
    terminal.type("\x03")
    assert terminal.process.wait(60) == 0
    wait_until(lambda: not terminal.processes(), "the end of all processes")


# The notice.

FAILURE = Failure("worker 1 exited with status 1", ["<b>Traceback</b>", "oops & 'co'"])


def page(status: str = "200 OK", *more: tuple[str, str], kind: str = "text/html") -> t.Any:
    def app(environ: t.Any, start_response: t.Any) -> t.Any:
        names = ("HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE")
        asked = " ".join(name for name in names if name in environ)
        body = f"<p>{asked}</p>".encode()
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("ETag", '"1"')]
        start_response(status, [*headers, *more])
        return [] if status[:3] in ("204", "304") else [body]

    return app


def noticed(
    running: t.Any, app: t.Any, failure: Failure | None = FAILURE, is_trusted: bool = True
) -> Running:
    notice = Notice(app, lambda environ: is_trusted)
    notice.failure = failure
    one: Running = running(notice)
    return one


def test_a_page_has_the_notice_at_its_end(running: t.Any) -> None:
    headers = 'If-None-Match: "1"\r\nIf-Modified-Since: x\r\n' + BROWSER
    kind = "Text/HTML; charset=utf-8"
    with noticed(running, page(kind=kind)).connect() as client:
        code, fields, body = client.get("/", headers)
        assert client.get("/", BROWSER)[2] == body
    text = body.decode()
    assert (code, "etag" in fields, fields["cache-control"]) == (200, False, "no-store")
    # Nothing that was kept is asked for.
    assert text.startswith("<p></p>")
    assert "&lt;b&gt;Traceback&lt;/b&gt;\noops &amp; &#x27;co&#x27;" in text
    assert "worker 1 exited with status 1" in text and "<script>" in text


def test_the_policy_of_a_page_does_not_keep_the_notice_away(running: t.Any) -> None:
    policy = ("Content-Security-Policy", "default-src 'self'")
    with noticed(running, page("200 OK", policy)).connect() as client:
        assert "content-security-policy" not in client.get("/", BROWSER)[1]
        # What is no page with a notice keeps it.
        assert client.get("/", "Accept: */*\r\n")[1]["content-security-policy"] == policy[1]


def test_a_page_without_length_has_it_too(running: t.Any) -> None:
    def app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        start_response("500 BAD", [("Content-Type", "text/html")])
        yield b"<p>"
        yield b"</p>"

    with noticed(running, app).connect() as client:
        code, _, body = client.get("/", BROWSER)
    assert code == 500 and body.startswith(b"<p></p>\n<div")


def test_a_page_that_was_sent_by_a_form_is_not_sent_again(running: t.Any) -> None:
    with noticed(running, page()).connect() as client:
        head = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n{BROWSER}\r\n"
        body = client.send(head.encode()).response()[2]
    assert b"graceful-failure" in body and b"location.reload" not in body


def test_who_may_not_see_the_reason_learns_that_there_is_one(running: t.Any) -> None:
    with noticed(running, page(), is_trusted=False).connect() as client:
        for path in ("/", PATH):
            text = client.get(path, BROWSER)[2].decode()
            assert "The new code does not start." in text and "The terminal tells why." in text
            assert "Traceback" not in text and "worker 1" not in text


@pytest.mark.parametrize("flags", [("--debug",), ("--reload",)])
def test_other_names_and_who_has_no_debugger_see_no_traceback(
    hello: FlaskApp, flags: tuple[str, ...]
) -> None:
    """A page of another name that leads here is not to read it, nor is everybody without debug."""
    one = hello.run(*flags)
    hello.write("two", SYNTAX)
    one.wait_for("Reload failed")
    with Client(hello.address) as client:
        for host in ["evil.example"] if "--debug" in flags else ["evil.example", "localhost"]:
            ask = partial(client.get, headers=BROWSER, host=host)
            wait_until(lambda ask=ask: ask(PATH)[0] == 200, "the failure")
            for path in (PATH, "/page"):
                text = ask(path)[2].decode()
                assert "The terminal tells why." in text and "SyntaxError" not in text


@pytest.mark.parametrize(
    "app, headers",
    [
        (page(), "Accept: */*\r\n"),
        (page(), "Accept: text/html\r\nSec-Fetch-Dest: empty\r\n"),
        (page(kind="application/json"), BROWSER),
        (page("206 Partial Content"), BROWSER),
        (page("200 OK", ("Content-Encoding", "gzip")), BROWSER),
    ],
    ids=["program", "script", "json", "part", "packed"],
)
def test_everything_else_is_as_it_was(running: t.Any, app: t.Any, headers: str) -> None:
    answers = []
    for failure in (FAILURE, None):
        with noticed(running, app, failure).connect() as client:
            code, fields, body = client.get("/", headers)
            fields.pop("date")
            answers.append((code, fields, body))
    assert answers[0] == answers[1]
    assert "etag" in answers[0][1]


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_without_a_body_gets_none(running: t.Any, status: str) -> None:
    def app(environ: t.Any, start_response: t.Any) -> list[bytes]:
        start_response(status, [("Content-Type", "text/html")])
        return []

    with noticed(running, app).connect() as client:
        assert client.get("/", BROWSER)[0] == int(status[:3])
        assert client.get(PATH)[0] == 200


def test_a_head_without_a_body_gets_none(running: t.Any) -> None:
    with noticed(running, page()).connect() as client:
        client.send(f"HEAD / HTTP/1.1\r\nHost: a\r\n{BROWSER}\r\n".encode())
        assert client.response(head_only=True)[1]["content-length"] == "7"
        assert client.get(PATH)[0] == 200


def test_the_application_is_told_when_its_answer_has_ended(running: t.Any) -> None:
    closed: list[bool] = []

    class Blocks:
        def __iter__(self) -> t.Iterator[bytes]:
            return iter([b"<p></p>"])

        def close(self) -> None:
            closed.append(True)

    def app(environ: t.Any, start_response: t.Any) -> Blocks:
        start_response("200 OK", [("Content-Type", "text/html")])
        return Blocks()

    with noticed(running, app).connect() as client:
        client.get("/", BROWSER)
        client.get("/", BROWSER)
    assert closed[:1] == [True]


def test_the_failure_has_a_page_of_its_own(running: t.Any) -> None:
    with noticed(running, page()).connect() as client:
        code, fields, body = client.get(PATH)
    assert (code, fields["content-type"]) == (200, "text/plain; charset=utf-8")
    assert body.decode() == "worker 1 exited with status 1\n\n<b>Traceback</b>\noops & 'co'\n"
    with noticed(running, page(), None).connect() as client:
        assert client.get(PATH)[0] == 404


# What a restart's failure says.

TELLING = """
def telling(environ, start_response):
    start_response('200 OK', [])
    try:
        environ['flask_graceful.server'].restart(wait=True)
    except RestartError as error:
        return [repr((str(error), error.lines)).encode()]
    return []

server.app = telling
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_restart_that_fails_says_what_was_printed(
    tmp_path: Path, live: t.Callable[..., Live], workers: int
) -> None:
    program = Program(tmp_path, live)
    one = program.start(one_server(TELLING, workers=workers))
    (pid,) = serving_pids(one, 1)
    if workers:
        one.wait_for(GENERATION)
    program.write("say('loads'); sys.exit('not today')")
    with Client(("127.0.0.1", one.port)) as client:
        said = client.get("/")[2].decode()
    what = "worker" if workers else "successor"
    assert re.fullmatch(rf"\('{what} \d+ exited with status 1', \[.*'not today'\]\)", said), said
    # It goes on.
    assert not is_gone(pid)
