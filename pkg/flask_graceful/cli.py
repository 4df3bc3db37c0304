"""The command that serves: `python -m flask_graceful [flags] module:app`.

Owns the flags and the exit statuses. The flags of settings come from the table in `settings`, the
words for the application are read by `loader`, and `GracefulServer` does the rest: `kill -1`
starts this command anew. A Flask application with the extension has its hooks called, and its
configuration counts where no flag says otherwise.

Rules: this exits, where the server raises. What the user got wrong is one line on stderr and
status 2; an address that can't be bound is one line and status 1; a stop by signal is status 0.
An exception of the user's own code keeps its traceback, from its first line there on, and is status
1 as Python has it.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import typing as t

from . import commands, settings
from .doors import START_ERRORS, is_misconfigured, print_failure, show_log
from .listeners import parse_address, parse_addresses
from .loader import FORMS, LoadError, load
from .restart import GracefulServer
from .server import ServerClosed
from .tls import CertificateFileError

if t.TYPE_CHECKING:
    from flask import Flask

    from .appstate import AppState

NAME = "flask_graceful"
DEFAULT_ADDRESS = ":8000"
MISUSED = 2
FAILED = 1


def main(arguments: t.Sequence[str] | None = None) -> t.NoReturn:
    """Serve the application that the arguments name, until a signal ends it.

    :param arguments: without the program's name; those of this process when None.
    :raises SystemExit: always, with the exit status.
    """
    parser = _parser()
    options = _read(parser, arguments)
    try:
        app = load(options.app)
    except LoadError as error:
        command = commands.named_like(options.app)
        meant = f"; or is it the command {command!r}?" if command else ""
        parser.error(f"{error}{meant}")
    except Exception as error:
        if is_misconfigured(error):
            parser.error(str(error))
        print_failure(error)
        sys.exit(FAILED)
    show_log()
    state = _extension_of(app)
    chosen = _chosen(options)
    if state is not None:
        chosen = _add_configured(parser, options, state, t.cast("Flask", app))
    server = GracefulServer(options.bind or DEFAULT_ADDRESS, app, **chosen)
    # Hooks of the application say what it wants to, and who calls the command needs the pid.
    server.always_logs_start = True
    try:
        if state is not None:
            state.attach(server, t.cast("Flask", app))
        if options.certfile:
            server.listen_and_serve_tls(options.certfile, options.keyfile)
        else:
            server.listen_and_serve()
    except ServerClosed:
        sys.exit(0)
    except START_ERRORS as error:
        _fail(MISUSED if isinstance(error, CertificateFileError) else FAILED, str(error))


def _extension_of(app: t.Any) -> AppState | None:
    """What the Flask extension keeps of the application, where it has it. Flask is not imported
    for that."""
    extensions = getattr(app, "extensions", None)
    return extensions.get("graceful") if isinstance(extensions, dict) else None


def _add_configured(
    parser: argparse.ArgumentParser, options: argparse.Namespace, state: AppState, app: Flask
) -> dict[str, t.Any]:
    """The settings, with those of the application where no flag says otherwise."""
    try:
        own, configured = state.configuration(app, _chosen(options))
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    options.bind = options.bind or own.bind
    if not options.certfile:
        options.certfile, options.keyfile = own.certfile, own.keyfile
    return configured


def _fail(status: int, message: str) -> t.NoReturn:
    print(f"{NAME}: {message}", file=sys.stderr)
    sys.exit(status)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> t.NoReturn:
        """One line; argparse would print the usage before it."""
        _fail(MISUSED, message)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: t.Any) -> None:
        """Say it, and end."""
        from .version import __version__

        print(f"flask-graceful {__version__}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    """The flags: those of the command, and one for each setting."""
    parser = _Parser(
        prog=f"python -m {NAME}",
        usage="%(prog)s [flags] module:app",
        description="Serve a WSGI application. kill -1 starts the command anew without losing a "
        "request, kill stops it after the requests in flight.",
        epilog="reload, status, requests and stop ask a server that runs: python -m flask_graceful "
        "status --help, and so on.",
        # Half a flag would change its meaning with the next one that begins alike.
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="the version of this package")
    parser.add_argument(
        "app",
        metavar="module:app",
        help=f"the application: {FORMS}; module alone is module:app, then module:application",
    )
    parser.add_argument(
        "--bind",
        metavar="ADDR",
        action="append",
        type=_address,
        help="host:port, :port (IPv4 and IPv6), [v6]:port, unix:/path or systemd:NAME; may be "
        f"given several times (default: {DEFAULT_ADDRESS})",
    )
    parser.add_argument("--certfile", metavar="FILE", help="certificate (PEM): serve HTTPS")
    parser.add_argument("--keyfile", metavar="FILE", help="private key of the certificate (PEM)")
    group = parser.add_argument_group("settings")
    for row in settings.rows():
        unit = "" if row.unit in (settings.COUNT, settings.SWITCH) else f"{row.unit}; "
        text = f"{row.help} ({unit}default: {row.default})".replace("%", "%%")
        if row.unit == settings.SWITCH:
            group.add_argument(row.flag, action="store_true", default=None, help=text)
            continue
        metavar = "N" if row.unit == settings.COUNT else row.unit.upper()
        group.add_argument(row.flag, metavar=metavar, type=_value_of(row.name), help=text)
    return parser


def _address(text: str) -> str:
    try:
        return parse_address(text).text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _value_of(name: str) -> t.Callable[[str], float | int | str]:
    def read(text: str) -> float | int | str:
        try:
            return settings.from_text(name, text)
        except (TypeError, ValueError) as error:
            # argparse names the flag.
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{name}: ")) from None

    return read


def _read(parser: argparse.ArgumentParser, arguments: t.Sequence[str] | None) -> argparse.Namespace:
    """The arguments, checked as far as that goes without the application."""
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse(parser, unknown)
    try:
        parse_addresses(options.bind or DEFAULT_ADDRESS)
    except ValueError as error:
        parser.error(f"argument --bind: {error}")
    try:
        settings.Settings(**_chosen(options))
    except ValueError as error:
        # Each is right by itself.
        parser.error(str(error))
    if bool(options.certfile) != bool(options.keyfile):
        given, other = ("certfile", "keyfile")[:: 1 if options.certfile else -1]
        parser.error(f"--{given} is given without --{other}; HTTPS needs both")
    if options.certfile:
        _check_certificate(parser, options.certfile, options.keyfile)
    return options


def _chosen(options: argparse.Namespace) -> dict[str, t.Any]:
    """The settings that were given."""
    values = {row.name: getattr(options, row.name) for row in settings.rows()}
    return {name: value for name, value in values.items() if value is not None}


def _refuse(parser: argparse.ArgumentParser, unknown: list[str]) -> t.NoReturn:
    flags = [text for text in unknown if text.startswith("-")]
    if not flags:
        parser.error(f"one application can be served; {unknown[0]!r} is one more")
    flag = flags[0].partition("=")[0]
    if flag in ("--host", "--port", "-p"):
        parser.error(f"unknown flag {flag!r}; where to listen is said by --bind HOST:PORT")
    known = [*("--bind", "--certfile", "--keyfile"), *(row.flag for row in settings.rows())]
    close = difflib.get_close_matches(flag, known, 1)
    parser.error(
        f"unknown flag {flag!r}; " + (f"did you mean {close[0]!r}?" if close else "see --help")
    )


def _check_certificate(parser: argparse.ArgumentParser, certfile: str, keyfile: str) -> None:
    """Say which file is wrong, before the application is imported."""
    # Python may have been built without it, and plain HTTP needs none.
    import ssl

    for flag, path in (("--certfile", certfile), ("--keyfile", keyfile)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            parser.error(f"{flag} {path!r}: {error.strerror}")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certfile, keyfile, _no_password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        files = f"--certfile {certfile!r}, --keyfile {keyfile!r}"
        parser.error(f"{files}: not a certificate with its key: {reason}")


def _no_password() -> t.NoReturn:
    raise ValueError("the key is encrypted, and a restart has nobody to ask for its password")
