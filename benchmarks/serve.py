"""Serve one of the applications with one of the servers: `serve.py SERVER APP PORT`.

Each server gets one process and, where it has threads, as many as `THREADS`; keep-alive is on and
nothing is logged per request. Otherwise all run as they come.
"""

from __future__ import annotations

import os
import sys
import typing as t

import apps

HOST = "127.0.0.1"
THREADS = 32


def ours(app: t.Any, port: int) -> None:
    from flask_graceful import Server

    Server(f"{HOST}:{port}", app, threads=THREADS).listen_and_serve()


def workers_1(app: t.Any, port: int, count: int = 1) -> None:
    from flask_graceful import GracefulServer

    GracefulServer(f"{HOST}:{port}", app, threads=THREADS, workers=count).listen_and_serve()


def workers_2(app: t.Any, port: int) -> None:
    workers_1(app, port, 2)


def bjoern(app: t.Any, port: int) -> None:
    import bjoern

    bjoern.run(app, HOST, port)


def fastwsgi(app: t.Any, port: int) -> None:
    import fastwsgi

    fastwsgi.run(app, HOST, port)


def waitress(app: t.Any, port: int) -> None:
    import waitress

    waitress.serve(app, host=HOST, port=port, threads=THREADS, connection_limit=20000)


def cheroot(app: t.Any, port: int) -> None:
    from cheroot.wsgi import Server

    Server((HOST, port), app, numthreads=THREADS).start()


def werkzeug(app: t.Any, port: int) -> None:
    import logging

    from werkzeug.serving import WSGIRequestHandler, make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    make_server(HOST, port, app, threaded=True).serve_forever()


def gunicorn(name: str, port: int) -> None:
    options = ["-k", "gthread", "--threads", str(THREADS), "-w", "1", "--keep-alive", "60"]
    options += ["--worker-connections", "20000", "-b", f"{HOST}:{port}", "--log-level", "error"]
    _exec("gunicorn", *options, f"apps:get({name!r})")


def granian(name: str, port: int) -> None:
    options = ["--interface", "wsgi", "--workers", "1", "--blocking-threads", str(THREADS)]
    options += ["--host", HOST, "--port", str(port), "--log-level", "error", "--factory"]
    os.environ["BENCH_APP"] = name
    _exec("granian", *options, "serve:granian_app")


def granian_app() -> t.Any:
    return apps.get(os.environ["BENCH_APP"])


def _exec(module: str, *arguments: str) -> None:
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


if __name__ == "__main__":
    server, app_name, text = sys.argv[1:]
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    serve = globals()[server]
    if server in ("gunicorn", "granian"):
        serve(app_name, int(text))
    else:
        serve(apps.get(app_name), int(text))
