"""The package as its users get it: built, installed into an empty environment, used, taken out.

What is built and installed comes from the package index. Without one these tests are skipped, and
fail when `REQUIRE_PACKAGE` is 1.
"""

from __future__ import annotations

import email
import email.message
import os
import re
import shutil
import signal
import sys
import tarfile
import typing as t
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, Client, Live, wait_until
from environment import PIP, Environment, run
from load import Load
from program import is_gone

PACKAGE = ROOT / "pkg" / "flask_graceful"
# What an index wants to be built from; nothing else is there.
SOURCES = ["pyproject.toml", "MANIFEST.in", "LICENSE", "CHANGES.md", "SECURITY.md"]

# The application of Flask's quickstart, as it stands there.
QUICKSTART = """\
from flask import Flask

app = Flask(__name__)

@app.route("/")
def hello_world():
    return "<p>Hello, World!</p>"
"""
SERVING = r"^(?P<pid>\d+) Serving HTTP on \S+:(?P<port>\d+)$"


class Way(t.NamedTuple):
    """How it is served: the line that is added to it, and what the Python that serves it is told.

    :param says: what each generation prints when it serves.
    """

    line: str
    arguments: list[str]
    says: str


WAYS = {
    "extension": Way(
        "\nfrom flask_graceful import Graceful; Graceful(app).run(app, port=0)\n",
        ["hello.py"],
        r"on http://\S+:(?P<port>\d+) \(kill -1 (?P<pid>\d+)",
    ),
    "command": Way("", ["-m", "flask_graceful", "--bind", ":0", "hello:app"], SERVING),
    "program": Way(
        "\nimport flask_graceful; flask_graceful.run(':0', 10, app)\n", ["hello.py"], SERVING
    ),
}


class Dist(t.NamedTuple):
    wheel: Path
    sdist: Path


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Is there a package index?"""
    folder = tmp_path_factory.mktemp("index")
    command = [sys.executable, "-m", "pip", "download", *PIP, "--no-deps", "--dest", str(folder)]
    try:
        run(*command, "httptools")
    except AssertionError as error:
        if os.environ.get("REQUIRE_PACKAGE") == "1":
            pytest.fail(f"REQUIRE_PACKAGE is set, and there is no package index: {error}")
        pytest.skip(f"THE PACKAGE IS NOT TESTED: there is no package index: {error}")


@pytest.fixture(scope="session")
def dist(index: None, tmp_path_factory: pytest.TempPathFactory) -> Dist:
    """The sdist, and the wheel that is built from it, in the way of everybody who builds."""
    folder = tmp_path_factory.mktemp("dist")
    # A copy: a build leaves files behind, and takes what earlier ones have left.
    shutil.copytree(ROOT, folder / "clone", ignore=_not_in_a_clone)
    run(sys.executable, "-m", "build", "--outdir", str(folder), cwd=folder / "clone")
    return Dist(*folder.glob("*.whl"), *folder.glob("*.tar.gz"))


def _not_in_a_clone(directory: str, names: list[str]) -> set[str]:
    ignored = (ROOT / ".gitignore").read_text().split()
    return set(shutil.ignore_patterns(".git", *(n.rstrip("/") for n in ignored))(directory, names))


@pytest.fixture(scope="session")
def installed(dist: Dist, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel and Flask, for those who do not mind what others have done there."""
    environment = Environment(tmp_path_factory.mktemp("installed") / "venv")
    environment.install(f"{dist.wheel}[flask]")
    return environment


def sources() -> set[str]:
    """The files of the package, as they are called in it."""
    return {
        str(path.relative_to(PACKAGE.parent))
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def metadata(dist: Dist) -> email.message.Message:
    with zipfile.ZipFile(dist.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        return email.message_from_string(wheel.read(name).decode())


def test_the_wheel_has_the_package_and_nothing_else(dist: Dist) -> None:
    with zipfile.ZipFile(dist.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        info = {name.partition("/")[2] for name in wheel.namelist()} - {
            name.partition("/")[2] for name in names
        }
    assert names == sources()
    assert info >= {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
    assert "py.typed" in {Path(name).name for name in names}


def test_the_sdist_has_what_builds_the_wheel_and_nothing_else(dist: Dist) -> None:
    with tarfile.open(dist.sdist) as archive:
        files = {one.name.partition("/")[2] for one in archive.getmembers() if one.isfile()}
    generated = {"PKG-INFO", "setup.cfg"} | {name for name in files if ".egg-info/" in name}
    expected = {f"pkg/{name}" for name in sources()} | {"pkg/README.md", *SOURCES}
    assert files - generated == expected


def test_its_dependencies_are_few_and_have_lower_bounds_only(dist: Dist) -> None:
    meta = metadata(dist)
    requirements = meta.get_all("Requires-Dist", [])
    assert [one for one in requirements if "extra" not in one] == [
        one for one in requirements if one.startswith("httptools>=")
    ]
    for one in requirements:
        assert re.fullmatch(r"[\w-]+>=[\d.]+(; extra == .*)?", one), one
    assert {"flask", "metrics", "dev"} <= set(meta.get_all("Provides-Extra", []))
    assert (meta["Name"], meta["Requires-Python"]) == ("flask-graceful", ">=3.10")


def test_what_the_index_shows_stands_alone(dist: Dist) -> None:
    """No link into a repository that the reader does not have, and nothing about the blog."""
    text = str(metadata(dist).get_payload())
    assert text.startswith("# flask-graceful")
    assert re.findall(r"\]\((?!https?://)", text) == []
    assert "blog" not in text


@pytest.mark.parametrize("way", WAYS)
def test_an_app_of_somebody_else_is_served_and_restarted(
    dist: Dist, tmp_path: Path, way: str
) -> None:
    """Into an empty environment with Flask; `kill -1` under load; out again: nothing is left."""
    environment = Environment(tmp_path / "venv")
    assert list(environment.directory.rglob("*.dist-info")) == []
    environment.install("Flask")
    before = environment.files()
    environment.install(str(dist.wheel))
    line, arguments, says = WAYS[way]
    work = tmp_path / "work"
    work.mkdir()
    (work / "hello.py").write_text(QUICKSTART + line)
    one = Live([environment.python, *arguments], work, {"PYTHONPATH": "", "TMPDIR": str(work)})
    try:
        _restart_and_stop(one, says)
    finally:
        one.end()
    environment.pip("uninstall", *PIP, "--yes", "flask-graceful", "httptools")
    left = {name for name in environment.files() - before if "__pycache__" not in name}
    assert (left, before - environment.files()) == (set(), set())
    # What Python itself has made of Flask's files when it ran them is not ours.
    ours = {name for name in environment.files() if re.search("graceful|httptools", name)}
    assert ours == set()
    assert {path.name for path in work.iterdir()} <= {"hello.py", "__pycache__"}


def _restart_and_stop(one: Live, says: str) -> None:
    """The next generation serves, on the same connections too, and nobody has lost anything."""
    port = int(one.wait_for(says)["port"])
    with Client(("127.0.0.1", port)) as kept, Load(port, 4) as load:
        assert kept.get()[::2] == (200, b"<p>Hello, World!</p>")
        load.wait_count(50)
        os.kill(one.pid, signal.SIGHUP)
        new = int(one.wait_for(says, 2)["pid"])
        one.wait_for(rf"^{one.pid} Serve\(\) returning")
        load.wait_count(load.count + 50)
        assert kept.get()[::2] == (200, b"<p>Hello, World!</p>")
        load.stop()
        assert load.failed == []
    assert new != one.pid
    os.kill(new, signal.SIGTERM)
    one.wait_for(rf"^{new} Serve\(\) returning")
    wait_until(lambda: is_gone(new), "the server gone")
    assert "Traceback" not in one.log


def test_only_the_server_is_installed(dist: Dist, tmp_path: Path) -> None:
    """Without Flask, and without a word of the blog."""
    environment = Environment(tmp_path / "venv")
    environment.install(str(dist.wheel))
    code = "import importlib.metadata as m; print(sorted(d.name for d in m.distributions()))"
    said = run(environment.python, "-c", code, cwd=tmp_path)
    assert said.strip() == "['flask-graceful', 'httptools']"
    top = {path.name for path in next(environment.directory.rglob("site-packages")).iterdir()}
    assert top & {"blog", "pkg", "routers", "tests", "conf", "docs"} == set()
    # All names are there without Flask.
    code = "from flask_graceful import *; import flask_graceful; print(flask_graceful.__file__)"
    place = run(environment.python, "-c", code, cwd=tmp_path).strip()
    assert Path(place).is_relative_to(environment.directory)


def test_its_types_are_those_of_a_strict_user(installed: Environment, tmp_path: Path) -> None:
    """What is right has no errors, and what is wrong has: see the program. The example has none."""
    sources = [ROOT / "tests" / "type_check" / "program.py", ROOT / "examples" / "flask_app.py"]
    programs = [shutil.copy(source, tmp_path) for source in sources]
    # What the user's own configuration says does not count.
    (tmp_path / "mypy.ini").write_text("[mypy]\n")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--no-incremental"]
    said = run(*mypy, "--python-executable", installed.python, *programs, cwd=tmp_path)
    assert said.strip() == "Success: no issues found in 2 source files"
