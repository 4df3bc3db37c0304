"""A graceful HTTP server for Flask and WSGI.

`Server` is Go's net/http.Server: `serve`, `shutdown`, `close`. `GracefulServer` is endless: SIGHUP
restarts it and SIGTERM stops it, and no request is lost.
"""

import importlib
import typing as t

# At once: it takes what is meant for this process alone out of the environment.
from .inheritance import has_parent as has_parent

if t.TYPE_CHECKING:
    from .connection import Connection as Connection
    from .control import ControlError as ControlError
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
__all__ = ["has_parent", *_PLACES]


def __getattr__(name: str) -> t.Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
