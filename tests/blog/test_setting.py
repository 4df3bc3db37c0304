"""The settings file, the variables that override it, and the one line that says what is wrong."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from pkg.setting import SettingsError, load
from pkg.setting.schema import parse_address
from tests.blog.conftest import ROOT, SETTINGS, working_directory

TUTORIAL = """\
#debug or release
RUN_MODE = debug

[app]
PAGE_SIZE = 10
JWT_SECRET = 23347$040412

[server]
HTTP_PORT = 8000
READ_TIMEOUT = 60
WRITE_TIMEOUT = 60

[database]
TYPE = mysql
USER = root
PASSWORD = rootroot
#127.0.0.1:3306
HOST = 127.0.0.1:3306
NAME = blog
TABLE_PREFIX = blog_
"""


@pytest.fixture(autouse=True)
def file(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    path = tmp_path / "conf/app.ini"
    path.write_text(TUTORIAL)
    return path


def read(file: Path, **environ: str) -> object:
    with working_directory(file.parents[1]):
        return load(environ)


def refusal(file: Path, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read(file, **environ)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_tutorials_file(file: Path) -> None:
    settings = read(file)
    assert dataclasses.asdict(settings) == {
        "run_mode": "debug",
        "app": {"page_size": 10, "jwt_secret": "23347$040412"},
        "server": {"http_port": 8000, "workers": 0, "read_timeout": 60, "write_timeout": 60},
        "database": {
            "type": "mysql",
            "user": "root",
            "password": "rootroot",
            "host": "127.0.0.1:3306",
            "name": "blog",
            "table_prefix": "blog_",
        },
    }
    assert "rootroot" not in repr(settings) and "040412" not in repr(settings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.run_mode = "release"  # type: ignore[attr-defined]


def test_shipped_file() -> None:
    settings = load({"BLOG_CONF": str(SETTINGS)})
    assert (settings.run_mode, settings.server.http_port) == ("debug", 8000)
    assert (settings.database.type, settings.database.name) == ("sqlite", "runtime/blog.db")
    command = ["git", "diff", "--quiet", "HEAD", "--", "conf/app.ini"]
    if (
        shutil.which("git") is None
        or subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip("conf/app.ini is its user's own")
    assert (ROOT / "conf/app.ini").read_text() == SETTINGS.read_text()


def test_forms_of_a_file(file: Path) -> None:
    expected = read(file)
    for text in (
        "\ufeff" + TUTORIAL,
        TUTORIAL.replace("\n", "\r\n"),
        TUTORIAL.replace(" = ", "="),
        TUTORIAL.replace("\n", "\n    "),
        TUTORIAL.replace("\nHOST", "\n    HOST"),
        TUTORIAL.rstrip(),
    ):
        file.write_bytes(text.encode())
        assert read(file) == expected


def test_values_are_taken_as_they_stand(file: Path) -> None:
    file.write_text(TUTORIAL.replace("rootroot", "%(x)s ${y} $z %% # ; = : \"'"))
    assert read(file).database.password == "%(x)s ${y} $z %% # ; = : \"'"  # type: ignore[attr-defined]


def test_environment_overrides(file: Path) -> None:
    environ = {
        "BLOG_RUN_MODE": "release",
        "BLOG_APP_JWT_SECRET": "my own",
        "BLOG_SERVER_HTTP_PORT": "0",
        "BLOG_DATABASE_TABLE_PREFIX": "",
        "BLOG_DATABASE_PASSWORD": "",
        "PATH": "/bin",
        "BLOG_COLOUR": "blue",
        "BLOG_SERVICE_HOST": "10.0.0.1",
        "BLOG_PORT": "tcp://10.0.0.1:80",
        "BLOG_SERVER_PORT": "tcp://10.0.0.1:80",
        "BLOG_DATABASE_PORT": "udp://[fd00::1]:53",
        "BLOG_SERVER_PORT_80_TCP": "tcp://10.0.0.1:80",
        "BLOG_SERVER_PORT_80_TCP_ADDR": "10.0.0.1",
        "BLOG_SERVER_SERVICE_PORT_HTTP": "80",
    }
    settings = read(file, **environ)
    expected = read(file)
    expected = dataclasses.replace(  # type: ignore[type-var]
        expected,
        run_mode="release",
        app=dataclasses.replace(expected.app, jwt_secret="my own"),
        server=dataclasses.replace(expected.server, http_port=0),
        database=dataclasses.replace(expected.database, table_prefix="", password=""),
    )
    assert settings == expected


def test_link_to_a_service_called_as_a_setting(file: Path) -> None:
    assert read(file, BLOG_SERVER_HTTP_PORT="tcp://10.0.0.1:80") == read(file)


def test_another_file(file: Path, tmp_path: Path) -> None:
    file.rename(tmp_path / "other.ini")
    assert read(file, BLOG_CONF="other.ini") == read(file, BLOG_CONF=str(tmp_path / "other.ini"))


def test_defaults(file: Path) -> None:
    file.write_text("[app]\nJWT_SECRET=x\n[database]\nTYPE=sqlite\nNAME=a.db\n")
    settings = read(file)
    assert settings.run_mode == "debug"  # type: ignore[attr-defined]
    assert settings.database.table_prefix == "blog_"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("= debug", "= prod", "RUN_MODE above the first section: expected debug or release"),
        ("= debug", "= release", "[app] JWT_SECRET: expected a secret of your own"),
        ("PAGE_SIZE = 10", "PAGE_SIZE = 0", "[app] PAGE_SIZE: expected a whole number from 1 to"),
        ("PAGE_SIZE = 10", "PAGE_SIZE = ten", "[app] PAGE_SIZE: expected a whole number"),
        ("PAGE_SIZE = 10", "PAGE_SIZE =", "[app] PAGE_SIZE: expected a whole number"),
        ("PAGE_SIZE = 10", "PAGE_SIZE = 1_0", "[app] PAGE_SIZE: expected a whole number"),
        ("PAGE_SIZE = 10", "PAGE_SIZE = １０", "[app] PAGE_SIZE: expected a whole number"),
        ("PAGE_SIZE = 10", "PAGE_SIZE = 1.5", "[app] PAGE_SIZE: expected a whole number"),
        ("PAGE_SIZE = 10", "PAGE_SIZE = " + "9" * 5000, "[app] PAGE_SIZE: expected a whole number"),
        (
            "JWT_SECRET = 23347$040412",
            "",
            "[app] JWT_SECRET: missing key, expected a text that is not empty",
        ),
        ("TYPE = mysql", "", "[database] TYPE: missing key, expected sqlite or mysql"),
        ("23347$040412", "", "[app] JWT_SECRET: expected a text that is not empty"),
        ("8000", "65536", "[server] HTTP_PORT: expected a whole number from 0 to 65535"),
        ("8000", "-1", "[server] HTTP_PORT: expected a whole number from 0 to 65535"),
        ("READ_", "WORKERS = -1\nREAD_", "[server] WORKERS: expected a whole number from 0 to 64"),
        ("READ_", "WORKERS = 65\nREAD_", "[server] WORKERS: expected a whole number from 0 to 64"),
        ("READ_", "WORKERS = two\nREAD_", "[server] WORKERS: expected a whole number from 0 to"),
        ("READ_TIMEOUT = 60", "READ_TIMEOUT = -1", "[server] READ_TIMEOUT: expected a whole"),
        ("READ_TIMEOUT = 60", "READ_TIMEOUT = 60s", "[server] READ_TIMEOUT: expected a whole"),
        ("= mysql", "= oracle", "[database] TYPE: expected sqlite or mysql, not 'oracle'"),
        ("USER = root\n", "", "[database] USER: missing key, expected a text: TYPE mysql needs"),
        ("HOST = 127.0.0.1:3306\nN", "N", "[database] HOST: missing key, expected host, host:port"),
        ("127.0.0.1:3306\nN", "h:p\nN", "[database] HOST: expected host, host:port or unix:"),
        ("127.0.0.1:3306\nN", "h:70000\nN", "[database] HOST: expected host"),
        ("127.0.0.1:3306\nN", "\nN", "[database] HOST: expected host"),
        ("NAME = blog\n", "", "[database] NAME: missing key, expected a text that is not"),
        ("blog_", "blog-", "[database] TABLE_PREFIX: expected at most 32 letters"),
        ("HTTP_PORT", "PORT", "[server] PORT: unknown key, expected one of HTTP_PORT, WORK"),
        ("HTTP_PORT", "http_port", "[server] http_port: unknown key"),
        ("RUN_MODE", "MODE", "MODE above the first section: unknown key, expected one of RUN_MODE"),
        ("[server]", "[redis]", "[redis]: unknown section, expected one of app, server"),
        ("[server]", "[DEFAULT]", "[DEFAULT]: unknown section"),
        ("[server]", "[app]", "line 8: [app]: section given twice"),
        ("[server]", "[server", "line 8: expected [section] or KEY = value"),
        ("WRITE_TIMEOUT = 60", "junk", "line 11: expected [section] or KEY = value"),
        ("WRITE_TIMEOUT", "READ_TIMEOUT", "line 11: [server] READ_TIMEOUT: given twice"),
    ],
)
def test_what_is_wrong_in_the_file(file: Path, old: str, new: str, expected: str) -> None:
    text = TUTORIAL.replace(old, new, 1 if old != "blog_" else -1)
    assert text != TUTORIAL
    file.write_text(text)
    assert refusal(file).startswith(f"conf/app.ini: {expected}")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("BLOG_SERVER_HTTP_PORT", "x", "BLOG_SERVER_HTTP_PORT: expected a whole number from 0"),
        ("BLOG_SERVER_HTTP_PORT", "", "BLOG_SERVER_HTTP_PORT: expected a whole number from 0"),
        ("BLOG_RUN_MODE", "Release", "BLOG_RUN_MODE: expected debug or release, not 'Release'"),
        ("BLOG_DATABASE_NAME", "a\nb", "BLOG_DATABASE_NAME: expected a text"),
        ("BLOG_SERVER_PORT", "1", "BLOG_SERVER_PORT: unknown environment variable, did you mean"),
        ("BLOG_SERVER_PORT", "http://x", "BLOG_SERVER_PORT: unknown environment variable, did you"),
        ("BLOG_PORT", "8080", "BLOG_PORT: unknown environment variable, did you mean BLOG_SERVER_"),
        ("BLOG_PORT", "", "BLOG_PORT: unknown environment variable, did you mean BLOG_SERVER_HTTP"),
        ("BLOG_APP_X", "1", "BLOG_APP_X: unknown environment variable"),
        ("BLOG_RUNMODE", "debug", "BLOG_RUNMODE: unknown environment variable, did you mean BLOG"),
        ("BLOG_CONFIG", "x", "BLOG_CONFIG: unknown environment variable, did you mean BLOG_CONF?"),
        ("BLOG_CONF", "", "BLOG_CONF: expected the name of a file"),
        ("BLOG_CONF", "nope.ini", "nope.ini: cannot read the settings: No such file"),
        ("BLOG_CONF", "conf", "conf: cannot read the settings: Is a directory"),
    ],
)
def test_what_is_wrong_in_the_environment(file: Path, name: str, value: str, expected: str) -> None:
    assert refusal(file, **{name: value}).startswith(expected)


@pytest.mark.parametrize("secret", ["23347$040412", "233"])
def test_published_secrets_in_release_mode(file: Path, secret: str) -> None:
    environ = {"BLOG_RUN_MODE": "release", "BLOG_APP_JWT_SECRET": secret}
    message = refusal(file, **environ)
    assert message.startswith("BLOG_APP_JWT_SECRET: expected a secret of your own in release mode")
    assert secret not in message


def test_secrets_are_not_repeated(file: Path) -> None:
    assert "se\ncret" not in refusal(file, BLOG_DATABASE_PASSWORD="se\ncret")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_file_that_is_no_utf8(file: Path, newline: str) -> None:
    before = TUTORIAL.replace("\n", newline).encode()
    line = len(TUTORIAL.splitlines()) + 1
    for text, bad in ((b"# \xff", line), (b"\xff", line), (b".\n\xff\n", line + 1)):
        file.write_bytes(before + text)
        assert refusal(file).startswith(f"conf/app.ini: line {bad}: expected UTF-8 text")
    file.write_bytes("\ufeff\n".encode() + b"\xff")
    assert refusal(file).startswith("conf/app.ini: line 2: expected UTF-8 text")
    file.write_bytes(TUTORIAL.encode("utf-16"))
    assert refusal(file).startswith("conf/app.ini: line 1: expected UTF-8 text")


def test_missing_file(file: Path) -> None:
    file.unlink()
    assert refusal(file) == "conf/app.ini: cannot read the settings: No such file or directory"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1:3307", {"host": "127.0.0.1", "port": 3307}),
        ("db.example", {"host": "db.example", "port": 3306}),
        ("[::1]:3307", {"host": "::1", "port": 3307}),
        ("[::1]", {"host": "::1", "port": 3306}),
        ("unix:/run/mysqld.sock", {"unix_socket": "/run/mysqld.sock"}),
    ],
)
def test_addresses(host: str, address: dict[str, object]) -> None:
    assert parse_address(host) == address
