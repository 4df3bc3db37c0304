"""The blog API on a graceful server: the article's main.go.

kill -1 PID     starts the code anew; the API answers all the while
kill PID        stops after the requests in flight
"""

from __future__ import annotations

import logging
import os
import sys

from flask_graceful import GracefulServer, ListenError, ServerClosed

from blog import create_app
from pkg.setting import SettingsError, load

log = logging.getLogger("blog")


def main() -> int:
    # The article's lines carry no time stamp.
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = load()
    except SettingsError as err:
        print(err, file=sys.stderr)
        return 2

    server = GracefulServer(
        f":{settings.server.http_port}",
        create_app(settings),
        read_timeout=settings.server.read_timeout,
        write_timeout=settings.server.write_timeout,
        max_header_bytes=1 << 20,
        workers=settings.server.workers,
    )

    @server.before_begin
    def log_pid(addr: str) -> None:
        if settings.run_mode == "debug":
            log.info("[GIN-debug] Listening and serving HTTP on %s", addr)
        log.info("Actual pid is %d", os.getpid())

    try:
        server.listen_and_serve()
    except ServerClosed as err:
        log.info("Server err: %s", err)
    except ListenError as err:
        print(err, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
