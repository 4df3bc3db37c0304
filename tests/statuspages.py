"""Programs with a status page."""

from __future__ import annotations

import typing as t

from program import END


def site(
    more: str = "", *, after: str = "", token: str = "", debug: bool = True, **options: t.Any
) -> str:
    """The text of a program that serves a Flask application with the page.

    :param more: what runs before the application is made.
    :param after: what runs before the server is made.
    :param options: of the server.
    """
    addr = options.pop("addr", ":0")
    options = {"idle_grace": 0, **options}
    return f"""
from flask import Flask, request
from flask_graceful.statuspage import create_blueprint

{more}
site = Flask("site")
site.debug = {debug!r}
site.register_blueprint(create_blueprint({token!r}))

@site.get("/")
def pid():
    return str(os.getpid())

@site.get("/threads")
def threads():
    return " ".join(one.name for one in threading.enumerate())

@site.get("/held")
def held():
    say("held")
    wait_for_file("go")
    return str(os.getpid())

{after}
server = GracefulServer({addr!r}, site, **{options!r})
{END}"""
