from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blog import create_app
from pkg.setting import load
from tests.blog.api import Api
from tests.blog.mariadb import INSTALLER, SERVER, MariaDB

ROOT = Path(__file__).parents[2]
TUTORIAL_SQL = Path(__file__).with_name("tutorial.sql")
# As the project comes: conf/app.ini is its user's, who may have changed it.
SETTINGS = Path(__file__).with_name("app.ini")

MakeApi = Callable[..., Api]


@contextmanager
def working_directory(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that a test starts do not see the user's settings either."""
    for name in os.environ:
        if name.startswith("BLOG_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    if not SERVER or not INSTALLER:
        if os.environ.get("REQUIRE_MARIADB") == "1":
            pytest.fail("REQUIRE_MARIADB is set, and mariadbd is not installed")
        pytest.skip("MARIADB IS NOT TESTED: install mariadb-server for these tests")
    server = MariaDB()
    try:
        server.start()
        yield server
    finally:
        server.remove()


def mysql_environ(mariadb: MariaDB, database: str) -> dict[str, str]:
    return {
        "BLOG_DATABASE_TYPE": "mysql",
        "BLOG_DATABASE_USER": "root",
        "BLOG_DATABASE_HOST": f"unix:{mariadb.socket}",
        "BLOG_DATABASE_NAME": database,
    }


@pytest.fixture(scope="session")
def make_api() -> Iterator[MakeApi]:
    """Makes applications in directories of their own, with variables as settings."""
    made = []
    with tempfile.TemporaryDirectory(prefix="blog-") as parent:

        def make(directory: Path | None = None, **environ: str) -> Api:
            directory = directory or Path(tempfile.mkdtemp(dir=parent))
            settings = load({"BLOG_CONF": str(SETTINGS), **environ})
            with working_directory(directory):
                made.append(Api(create_app(settings), directory))
            return made[-1]

        try:
            yield make
        finally:
            for api in made:
                api.close()


@pytest.fixture(scope="session")
def sqlite_api(make_api: MakeApi) -> Api:
    return make_api()


@pytest.fixture(scope="session")
def mariadb_api(make_api: MakeApi, mariadb: MariaDB) -> Api:
    mariadb.execute("CREATE DATABASE ours CHARACTER SET utf8mb4")
    return make_api(**mysql_environ(mariadb, "ours"))


@pytest.fixture(scope="session")
def tutorial_api(make_api: MakeApi, mariadb: MariaDB) -> Api:
    """On a database made with the tutorial's SQL."""
    mariadb.execute("CREATE DATABASE tutorial CHARACTER SET utf8mb3")
    statements = TUTORIAL_SQL.read_text().split(";\n\n")
    mariadb.execute(*statements, database="tutorial")
    return make_api(**mysql_environ(mariadb, "tutorial"))


@pytest.fixture(params=["sqlite", "mariadb", "tutorial"])
def api(request: pytest.FixtureRequest) -> Api:
    """The blog with empty tables, on each kind of database."""
    found: Api = request.getfixturevalue(f"{request.param}_api")
    found.clear()
    return found


@pytest.fixture
def sqlite(sqlite_api: Api) -> Api:
    """The same for what has nothing to do with the database."""
    sqlite_api.clear()
    return sqlite_api
