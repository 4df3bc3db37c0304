"""The command: real processes. Names carry the rows of the specification."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import typing as t
from pathlib import Path

import flask_graceful
import pytest
from conftest import ROOT, Client, Live
from flask_graceful import Settings, settings

WEB = """
import json, os

def app(environ, start_response):
    body = json.dumps([os.getpid(), NAME]).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

NAME = "app"
title = "a text"

def create_app(name="made", *, debug=False):
    global NAME
    NAME = [name, debug]
    return app

def make_app():
    return app

def configured(config):
    return app

def nothing():
    return None

def start():
    return app

class holder:
    class inner:
        application = staticmethod(app)
"""
FILES = {
    "web.py": WEB,
    "only_application.py": "from web import app as application\n",
    "only_factory.py": "from web import create_app\n",
    "neither.py": "from web import start\nnumber = 1\n",
    "named.py": "from web import start\nfrom wsgiref.simple_server import demo_app\n"
    "def web(environ, start_response):\n    return []\n",
    "object.py": "from web import holder\n"
    "class App:\n    def __call__(self, environ, start_response):\n        return []\n"
    "web = App()\n",
    "two.py": "def one(environ, start_response):\n    return []\ntwo = one\n",
    "near.py": "apps = []\n",
    "empty.py": "",
    "broken.py": "def app(environ, start_response):\n    return [\n",
    "dependency.py": "import no_such_dependency\n",
    "itself/__init__.py": "import itself.part\n",
    "fails.py": "1 / 0\n",
    "failing_factory.py": "def create_app():\n    raise LookupError('no configuration')\n",
    "silenced.py": "import logging.config\n"
    "logging.config.dictConfig({'version': 1, 'root': {'level': 'ERROR', 'handlers': ['c']},\n"
    "    'handlers': {'c': {'class': 'logging.StreamHandler'}}})\n"
    "from web import app\n",
    "package/__init__.py": "",
    "package/wsgi.py": "from web import app\n",
    "garbage.pem": "garbage\n",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with FILES."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def command(place: Path, live: t.Callable[..., Live]) -> t.Callable[..., Live]:
    """Start the command in FILES' directory."""
    return lambda *arguments: live("-m", "flask_graceful", *arguments, cwd=place)


def run(place: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command that ends by itself: exit status, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "flask_graceful", *arguments],
        cwd=place, capture_output=True, text=True, timeout=60,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def ask(address: t.Any) -> list[t.Any]:
    with Client(address) as client:
        code, _, body = client.get()
        assert code == 200
        answer: list[t.Any] = json.loads(body)
        return answer


def test_E8_the_command_serves_restarts_and_stops(
    command: t.Callable[..., Live], place: Path
) -> None:
    one = command("--bind", ":0", "--idle-grace", "off", "web:app")
    port = one.port
    one.wait_for(rf"^{one.pid} Serving HTTP on \[::\]:{port}$")
    assert ask(("127.0.0.1", port)) == [one.pid, "app"]
    (place / "web.py").write_text(WEB.replace('NAME = "app"', 'NAME = "new code"'))
    os.kill(one.pid, signal.SIGHUP)
    assert one.process.wait(60) == 0
    new = int(one.wait_for(rf"^(\d+) Serving HTTP on \[::\]:{port}$", 2)[1])
    assert ask(("127.0.0.1", port)) == [new, "new code"] != [one.pid, "new code"]
    (place / "web.py").write_text("def")
    os.kill(new, signal.SIGHUP)
    one.wait_for("Restart failed: successor .* exited with status 1; this process goes on")
    assert ask(("127.0.0.1", port)) == [new, "new code"]
    os.kill(new, signal.SIGTERM)
    one.wait_for(rf"^{new} Serve\(\) returning")


def test_several_addresses(command: t.Callable[..., Live], place: Path) -> None:
    one = command("--bind", ":0", "--bind=127.0.0.1:0", "--bind", "unix:s", "web")
    second = int(one.wait_for(rf"^{one.pid} Serving HTTP on 127\.0\.0\.1:(\d+)$")[1])
    one.wait_for(rf"^{one.pid} Serving HTTP on unix:s$")
    for address in (("127.0.0.1", one.port), ("127.0.0.1", second), str(place / "s")):
        assert ask(address) == [one.pid, "app"]
    os.kill(one.pid, signal.SIGINT)
    assert one.process.wait(60) == 0
    assert not (place / "s").exists()


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("web:app", "app"),
        ("web", "app"),
        ("only_application", "app"),
        ("package.wsgi:app", "app"),
        ("web:holder.inner.application", "app"),
        ("web:create_app()", ["made", False]),
        ("web:create_app('x', debug=True)", ["x", True]),
        ('web:create_app(name={"a": [1, None]})', [{"a": [1, None]}, False]),
        ("silenced", "app"),
    ],
)
def test_ways_to_name_an_application(
    command: t.Callable[..., Live], target: str, name: t.Any
) -> None:
    one = command("--bind", ":0", "--idle-grace=0", target)
    assert ask(("127.0.0.1", one.port)) == [one.pid, name]
    os.kill(one.pid, signal.SIGTERM)
    assert one.process.wait(60) == 0


WRONG = [
    # The application.
    ("", "the following arguments are required: module:app"),
    ("wob:app", "no module named 'wob' in {place} or on Python's path; did you mean 'web'?"),
    ("package.wsgy", "'package' has no module 'wsgy'; did you mean 'wsgi'?"),
    ("web.app", "no module named 'web.app': 'web' is no package; did you mean 'web:app'?"),
    ("web.py", "'web.py' is a file; expected the name of a module, such as 'web'"),
    ("package/wsgi.py:app", "'package/wsgi.py' is a file; expected the name of a module, such as 'package.wsgi'"),  # noqa: E501
    ("../web.py", "'../web.py' is a file; expected the name of a module, below the current directory"),  # noqa: E501
    ("we-b:app", "'we-b' is no name of a module; expected module:app, module:create_app() or module"),  # noqa: E501
    ("web:", "'web:': expected module:app, module:create_app() or module"),
    (":app", "':app': expected module:app, module:create_app() or module"),
    ("web:ap", "module 'web' has no attribute 'ap'; did you mean 'app'?"),
    ("web:holder.inner.aplication", "'inner' of 'holder' of module 'web' has no attribute 'aplication'; did you mean 'application'?"),  # noqa: E501
    ("web:title", "web:title is no WSGI application but str 'a text'"),
    ("web:title()", "web:title can't be called; it is str 'a text'"),
    ("web:nothing()", "web:nothing() is no WSGI application but NoneType None"),
    ("web:create_app", "web:create_app is a function that makes the application; add (): 'web:create_app()'"),  # noqa: E501
    ("web:make_app", "web:make_app is a function that makes the application; add (): 'web:make_app()'"),  # noqa: E501
    ("web:start", "web:start is a function that makes the application; add (): 'web:start()'"),
    ("web:configured", "web:configured(config) is no WSGI application, which takes environ and start_response; if it makes the application, give it its arguments: 'web:configured(...)'"),  # noqa: E501
    ("web:configured()", "web:configured(config) can't be called so: missing a required argument: 'config'"),  # noqa: E501
    ("web:app()", "web:app(environ, start_response) can't be called so: missing a required argument: 'environ'; did you mean 'web:app'?"),  # noqa: E501
    ("web:create_app(x)", "'web:create_app(x)': arguments must be literals, such as 'x', 1, True, None or ['a']"),  # noqa: E501
    ("web:create_app(**{})", "'web:create_app(**{{}})': arguments must be literals, such as 'x', 1, True, None or ['a']"),  # noqa: E501
    ("web:app + app", "'web:app + app': 'app + app' is no name; expected module:app, module:create_app() or module"),  # noqa: E501
    ("web:ap p", "'web:ap p': 'ap p' is no name; expected module:app, module:create_app() or module"),  # noqa: E501
    ("only_factory", "module 'only_factory' has neither 'app' nor 'application'; did you mean 'only_factory:create_app()'?"),  # noqa: E501
    ("neither", "module 'neither' has neither 'app' nor 'application'; found: start, number"),
    ("named", "module 'named' has neither 'app' nor 'application'; did you mean 'named:web'?"),
    ("object", "module 'object' has neither 'app' nor 'application'; did you mean 'object:web'?"),
    ("two", "module 'two' has neither 'app' nor 'application'; found: one, two"),
    ("near", "module 'near' has neither 'app' nor 'application'; did you mean 'near:apps'?"),
    ("empty", "module 'empty' has neither 'app' nor 'application'"),
    # The flags.
    ("web|web:app", "one application can be served; 'web:app' is one more"),
    ("--thread|4|web", "unknown flag '--thread'; did you mean '--threads'?"),
    ("--zzz=4|web", "unknown flag '--zzz'; see --help"),
    ("--host|0.0.0.0|web", "unknown flag '--host'; where to listen is said by --bind HOST:PORT"),
    ("web|--port=80", "unknown flag '--port'; where to listen is said by --bind HOST:PORT"),
    ("--threads|many|web", "argument --threads: expected a whole number, got 'many'"),
    ("--threads|0|web", "argument --threads: expected 1 to 10000, got 0"),
    ("--read-timeout|1m|web", "argument --read-timeout: expected a number of seconds, got '1m'"),
    ("--read-timeout|nan|web", "argument --read-timeout: expected a number of seconds, got nan"),
    ("--max-header-bytes|1.5|web", "argument --max-header-bytes: expected a whole number of bytes, got '1.5'"),  # noqa: E501
    ("--listen-limit=-1|web", "argument --listen-limit: expected 0 to 2147483648, got -1"),
    ("--old-generations|0|web", "argument --old-generations: expected 1 to 100, got 0"),
    ("--shutdown-delay|soon|web", "argument --shutdown-delay: expected a number of seconds, got 'soon'"),  # noqa: E501
    ("--tcp-keep-alive|3m|web", "argument --tcp-keep-alive: expected a number of seconds, got '3m'"),  # noqa: E501
    ("--request-timeout|9|--request-timeout-hard|2|web", "request_timeout_hard: expected at least request_timeout (9), got 2"),  # noqa: E501
    ("--pidfile|a|web", "unknown flag '--pidfile'; did you mean '--pid-file'?"),
    ("--bind|8000|web", "argument --bind: address '8000': expected host:port, :port, [v6]:port, unix:/path or systemd:NAME"),  # noqa: E501
    ("--bind|:1|--bind|:1|web", "argument --bind: address ':1' is given 2 times"),
    ("--certfile|a|web", "--certfile is given without --keyfile; HTTPS needs both"),
    ("--keyfile|a|web", "--keyfile is given without --certfile; HTTPS needs both"),
    ("--certfile|nowhere|--keyfile|a|web", "--certfile 'nowhere': No such file or directory"),
    ("--certfile|garbage.pem|--keyfile|nowhere|web", "--keyfile 'nowhere': No such file or directory"),  # noqa: E501
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "line"), WRONG)
def test_wrong_input_gets_one_line_and_status_2(place: Path, arguments: str, line: str) -> None:
    status, out, err = run(place, *filter(None, arguments.split("|")))
    line = line.format(place=place.resolve())
    assert (status, out, err) == (2, "", f"flask_graceful: {line}\n")


def test_the_version_is_that_of_the_package(place: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.*)"$', project, re.MULTILINE)
    assert run(place, "--version") == (0, f"flask-graceful {version}\n", "")
    assert flask_graceful.__version__ == version


def test_a_file_that_is_no_certificate_is_named(place: Path) -> None:
    flags = ("--certfile", "garbage.pem", "--keyfile", "garbage.pem")
    status, _, err = run(place, *flags, "web")
    assert status == 2
    begin = "flask_graceful: --certfile 'garbage.pem', --keyfile 'garbage.pem': not a certificate"
    assert err.startswith(begin)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "target", "error"),
    [
        ("broken.py", "broken", "SyntaxError: "),
        (
            "dependency.py",
            "dependency",
            "ModuleNotFoundError: No module named 'no_such_dependency'",
        ),
        ("itself/__init__.py", "itself.part", "ModuleNotFoundError: No module named 'itself.part'"),
        ("fails.py", "fails", "ZeroDivisionError: "),
        ("failing_factory.py", "failing_factory:create_app()", "LookupError: no configuration"),
    ],
)
def test_an_error_of_the_users_own_code_keeps_its_traceback(
    place: Path, file: str, target: str, error: str
) -> None:
    status, _, err = run(place, target)
    assert status == 1
    lines = err.splitlines()
    # A file that can't be read has no line that runs.
    if not error.startswith("SyntaxError"):
        assert lines.pop(0) == "Traceback (most recent call last):"
    # The way there says nothing.
    assert re.match(rf'  File ".*{re.escape(file)}", line ', lines[0])
    assert err.splitlines()[-1].startswith(error)


def test_L7_an_address_in_use_is_one_line_and_status_1(place: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        status, _, err = run(place, "--bind", "unix:s", "--bind", address, "web")
    assert status == 1
    begin = f"flask_graceful: listen tcp {address}: bind: address already in use"
    assert err.startswith(begin)
    assert err.count("\n") == 1
    assert not (place / "s").exists()


def test_a_flag_reaches_its_setting(command: t.Callable[..., Live]) -> None:
    one = command("--bind", ":0", "--read-header-timeout=0.2", "web")
    with Client(("127.0.0.1", one.port)) as client:
        client.send(b"GET / HTTP/1.1\r\n")
        assert client.is_closed()


def test_help_and_documents_show_the_table_of_settings(place: Path) -> None:
    status, out, _ = run(place, "--help")
    assert status == 0
    words = " ".join(out.split())
    defaults = Settings()
    for row in settings.rows():
        assert f" {row.flag} " in words
        assert f"{row.help} (" in words
        assert f"default: {row.default})" in words
        assert settings.from_text(row.name, row.default) == getattr(defaults, row.name)
