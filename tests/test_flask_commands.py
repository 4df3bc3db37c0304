"""`flask graceful`: real commands, their servers, and their restarts."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from conftest import Client, Live
from flask_graceful import commands, settings
from flaskapp import COMMAND, FlaskApp, errors
from flaskapp import hello as hello
from program import is_gone

SCRIPT = str(Path(sys.executable).with_name("flask"))
NAMED = {"FLASK_APP": "hello"}
PORT_0 = {**NAMED, "FLASK_RUN_PORT": "9", "FLASK_GRACEFUL_RUN_PORT": "0"}


def restart(one: Live) -> None:
    """The next process serves, and the old one has gone."""
    old = int(one.wait_for(r"^(\d+) Serving HTTPS? on")[1])
    os.kill(old, signal.SIGHUP)
    one.wait_for(r"Graceful handoff")
    one.wait_for(rf"^{old} Serve\(\) returning")


@pytest.mark.parametrize(
    "command, env",
    [
        (COMMAND, {"FLASK_RUN_PORT": "0"}),
        ((SCRIPT, *COMMAND[2:]), {"FLASK_RUN_PORT": "0"}),
        ((SCRIPT, "graceful", "run"), PORT_0),
        (("-m", "flask", "-A", "./hello.py:app", "graceful", "run", "-p", "0"), {}),
        (("-m", "flask", "-A", "hello:create('two')", "graceful", "run", "--port=0"), {}),
    ],
    ids=["module", "script", "variables", "file", "factory"],
)
def test_a_restart_is_the_same_command_once_more(
    hello: FlaskApp, command: tuple[str, ...], env: dict[str, str]
) -> None:
    hello.write("one", "def create(name): return app")
    hello.one = one = hello.begin(command=command, **env)
    with Client(hello.address) as client:
        assert client.get("/release")[2] == b"one"
        hello.write("two", "def create(name): return app")
        restart(one)
        assert client.get("/release")[2] == b"two"


def test_a_program_called_by_its_name_is_found_again(hello: FlaskApp) -> None:
    """By `PATH`, as a shell does it, and not by the interpreter."""
    program = "import os, sys; os.execvp('flask', ['flask', *sys.argv[1:]])"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ("-c", program, *COMMAND[2:])
    hello.one = one = hello.begin("-p", "0", command=words, PATH=path)
    assert hello.says("/release") == "one"
    hello.write("two")
    restart(one)
    assert hello.says("/release") == "two"


def test_the_way_to_the_app_may_be_in_a_file(hello: FlaskApp) -> None:
    pytest.importorskip("dotenv")
    (hello.directory / ".flaskenv").write_text("FLASK_APP=hello\nFLASK_RUN_PORT=0\n")
    hello.one = one = hello.begin(command=("-m", "flask", "graceful", "run"))
    restart(one)
    assert hello.says("/release") == "one"


@pytest.mark.parametrize("flags", [(), ("--workers", "1"), ("--debug",)], ids=str)
def test_where_it_serves_is_said_whatever_hooks_there_are(
    hello: FlaskApp, flags: tuple[str, ...]
) -> None:
    more = "import flask_graceful\nflask_graceful.Graceful(app).before_begin(lambda addr: None)"
    hello.write(more=more)
    # Waits for it.
    hello.run(*flags)
    assert hello.says("/release") == "one"


def test_a_stop_is_status_0(hello: FlaskApp) -> None:
    one = hello.run()
    os.kill(one.pid, signal.SIGTERM)
    assert one.process.wait(60) == 0
    assert "Traceback" not in one.log


def test_broken_code_changes_nothing(hello: FlaskApp) -> None:
    one = hello.run()
    hello.write("two", "import nowhere")
    os.kill(one.pid, signal.SIGHUP)
    one.wait_for(r"Restart failed: successor \d+ exited with status 1")
    one.wait_for(r"^\| ModuleNotFoundError: No module named 'nowhere'")
    assert hello.says("/release") == "one"


# Settings.


def test_settings_are_flags_variables_and_configuration(hello: FlaskApp) -> None:
    """Which come before each other in this order."""
    hello.write(
        more="app.config.update(GRACEFUL_THREADS=5, GRACEFUL_READ_TIMEOUT='7',\n"
        "GRACEFUL_WRITE_TIMEOUT=None, GRACEFUL_IDLE_TIMEOUT=9.5, GRACEFUL_HAMMER_TIME=8)"
    )
    env = {"FLASK_GRACEFUL_RUN_THREADS": "6", "FLASK_GRACEFUL_RUN_READ_TIMEOUT": "8"}
    hello.run("--threads", "4", "--shutdown-delay", "off", "--hammer-time", "off", **env)
    names = "threads read_timeout write_timeout idle_timeout hammer_time rolling".split()
    found = [hello.says(f"/setting/{name}") for name in names]
    assert found == ["4", "8.0", "0.0", "9.5", "0.0", "False"]


def test_every_setting_is_a_flag_as_are_those_of_flask_run(hello: FlaskApp) -> None:
    said = hello.flask("graceful", "run", "--help").stdout
    for row in settings.rows():
        assert re.search(rf"^  {row.flag}\b", said, re.MULTILINE), row.flag
    known = hello.flask("run", "--help").stdout
    for flag in re.findall(r"^  (?:-\w, )?(--[\w-]+)", known, re.MULTILINE):
        assert flag in said


def test_workers(hello: FlaskApp) -> None:
    hello.write(more="app.config['GRACEFUL_WORKERS'] = '2'")
    one = hello.run("--host", "127.0.0.1", "-p", "0", "--rolling")
    serving = r"Generation \d serves with workers \d+ \d+"
    one.wait_for(serving)
    assert (hello.says("/setting/workers"), hello.says("/setting/rolling")) == ("2", "True")
    hello.write("two", more="app.config['GRACEFUL_WORKERS'] = '2'")
    os.kill(one.pid, signal.SIGHUP)
    one.wait_for(serving, 2)
    assert hello.says("/release") == "two"


def test_without_threads_one_request_runs_at_a_time(hello: FlaskApp) -> None:
    hello.write(more="app.config['GRACEFUL_THREADS'] = 7")
    hello.run("--without-threads")
    assert hello.says("/setting/threads") == "1"


def test_a_unix_socket_is_spelt_as_for_flask_run(hello: FlaskApp) -> None:
    hello.run("--host", "unix://hello.sock")
    with Client(str(hello.directory / "hello.sock")) as client:
        assert client.get("/release")[2] == b"one"


# HTTPS.


@pytest.mark.parametrize("kind", ["files", "adhoc", "context"])
def test_https(hello: FlaskApp, kind: str) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(hello.directory / "both.pem"))
    hello.replace(
        "mine.py",
        "import ssl\ncontext = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n"
        "context.load_cert_chain('both.pem')\n",
    )
    flags = {
        "files": ("--cert", "both.pem", "--key", "both.pem"),
        "adhoc": ("--cert", "adhoc"),
        "context": ("--cert", "mine.context"),
    }
    one = hello.run(*flags[kind])
    context = ssl.create_default_context()
    if kind == "adhoc":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        authority.configure_trust(context)

    def says() -> bytes:
        with Client(hello.address) as client:
            client.sock = context.wrap_socket(client.sock, server_hostname="localhost")
            return client.get("/release")[2]

    assert says() == b"one"
    hello.write("two")
    restart(one)
    assert says() == b"two"


# Errors.


def test_no_app_is_said_as_flask_run_says_it(hello: FlaskApp) -> None:
    hello.write(more="import nowhere")
    for words in (("--app", "hello"), ()):
        ours = hello.flask(*words, "graceful", "run")
        theirs = hello.flask(*words, "run")
        assert (ours.returncode, errors(ours)) == (2, errors(theirs)), ours
        assert len(errors(ours)) == 1


def test_code_that_raises_keeps_its_traceback(hello: FlaskApp) -> None:
    hello.write(more="1 / 0")
    ended = hello.flask("--app", "hello", "graceful", "run")
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (
        1,
        "ZeroDivisionError: division by zero",
    )
    # The way there says nothing.
    first = f'  File "{hello.directory / "hello.py"}", line '
    assert ended.stderr.splitlines()[1].startswith(first), ended.stderr


@pytest.mark.parametrize("flags", [(), ("--workers", "2"), ("--debug",)], ids=str)
def test_an_address_in_use_is_one_line(hello: FlaskApp, flags: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        ended = hello.flask("--app", "hello", "graceful", "run", "-p", str(port), *flags)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert line.startswith(f"Error: listen tcp 127.0.0.1:{port}: bind: address already in use"), (
        line
    )


@pytest.mark.parametrize("flags", [(), ("--workers", "1")], ids=str)
def test_the_holder_of_an_address_is_named_by_what_it_runs(
    hello: FlaskApp, flags: tuple[str, ...]
) -> None:
    """And not by the way to an interpreter, nor by the module of a supervisor."""
    one = hello.run(*flags)
    ended = hello.flask("--app", "hello", "graceful", "run", "-p", str(hello.address[1]))
    words = " ".join([Path(sys.executable).name, *COMMAND, "--port", "0", *flags])
    assert ended.stderr.endswith(f" (held by pid {one.pid}: {words})\n"), ended.stderr


@pytest.mark.parametrize(
    "flags, more, error",
    [
        (
            ("--threads", "x"),
            "",
            "Invalid value for '--threads': expected a whole number, got 'x'",
        ),
        (
            ("--workers", "999"),
            "",
            f"Invalid value for '--workers': expected 0 to {settings.MOST_WORKERS}, got 999",
        ),
        (
            ("--debug", "--workers", "2"),
            "",
            "--workers 2: the debugger and the restart on changes need a single worker; leave out "
            "--workers, or --debug",
        ),
        (
            ("--request-timeout", "9", "--request-timeout-hard", "8"),
            "",
            "request_timeout_hard: expected at least request_timeout (9), got 8",
        ),
        (
            (),
            "app.config['GRACEFUL_THREADS'] = 'many'",
            "GRACEFUL_THREADS in app.config: expected a whole number, got 'many'",
        ),
        (
            ("--key", "hello.py"),
            "",
            "Invalid value for '--key': \"--cert\" must also be specified.",
        ),
        (
            (),
            "app.config['GRACEFUL_THREDS'] = 3\n"
            "import flask_graceful\nflask_graceful.Graceful(app)",
            "unknown key 'GRACEFUL_THREDS' in app.config; did you mean 'GRACEFUL_THREADS'?",
        ),
        (
            ("--port", "99999"),
            "",
            "Invalid value for '--port' / '-p': 99999 is not in the range 0<=x<=65535.",
        ),
        (
            ("--bind", ":8000"),
            "",
            "--bind is a flag of `python -m flask_graceful`; --host and --port say where, or "
            "GRACEFUL_BIND in app.config, which may be several addresses",
        ),
        (("--host", "a:b:c"), "", None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_one_line(
    hello: FlaskApp, flags: tuple[str, ...], more: str, error: str | None
) -> None:
    hello.write(more=more)
    ended = hello.flask("--app", "hello", "graceful", "run", "-p", "0", *flags)
    assert ended.returncode in (1, 2)
    assert len(errors(ended)) == 1 and "Traceback" not in ended.stderr, ended.stderr
    if error is not None:
        assert errors(ended) == [error]


def test_a_variable_that_is_misspelt_is_named(hello: FlaskApp) -> None:
    ended = hello.flask("--app", "hello", "graceful", "run", FLASK_GRACEFUL_RUN_THREDS="4")
    assert ended.returncode == 2
    assert errors(ended) == [
        "unknown variable 'FLASK_GRACEFUL_RUN_THREDS'; did you mean 'FLASK_GRACEFUL_RUN_THREADS'?"
    ]


# The other commands.


def test_commands_need_no_app(hello: FlaskApp) -> None:
    one = hello.run()
    hello.write("two", "1 / 0")
    ended = hello.flask("--app", "hello", "graceful", "status")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"{one.pid} running, generation 1" in ended.stdout
    ended = hello.flask("--app", "hello", "graceful", "requests", "--pid", str(one.pid))
    assert ended.stdout == "no request is running\n"
    # The new code is broken, which is for the server to find out.
    ended = hello.flask("--app", "hello", "graceful", "reload")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "| ZeroDivisionError: division by zero"
    hello.write("two")
    ended = hello.flask("graceful", "reload")
    assert ended.returncode == 0 and ended.stdout.startswith(f"reloaded: {one.pid} -> ")
    assert hello.says("/release") == "two"
    ended = hello.flask("graceful", "stop", "--timeout", "5")
    assert (ended.returncode, ended.stdout) == (0, "stopped\n")
    assert is_gone(one.pid)


@pytest.mark.parametrize("name", commands.NAMES)
def test_commands_have_their_own_help(hello: FlaskApp, name: str) -> None:
    ended = hello.flask("graceful", name, "--help")
    assert ended.stdout.startswith(f"usage: flask graceful {name} [-h] [--pid N | --socket PATH]")
    ended = hello.flask("graceful", name, "--nonsense")
    assert ended.returncode == 2 and "--nonsense" in ended.stderr


def test_no_server_is_one_line(hello: FlaskApp) -> None:
    ended = hello.flask("graceful", "status")
    assert ended.returncode == 1
    assert re.fullmatch(r"flask_graceful: no server is running;.*\n", ended.stderr)


def test_what_serves_is_imported_only_to_serve() -> None:
    """Each `flask` command imports ours."""
    text = "import sys, flask_graceful.flask_commands as f; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", text], text=True, capture_output=True, check=True)
    modules = said.stdout.split()
    assert "flask_graceful.flask_commands" in modules
    for name in ("restart", "server", "http11", "development", "sources"):
        assert f"flask_graceful.{name}" not in modules
