"""A Flask application in a file, served by `flask graceful run`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Live, replace

# It answers as `load` wants it, with what it was asked; and tells which settings it has.
APP = """
import os, time
from flask import Flask, request

app = Flask(__name__)

@app.route("/", methods=["GET", "POST"])
def index():
    said = request.get_data(as_text=True) or request.query_string.decode()
    return f"{os.getpid()} {said}"

@app.get("/release")
def release():
    return "RELEASE"

@app.get("/page")
def page():
    return "<!doctype html><title>RELEASE</title>"

@app.get("/held")
def held():
    print("held", os.getpid(), flush=True)
    while not os.path.exists("go"):
        time.sleep(0.01)
    return "RELEASE"

@app.get("/setting/<name>")
def setting(name):
    return str(getattr(request.environ["flask_graceful.server"].settings, name))

MORE
"""
COMMAND = ("-m", "flask", "--app", "hello", "graceful", "run")


class FlaskApp:
    """The file `hello.py`, its server once it runs, and commands that find it."""

    one: Live

    def __init__(self, directory: Path, live: t.Callable[..., Live]) -> None:
        self.directory = directory
        self._live = live
        self.runtime = directory / "run"
        self.runtime.mkdir()
        self.env = {
            "RUNTIME_DIRECTORY": str(self.runtime),
            # A change is to be seen at once, and not kept away by what was compiled before.
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def write(self, release: str = "one", more: str = "", name: str = "hello.py") -> None:
        text = APP.replace("RELEASE", release).replace("MORE", more)
        self.replace(name, text)

    def replace(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        replace(path, text)

    def run(self, *flags: str, command: t.Sequence[str] = COMMAND, **env: str) -> Live:
        """Start it on a free port, unless the flags name another address, and wait for it."""
        where = () if {"--port", "--host", "-p", "-h"} & {*flags} else ("--port", "0")
        self.one = self.begin(*where, *flags, command=command, **env)
        self.one.wait_for(r"(?:Serving HTTPS?|Running) on (\S+)")
        return self.one

    def begin(self, *flags: str, command: t.Sequence[str] = COMMAND, **env: str) -> Live:
        return self._live(*command, *flags, cwd=self.directory, env={**self.env, **env})

    @property
    def address(self) -> tuple[str, int]:
        found = self.one.wait_for(r" on (?:https?://)?127\.0\.0\.1:(\d+)")
        return "127.0.0.1", int(found[1])

    def get(self, path: str, headers: str = "") -> tuple[int, dict[str, str], str]:
        with Client(self.address) as client:
            # As a browser on this machine: others are told less of what fails.
            code, fields, body = client.get(path, headers, host="localhost")
        return code, fields, body.decode()

    def says(self, path: str) -> str:
        code, _, text = self.get(path)
        assert code == 200, text
        return text

    def pid(self) -> int:
        """Who answers."""
        return int(self.says("/").split()[0])

    def flask(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """What a `flask` command says, and how it ends."""
        return subprocess.run(
            [sys.executable, "-m", "flask", *words],
            cwd=self.directory,
            env={**os.environ, **self.env, **env},
            text=True,
            capture_output=True,
            timeout=60,
        )


def errors(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """What click complains of, below its usage."""
    return re.findall(r"^Error: (.*)", ended.stderr, re.MULTILINE)


@pytest.fixture
def hello(tmp_path: Path, live: t.Callable[..., Live]) -> FlaskApp:
    made = FlaskApp(tmp_path, live)
    made.write()
    return made
