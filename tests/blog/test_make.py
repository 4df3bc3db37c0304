"""make sets up an environment once, and again when it is broken or was moved."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.blog.conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Notes how it is called. It makes environments that hold a copy of it, unless a file says how to
# fail; half of one is there by then.
PYTHON = """\
#!/bin/sh
echo "$*" >>"$CALLS"
case "$1 $2" in
"-m venv")
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    test ! -e fails || exit 3
    test ! -e hangs || { rm hangs; exec sleep 60; }
    ;;
esac
"""
VENV = "-m venv .venv"
INSTALL = "-m pip --quiet --disable-pip-version-check install -r requirements.txt"


class Clone:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        for name in ("Makefile", "requirements.txt", "requirements-dev.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, directory)
        self.python = directory.parent / "python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        self._calls = directory.parent / "calls"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.Popen(
            ["make", f"PYTHON={self.python}", *arguments],
            cwd=self.directory,
            env=kept | {"CALLS": str(self._calls)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def make(self, *arguments: str, status: int = 0) -> list[str]:
        """How Python was called, the questions of the Makefile aside."""
        self._calls.write_text("")
        process = self.start(*arguments)
        output = process.communicate(timeout=30)[0]
        assert process.returncode == status, output
        asked = ("-c ", "-m pip --version")
        return [line for line in self._calls.read_text().splitlines() if line not in asked]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "it's a clone")


def test_is_set_up_once(clone: Clone) -> None:
    assert clone.make("run") == [VENV, INSTALL, "app.py"]
    assert clone.make("run") == ["app.py"]
    development = INSTALL.replace("requirements", "requirements-dev")
    assert clone.make("test", "ARGS=-k x") == [development, "-m pytest -k x"]
    os.utime(clone.directory / "requirements.txt", (2**32, 2**32))
    assert clone.make("run") == [INSTALL, "app.py"]


def test_elsewhere(clone: Clone, tmp_path: Path) -> None:
    venv = f"VENV={tmp_path / 'venv'}"
    assert clone.make("run", venv) == [f"-m venv {tmp_path / 'venv'}", INSTALL, "app.py"]
    assert clone.make("run", venv) == ["app.py"]


def test_creation_fails(clone: Clone) -> None:
    """As on Debian, where venv is a package of its own."""
    (clone.directory / "fails").touch()
    assert clone.make("run", status=2) == [VENV]
    assert not (clone.directory / ".venv").exists()
    (clone.directory / "fails").unlink()
    assert clone.make("run") == [VENV, INSTALL, "app.py"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_creation_is_interrupted(clone: Clone, signum: int) -> None:
    hangs = clone.directory / "hangs"
    hangs.touch()
    with clone.start("run") as process:
        deadline = time.monotonic() + 20
        while hangs.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signum)
        assert process.wait(20) != 0
    assert clone.make("run") == [VENV, INSTALL, "app.py"]
    assert clone.make("run") == ["app.py"]


def test_clone_is_renamed(clone: Clone) -> None:
    clone.make("run")
    clone.directory = clone.directory.rename(clone.directory.with_name("renamed"))
    assert clone.make("run") == [VENV, INSTALL, "app.py"]
    assert clone.make("run") == ["app.py"]


def test_python_is_gone(clone: Clone) -> None:
    clone.make("run")
    python = clone.directory / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/usr/bin/python1.0")
    assert clone.make("run") == [VENV, INSTALL, "app.py"]


def test_environment_of_ones_own_is_kept(clone: Clone) -> None:
    binaries = clone.directory / ".venv/bin"
    binaries.mkdir(parents=True)
    shutil.copy(clone.python, binaries)
    assert clone.make("run") == [INSTALL, "app.py"]
    assert clone.make("run") == ["app.py"]


def test_broken_environment_of_before(clone: Clone) -> None:
    """One that has Python, and no pip."""
    binaries = clone.directory / ".venv/bin"
    binaries.mkdir(parents=True)
    shutil.copy(shutil.which("false") or "", binaries / "python")
    assert clone.make("run") == [VENV, INSTALL, "app.py"]
