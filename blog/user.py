"""Users and their passwords. `python -m blog.user NAME` sets a password, or adds the user."""

from __future__ import annotations

import getpass
import hmac
import re
import sys

from flask import Flask
from sqlalchemy import insert, select, update
from sqlalchemy.exc import DataError, SQLAlchemyError
from werkzeug.security import check_password_hash, generate_password_hash

from blog import context as blog_context
from blog import database
from blog.context import context
from blog.database import reading, same_text, writing
from blog.failure import reason
from blog.validation import Login
from pkg import setting

# What generate_password_hash makes. The tutorial's own table holds passwords in clear.
_HASH = re.compile(r"(scrypt|pbkdf2):[^$]+\$[^$]+\$[0-9a-f]+")
# As costly to check as what generate_password_hash makes, and the hash of no password.
_NOBODYS_HASH = f"scrypt:32768:8:1$nobody${'0' * 128}"


def check_login(*, username: str, password: str) -> bool:
    """Whether some user has both, exactly: the collation finds TEST for test, and more.

    One hash is checked whoever it is: the time that it takes would tell which users there are.
    """
    auth = context().models.auth
    session = reading()
    rows = session.execute(
        select(auth.username, auth.password).where(same_text(auth.username, username))
    )
    known = [stored or "" for found, stored in rows.all() if found == username]
    # The hash takes long, and others need the connection.
    session.close()
    if not known:
        _check_hash(_NOBODYS_HASH, password)
        return False
    return any([_matches(stored, password) for stored in known])


def _matches(stored: str, password: str) -> bool:
    if _HASH.fullmatch(stored):
        return _check_hash(stored, password)
    _check_hash(_NOBODYS_HASH, password)
    return hmac.compare_digest(stored.encode(), password.encode())


def _check_hash(stored: str, password: str) -> bool:
    with context().password_checks:
        return check_password_hash(stored, password)


def set_password(*, username: str, password: str) -> None:
    """Stores a hash of the password, for a new user if there is none of exactly this name."""
    auth = context().models.auth
    hashed = generate_password_hash(password)
    with writing(lock="auth") as connection:
        rows = connection.execute(
            select(auth.id, auth.username).where(same_text(auth.username, username))
        )
        ids = [id for id, found in rows if found == username]
        if ids:
            connection.execute(update(auth).where(auth.id.in_(ids)).values(password=hashed))
        else:
            connection.execute(insert(auth).values(username=username, password=hashed))


def main(arguments: list[str]) -> int | str:
    """The command; what it returns is for sys.exit."""
    if len(arguments) != 1:
        return "usage: python -m blog.user NAME"
    try:
        settings = setting.load()
    except setting.SettingsError as err:
        print(err, file=sys.stderr)
        return 2
    login = {"username": arguments[0], "password": _ask_password()}
    if broken := Login().validate(login):
        return "\n".join(message for messages in broken.values() for message in messages)
    name = settings.database.name
    app = Flask("blog.user", static_folder=None)
    blog_context.init_app(app, settings)
    database.init_app(app)
    with app.app_context():
        try:
            set_password(**login)
        except DataError as err:
            table = f"{settings.database.table_prefix}auth"
            widen = f"ALTER TABLE {table} MODIFY password varchar(255) DEFAULT ''"
            return f"database {name}: {reason(err)}; a hash needs more room: {widen}"
        except (SQLAlchemyError, OSError) as err:
            return f"database {name}: {reason(err)}"
        finally:
            database.db.engine.dispose()
    return 0


def _ask_password() -> str:
    if sys.stdin.isatty():
        return getpass.getpass("Password: ")
    return sys.stdin.readline().rstrip("\r\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
