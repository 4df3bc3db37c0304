"""The article's second program: Server.shutdown, with the signal handling outside the server.

Run it with `python examples/shutdown.py`, ask for http://localhost:8000/slow, and press ctrl+c
while it works: the answer still comes.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time

from flask import Flask
from flask_graceful import Server, ServerClosed, ShutdownTimeout

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
log = logging.getLogger("example")

app = Flask(__name__)


@app.get("/")
def index() -> str:
    return "hello\n"


@app.get("/slow")
def slow() -> str:
    time.sleep(3)
    return "slow, but finished\n"


def serve(server: Server) -> None:
    try:
        server.listen_and_serve()
    except ServerClosed as err:
        log.info("Listen: %s", err)
    except OSError as err:
        log.error("Listen: %s", err)
        os._exit(1)


def main() -> int:
    server = Server(
        f":{os.environ.get('PORT', '8000')}",
        app,
        read_timeout=60,
        write_timeout=60,
        max_header_bytes=1 << 20,
    )
    # A queue is Go's channel: the handler puts the signal in, the main thread waits for it.
    quit: queue.SimpleQueue[int] = queue.SimpleQueue()
    signal.signal(signal.SIGINT, lambda signum, frame: quit.put(signum))

    threading.Thread(target=serve, args=(server,), daemon=True).start()

    quit.get()
    log.info("Shutdown Server ...")
    try:
        server.shutdown(timeout=5)
    except ShutdownTimeout as err:
        log.error("Server Shutdown: %s", err)
        return 1
    log.info("Server exiting")
    return 0


if __name__ == "__main__":
    sys.exit(main())
