"""A Flask app with the extension: the one changed line is the last one.

Run it with `python examples/flask_app.py`, open http://localhost:5000/clock, and `kill -1` the pid
that it prints: the stream ends with a word, and the browser is back in the new process.
"""

from __future__ import annotations

import os
import time
import typing as t

from flask import Flask, Response, current_app
from flask_graceful import Graceful, draining_started

app = Flask(__name__)
graceful = Graceful(app, livez=True, readyz=True)


@app.get("/")
def index() -> str:
    return f"hello from {os.getpid()}\n"


@app.get("/clock")
def clock() -> Response:
    def ticks() -> t.Iterator[str]:
        while True:
            yield f"data: {os.getpid()} {time.time():.0f}\n\n"
            time.sleep(1)

    # EventSource comes back after 100 ms, and reaches the next process.
    stream = graceful.until_shutdown(ticks(), farewell="event: restart\nretry: 100\ndata: -\n\n")
    return Response(stream, mimetype="text/event-stream")


@app.post("/mail")
def mail() -> tuple[str, int]:
    """Answer now, and work on: a restart and a stop wait for it."""
    graceful.spawn(time.sleep, 2)
    return "it will be sent\n", 202


@graceful.before_restart
def check_disk() -> None:
    if os.path.exists("no-restart"):
        raise RuntimeError("the file no-restart is there")


@graceful.on_shutdown
def say_goodbye() -> None:
    current_app.logger.warning("process %d has served its last request", os.getpid())


@draining_started.connect_via(app)
def on_draining(sender: Flask, **_: object) -> None:
    sender.logger.warning("process %d takes no new connections", os.getpid())


if __name__ == "__main__":
    graceful.run(app)
