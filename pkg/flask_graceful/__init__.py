"""A graceful HTTP server for Flask and WSGI.

`Server` is Go's net/http.Server: `serve`, `shutdown`, `close`. `GracefulServer` is endless: SIGHUP
restarts it and SIGTERM stops it, and no request is lost.
"""

from .connection import Connection as Connection
from .connection import ConnState as ConnState
from .hooks import POST_SIGNAL as POST_SIGNAL
from .hooks import PRE_SIGNAL as PRE_SIGNAL
from .inheritance import has_parent as has_parent
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
from .tls import CertificateFileError as CertificateFileError
