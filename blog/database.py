"""The way to the database: engine, transactions, tables.

SQLite and MySQL get the same statements. What differs is set up per connection here: SQLite learns
the collation, waits for other writers and takes the write lock when a transaction begins, for a
transaction that reads first could not get it later. A named lock does the same for MySQL.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    MetaData,
    Table,
    and_,
    event,
    func,
    insert,
    inspect,
    literal,
    select,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from werkzeug.security import generate_password_hash

from blog.collation import compare
from blog.context import context
from blog.failure import reason
from blog.models import GENERAL_CI
from pkg.setting import Database
from pkg.setting.schema import parse_address

# The tutorial's only user.
FIRST_USER = ("test", "test123456")

_BUSY_SECONDS = 30
_LOCK_SECONDS = 10
# All processes together, which are twice as many during a restart: MySQL lets 151 in by default.
_CONNECTIONS = 64
_KEPT_CONNECTIONS = 10
# All characters beyond the first plane are one and the same to GENERAL_CI, but not to this one.
_FINER = "utf8mb4_unicode_520_ci"

db = SQLAlchemy()


def init_app(app: Flask) -> None:
    settings = app.extensions["blog"].settings
    database = settings.database
    app.config["SQLALCHEMY_DATABASE_URI"] = _url(database)
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = _engine_options(
        database, settings.server.share(_CONNECTIONS)
    )
    db.init_app(app)
    if database.type == "sqlite":
        with app.app_context():
            event.listen(db.engine, "connect", _set_up_sqlite)
            event.listen(db.engine, "begin", _begin_sqlite)


def _url(database: Database) -> URL:
    if database.type == "sqlite":
        return URL.create("sqlite", database=str(Path(database.name).absolute()))
    address = parse_address(database.host)
    return URL.create(
        "mysql+pymysql",
        username=database.user,
        password=database.password,
        host=address.get("host"),
        port=address.get("port"),
        database=database.name,
    )


def _engine_options(database: Database, connections: int) -> dict[str, Any]:
    kept = min(_KEPT_CONNECTIONS, connections)
    options: dict[str, Any] = {
        "pool_size": kept,
        "max_overflow": connections - kept,
        "hide_parameters": True,
    }
    if database.type == "sqlite":
        return options | {"connect_args": {"timeout": _BUSY_SECONDS}}
    connect_args = {
        "charset": "utf8mb4",
        "connect_timeout": 5,
        "read_timeout": 30,
        "write_timeout": 30,
        # Without a strict mode MySQL cuts off what does not fit and reports success.
        "init_command": "SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')",
    }
    if "unix_socket" in (address := parse_address(database.host)):
        connect_args |= address
    return options | {"pool_pre_ping": True, "connect_args": connect_args}


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The module would begin transactions of its own, and never with the write lock.
    connection.isolation_level = None
    connection.create_collation(GENERAL_CI, compare)
    connection.create_collation(_FINER, compare)
    _use_write_ahead_log(connection)


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Readers and the writer do not block each other. The file remembers the mode.

    Two processes that switch it at once are told so right away, without the usual waiting.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as err:
            if "locked" not in str(err) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def reading() -> Session:
    """The session of this request, for statements that change nothing."""
    _require_tables()
    return db.session()


@contextmanager
def writing(lock: str = "") -> Iterator[Connection]:
    """A transaction: all of it is stored, or nothing when the block raises.

    With a lock named, blocks under the same name run one after the other, in all processes.
    """
    _require_tables()
    with _transaction(lock) as connection:
        yield connection


@contextmanager
def _transaction(lock: str) -> Iterator[Connection]:
    with db.engine.connect().execution_options(writes=True) as connection:
        named = bool(lock) and connection.dialect.name == "mysql"
        # The server holds named locks for all its databases together.
        name = f"{db.engine.url.database}.{context().settings.database.table_prefix}{lock}"[-64:]
        if named and connection.scalar(select(func.get_lock(name, _LOCK_SECONDS))) != 1:
            raise TimeoutError(f"no lock on {name} within {_LOCK_SECONDS} s")
        try:
            yield connection
            # Before the lock goes; what is not committed is rolled back by leaving.
            connection.commit()
        finally:
            if named:
                connection.scalar(select(func.release_lock(name)))


def same_text(column: Any, text: str) -> ColumnElement[bool]:
    """Whether a column equals a text by the tutorial's collation, on every database."""
    equal: ColumnElement[bool] = column == literal(text).collate(GENERAL_CI)
    if any(ord(character) > 0xFFFF for character in text):
        return and_(equal, column == literal(text).collate(_FINER))
    return equal


def _require_tables() -> None:
    """The database may have been down at start, and its tables missing."""
    if not context().tables_exist:
        _make_tables()
        context().tables_exist = True


def _make_tables() -> None:
    """Makes the tables that are missing, and the first user with the table of users."""
    if db.engine.dialect.name == "sqlite" and db.engine.url.database:
        # If that fails, opening the file will say so.
        with suppress(OSError):
            Path(db.engine.url.database).parent.mkdir(parents=True, exist_ok=True)
    if not _missing_tables(db.engine):
        return
    with _transaction("schema") as connection:
        # Asked again under the lock: another process may have been faster.
        missing = _missing_tables(connection)
        models = context().models
        users = inspect(models.auth).local_table
        tables = [models.metadata.tables[name] for name in missing if name != users.name]
        models.metadata.create_all(connection, tables=tables, checkfirst=False)
        if users.name in missing:
            _make_users(connection, users)


def _make_users(connection: Connection, users: Table) -> None:
    """The table of users appears with the first user in it.

    MySQL commits each change of a table at once, so it is filled under another name: no other
    process sees it empty, and one that is killed on the way leaves nothing that counts.
    """
    made = users.to_metadata(MetaData(), name=f"{users.name}_new")
    made.drop(connection, checkfirst=True)
    made.create(connection, checkfirst=False)
    username, password = FIRST_USER
    hashed = generate_password_hash(password)
    connection.execute(insert(made).values(username=username, password=hashed))
    quote = connection.dialect.identifier_preparer.quote
    connection.exec_driver_sql(f"ALTER TABLE {quote(made.name)} RENAME TO {quote(users.name)}")
    if context().settings.run_mode == "release":
        current_app.logger.warning(
            "user %s has the tutorial's password; set another: python -m blog.user %s",
            username,
            username,
        )


def _missing_tables(bind: Engine | Connection) -> list[str]:
    existing = inspect(bind).get_table_names()
    return [name for name in context().models.metadata.tables if name not in existing]


def prepare_at_start(app: Flask) -> None:
    """Makes what is missing, or tells why that has to wait for the first request that works."""
    with app.app_context():
        try:
            _require_tables()
        except (SQLAlchemyError, OSError) as err:
            current_app.logger.error("database %s: %s", db.engine.url.database, reason(err))
