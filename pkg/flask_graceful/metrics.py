"""Metrics for Prometheus, through prometheus_client.

Owns what is measured of requests, what is told of processes, and the page with all of it.

Strategy: requests are counted as they are answered, in prometheus_client's own registry, beside the
application's metrics. What a process does now is looked up when somebody asks. With
PROMETHEUS_MULTIPROC_DIR, prometheus_client adds up the requests of all processes, those that have
ended included, so a restart does not set them back. With workers, the supervisor is asked what all
of them do; without its control socket, only this one's numbers are there.

Rules: prometheus_client is imported only by an application that wants metrics, and nothing is
measured for one that does not. A label has few values, whatever clients send.
"""

from __future__ import annotations

import functools
import os
import re
import threading
import time
import typing as t
from collections import Counter

from .ask import AskError, Caller, Refused, find_by_setting, is_alive
from .census import census
from .health import Answer, state_of
from .restart import GracefulServer
from .worker import WorkerLife

if t.TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from .server import Server

# How long a supervisor may take to tell what its workers do, in seconds.
PATIENCE = 2.0
# For how long its answer counts.
FRESH_TIME = 0.2
_METHODS = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT".split())
_OF_A_PROCESS = re.compile(r"gauge_live[a-z]*_(\d+)\.db")


class Meters:
    """What is measured of requests, once in a process.

    :raises RuntimeError: prometheus_client is not installed, or can't have its files.
    """

    def __init__(self) -> None:
        # Its presence alone counts for prometheus_client.
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if directory is not None and not os.path.isdir(directory):
            raise RuntimeError(
                f"metrics: PROMETHEUS_MULTIPROC_DIR is {directory!r}, which is no directory: make "
                "it, or leave the variable out"
            )
        try:
            import prometheus_client
        except ImportError as error:
            raise RuntimeError(
                "metrics need prometheus_client, which can't be imported "
                f'({error}): pip install "flask-graceful[metrics]"'
            ) from None
        labels = ("method", "status")
        self.requests = prometheus_client.Counter(
            "graceful_requests", "Requests that were answered, or have failed.", labels
        )
        self.seconds = prometheus_client.Histogram(
            "graceful_request_seconds", "Time until the application began its answer.", labels
        )


@functools.cache
def meters() -> Meters:
    """Those of this process: prometheus_client bears no second ones of the same names."""
    return Meters()


class Measured:
    """A WSGI application whose requests are measured."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        self._meters = meters()

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> t.Iterable[bytes]:
        began = time.perf_counter()
        method = environ["REQUEST_METHOD"]
        status = ""

        def start(
            line: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
        ) -> t.Callable[[bytes], object]:
            nonlocal status
            status = line
            return start_response(line, headers, exc_info)

        try:
            return self._app(environ, start)
        except BaseException:
            status = "500"
            raise
        finally:
            labels = (method if method in _METHODS else "other", f"{status[:1] or '?'}xx")
            self._meters.requests.labels(*labels).inc()
            if environ.get("HTTP_UPGRADE", "").lower() != "websocket":
                # A WebSocket's answer is over when its client leaves.
                self._meters.seconds.labels(*labels).observe(time.perf_counter() - began)


def page(server: Server | None) -> Answer:
    """Everything, in Prometheus's text format."""
    import prometheus_client
    from prometheus_client.multiprocess import MultiProcessCollector

    registry: CollectorRegistry = prometheus_client.REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = prometheus_client.CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    now = prometheus_client.CollectorRegistry()
    if isinstance(server, GracefulServer):
        now.register(_Now(server))
    latest = prometheus_client.generate_latest
    return Answer("200 OK", prometheus_client.CONTENT_TYPE_LATEST, latest(registry) + latest(now))


class _Now:
    """A collector of prometheus_client: what a service does now."""

    def __init__(self, server: GracefulServer) -> None:
        self._server = server

    def collect(self) -> t.Iterator[Metric]:
        """As prometheus_client asks for it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        def by_state(name: str, help: str, counts: Counter[str]) -> Metric:
            family = GaugeMetricFamily(name, help, labels=["state"])
            for state, count in sorted(counts.items()):
                family.add_metric([state], count)
            return family

        generation, processes = _service(self._server)
        # Those who watch the status page are no requests; see its own numbers.
        requests = sum((one["requests"] or 0) - (one["watching"] or 0) for one in processes)
        tracked = sum(one["tracked"] or 0 for one in processes)
        connections: Counter[str] = Counter()
        for one in processes:
            connections.update(one["connections"] or {})
        states = Counter(one["state"] for one in processes)
        # But for the one that asks.
        in_flight = max(0, requests - 1)
        yield GaugeMetricFamily("graceful_requests_in_flight", "Requests that run.", in_flight)
        yield GaugeMetricFamily("graceful_tracked_work", "Work beside requests.", tracked)
        yield by_state("graceful_connections", "Open connections.", connections)
        yield by_state("graceful_processes", "Processes of the service.", states)
        yield GaugeMetricFamily("graceful_generation", "Of the code that serves.", generation)
        restarts = max(0, generation - 1)
        yield CounterMetricFamily("graceful_restarts", "Since the service began.", restarts)


def _service(server: GracefulServer) -> tuple[int, list[dict[str, t.Any]]]:
    """The generation that serves, and what each process of the service does now."""
    if isinstance(server._life, WorkerLife) and (status := _supervisor.status(server)):
        # Not that of the newest worker, which may never serve.
        return status["generation"], status["workers"]
    about = {"generation": server.generation, "state": state_of(server).name.lower()}
    moved = server._life.moved if server._life is not None else {}
    return server.generation, [{**census([server], moved), **about}]


class _Supervisor:
    """The supervisor as this process asks it: not twice at a time, nor again at once, however often
    the metrics are asked for. It hears only so many, and others need it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: dict[str, t.Any] = {}
        self._fresh_until = 0.0

    def status(self, server: GracefulServer) -> dict[str, t.Any]:
        """The state of the service; nothing when it can't be asked."""
        with self._lock:
            if time.monotonic() > self._fresh_until:
                self._ask(server.settings.control_socket)
                self._fresh_until = time.monotonic() + FRESH_TIME
            return self._said

    def _ask(self, setting: str) -> None:
        try:
            with Caller(find_by_setting(setting, os.getppid()), PATIENCE) as caller:
                self._said = caller.ask("status")
        except Refused:
            # It has too many to hear at the moment: what it said last.
            pass
        except AskError:
            self._said = {}


_supervisor = _Supervisor()


def forget(pid: int) -> None:
    """A process ends: its gauges do not count any more, in a directory that several share."""
    from prometheus_client.multiprocess import mark_process_dead

    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def forget_the_dead() -> None:
    """The same for those that were killed, and could not say so themselves."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not directory:
        return
    matches = map(_OF_A_PROCESS.fullmatch, os.listdir(directory))
    for pid in {int(match[1]) for match in matches if match}:
        if not is_alive(pid):
            forget(pid)
