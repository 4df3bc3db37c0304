"""A private MariaDB server: own data directory and socket, no network, ended with the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pymysql

SERVER = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
INSTALLER = shutil.which("mariadb-install-db")


class MariaDB:
    def __init__(self) -> None:
        # Not under pytest's directory, the name of which can be too long for a socket.
        self.directory = Path(tempfile.mkdtemp(prefix="blog-mariadb-"))
        self.socket = self.directory / "socket"
        self._log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        user = ["--user=root"] if os.geteuid() == 0 else []
        self._options = ["--no-defaults", f"--datadir={self.directory / 'data'}", *user]
        # Two servers with one directory for temporary tables remove each other's.
        self._environ = {**os.environ, "TMPDIR": str(self.directory)}
        assert INSTALLER
        subprocess.run(
            [
                INSTALLER,
                *self._options,
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            check=True,
            capture_output=True,
            timeout=60,
            env=self._environ,
        )

    def start(self) -> None:
        assert SERVER
        network = ["--skip-networking", f"--socket={self.socket}"]
        pid_file = f"--pid-file={self.directory / 'pid'}"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [SERVER, *self._options, *network, pid_file, "--innodb-flush-log-at-trx-commit=0"],
                stdout=log,
                stderr=log,
                env=self._environ,
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        # PyMySQL leaves the socket open when it cannot connect.
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stop(self) -> None:
        assert self._process
        self._process.terminate()
        self._process.wait(timeout=30)

    def remove(self) -> None:
        if self._process and self._process.poll() is None:
            self.stop()
        shutil.rmtree(self.directory)

    def execute(self, *statements: str, database: str | None = None) -> tuple[Any, ...]:
        """Runs statements as root; the rows of the last one."""
        connection = pymysql.connect(
            unix_socket=str(self.socket), user="root", database=database, autocommit=True
        )
        with connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return tuple(cursor.fetchall())
