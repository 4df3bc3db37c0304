"""Virtual environments that tests make: empty ones, and what is put into them.

The pip that installs is that of the Python that runs the tests, so a new environment has nothing in
it at all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PIP = ["--quiet", "--disable-pip-version-check"]


class Environment:
    """A virtual environment without pip.

    :param python: the Python that it is one of.
    """

    def __init__(self, directory: Path, python: str = sys.executable) -> None:
        self.directory = directory
        self.python = str(directory / "bin" / "python")
        run(python, "-m", "venv", "--without-pip", str(directory))

    def pip(self, *arguments: str) -> str:
        return run(sys.executable, "-m", "pip", "--python", self.python, *arguments)

    def install(self, *requirements: str) -> None:
        self.pip("install", *PIP, *requirements)

    def version(self, distribution: str) -> str:
        code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
        return run(self.python, "-c", code, cwd=self.directory).strip()

    def files(self) -> set[str]:
        """Everything that is in it, by its path."""
        return {str(path.relative_to(self.directory)) for path in self.directory.rglob("*")}


def run(*command: str, cwd: Path | None = None, seconds: float = 300) -> str:
    """What the command prints, on both its outputs.

    :raises AssertionError: it fails, and prints this.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
    return done.stdout
