"""A graceful HTTP server for Flask and WSGI.

`Server` is Go's net/http.Server: `serve`, `shutdown`, `close`. `GracefulServer` is endless: SIGHUP
restarts it and SIGTERM stops it, and no request is lost. `Graceful` is the Flask extension; who
has no Flask does not need it.
"""

import importlib
import os
import typing as t

# At once: it takes what is meant for this process alone out of the environment.
from .inheritance import has_parent as has_parent
from .inheritance import is_child

if is_child() and os.environ.get("WERKZEUG_RUN_MAIN") == "true":
    # It serves in the development mode: what it imports from now on is looked after.
    from .sources import note_imports

    note_imports()

if t.TYPE_CHECKING:
    from .appstate import draining_started as draining_started
    from .appstate import restart_started as restart_started
    from .appstate import serving_started as serving_started
    from .appstate import shutdown_finished as shutdown_finished
    from .connection import Connection as Connection
    from .control import ControlError as ControlError
    from .extension import Graceful as Graceful
    from .hooks import POST_SIGNAL as POST_SIGNAL
    from .hooks import PRE_SIGNAL as PRE_SIGNAL
    from .life import State as State
    from .listeners import ListenError as ListenError
    from .pidfile import PidFileError as PidFileError
    from .restart import GracefulServer as GracefulServer
    from .restart import RestartError as RestartError
    from .restart import run as run
    from .restart import serve as serve
    from .running import RunningRequest as RunningRequest
    from .server import Server as Server
    from .server import ServerClosed as ServerClosed
    from .server import ShutdownTimeout as ShutdownTimeout
    from .settings import Settings as Settings
    from .states import ConnState as ConnState
    from .tls import CertificateFileError as CertificateFileError
    from .version import __version__ as __version__

# The others when they are asked for (PEP 562): the supervisor and the commands need no server.
_PLACES = {
    "CertificateFileError": "tls",
    "ConnState": "states",
    "Connection": "connection",
    "ControlError": "control",
    "GracefulServer": "restart",
    "ListenError": "listeners",
    "POST_SIGNAL": "hooks",
    "PRE_SIGNAL": "hooks",
    "PidFileError": "pidfile",
    "RestartError": "restart",
    "RunningRequest": "running",
    "Server": "server",
    "ServerClosed": "server",
    "Settings": "settings",
    "ShutdownTimeout": "server",
    "State": "life",
    "run": "restart",
    "serve": "restart",
}
# Not in __all__: without Flask, all the others are there.
_FOR_FLASK = {
    "Graceful": "extension",
    "draining_started": "appstate",
    "restart_started": "appstate",
    "serving_started": "appstate",
    "shutdown_finished": "appstate",
}
# What is missing where Flask is: itself, or what it brings.
_FLASKS = {"flask", "werkzeug", "click", "blinker"}
__all__ = ["has_parent", *_PLACES]


def __getattr__(name: str) -> t.Any:
    place = "version" if name == "__version__" else _PLACES.get(name) or _FOR_FLASK.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{place}", __name__)
    except ModuleNotFoundError as error:
        if name not in _FOR_FLASK or error.name not in _FLASKS:
            raise
        remedy = "pip install 'flask-graceful[flask]'"
        raise ImportError(f"{name} needs Flask: {remedy}", name=name) from None
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *_FOR_FLASK, "__version__"})
