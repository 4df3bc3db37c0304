"""What the files in deploy/ serve: put your own application in its place.

Run it with `python -m flask_graceful web:app` in this directory.
"""

from __future__ import annotations

from flask import Flask, request
from flask_graceful import State

app = Flask(__name__)


@app.get("/")
def index() -> str:
    return "hello\n"


@app.get("/ready")
def ready() -> tuple[str, int]:
    """For load balancers: 503 from the moment when the service is told to stop."""
    state = request.environ["flask_graceful.server"].state
    # A process that gives way to the next one is no reason to send clients elsewhere.
    if state in (State.RUNNING, State.RELIEVED):
        return "ready\n", 200
    return "stopping\n", 503
