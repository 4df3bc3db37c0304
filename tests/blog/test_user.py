"""The command that sets passwords: python -m blog.user NAME."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.blog.api import Api
from tests.blog.conftest import ROOT, SETTINGS, TUTORIAL_SQL, MakeApi, mysql_environ
from tests.blog.mariadb import MariaDB


def set_password(
    directory: Path, *names: str, password: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    own = {"BLOG_CONF": str(SETTINGS), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "blog.user", *names],
        cwd=directory,
        env=os.environ | own | environ,
        input=password,
        capture_output=True,
        text=True,
        timeout=60,
    )


def login(api: Api, username: str, password: str) -> int:
    query = urlencode({"username": username, "password": password})
    return int(api.raw("GET", f"/auth?{query}").code)


@pytest.mark.parametrize("database", ["sqlite", "mariadb"])
def test_set_and_add(database: str, make_api: MakeApi, request: pytest.FixtureRequest) -> None:
    environ = {}
    if database == "mariadb":
        mariadb: MariaDB = request.getfixturevalue("mariadb")
        mariadb.execute("CREATE OR REPLACE DATABASE users")
        environ = mysql_environ(mariadb, "users")
    api = make_api(**environ)
    for name, password in (("test", "new password"), ("TEST", "other"), ("中文🎉", "密码")):
        done = set_password(api.directory, name, password=f"{password}\n", **environ)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert login(api, name, password) == 200
    assert login(api, "test", "new password") == 200
    assert login(api, "test", "test123456") == 20004
    assert api.scalar("SELECT count(*) FROM blog_auth") == 3
    assert not api.sql("SELECT 1 FROM blog_auth WHERE password LIKE '%other%'")


def test_makes_the_database(tmp_path: Path, make_api: MakeApi) -> None:
    assert set_password(tmp_path, "me", password="secret").returncode == 0
    assert login(make_api(directory=tmp_path), "me", "secret") == 200


@pytest.mark.parametrize(
    ("names", "password", "status", "message"),
    [
        ((), "x", 1, "usage: python -m blog.user NAME"),
        (("a", "b"), "x", 1, "usage: python -m blog.user NAME"),
        (("a",), "", 1, "Password.Required Can not be empty"),
        (("a",), "x" * 51, 1, "Password.MaxSize Maximum size is 50"),
        (("a" * 51,), "x", 1, "Username.MaxSize Maximum size is 50"),
    ],
)
def test_refusals(
    tmp_path: Path, names: tuple[str, ...], password: str, status: int, message: str
) -> None:
    done = set_password(tmp_path, *names, password=password)
    assert (done.returncode, done.stderr.strip()) == (status, message)
    assert not (tmp_path / "runtime").exists()


def test_bad_settings(tmp_path: Path) -> None:
    done = set_password(tmp_path, "a", password="x", BLOG_CONF="nope")
    assert done.returncode == 2
    assert done.stderr == "nope: cannot read the settings: No such file or directory\n"


def test_tutorials_column_is_too_narrow(mariadb: MariaDB, tmp_path: Path) -> None:
    mariadb.execute("CREATE OR REPLACE DATABASE narrow CHARACTER SET utf8mb3")
    mariadb.execute(*TUTORIAL_SQL.read_text().split(";\n\n"), database="narrow")
    environ = mysql_environ(mariadb, "narrow")
    done = set_password(tmp_path, "test", password="x", **environ)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    statement = done.stderr.partition("a hash needs more room: ")[2]
    assert statement.startswith("ALTER TABLE blog_auth")
    mariadb.execute(statement, database="narrow")
    assert set_password(tmp_path, "test", password="x", **environ).returncode == 0
