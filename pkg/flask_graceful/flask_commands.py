"""`flask graceful`: the commands beside Flask's own.

Owns the flags of `flask graceful run`, what the application's configuration says of them, and how
errors look. Flask finds the application; `commands` has what the other commands do.

Strategy: the flags of `flask run` are taken from `flask run` itself, with their variables
(FLASK_RUN_PORT); those of settings come from the table in `settings`. A restart is the same command
once more.

Rules: a flag comes before its variable, a variable before the configuration, and that before the
default. Every `flask` command imports this module, so what serves is imported only by `run`; no
other command loads the application.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import os
import typing as t
from functools import partial

import click
from flask.cli import ScriptInfo, pass_script_info, run_command, show_server_banner
from flask.helpers import get_debug_flag

# `command` is needed later, but the directory may be another one then.
from . import command as command
from . import commands, settings
from .inheritance import is_child

if t.TYPE_CHECKING:
    from flask import Flask

    from .appstate import Certificate
    from .restart import GracefulServer
    from .sources import Sources

# Of `flask run`.
_TAKEN = (
    "host port debug cert key reload debugger with_threads extra_files exclude_patterns".split()
)


@click.group("graceful", help="Serve the application gracefully, and ask a server that runs.")
def cli() -> None:
    pass


@contextlib.contextmanager
def _without_usage() -> t.Iterator[None]:
    """Whoever has changed the code has not misused the command, and is not told how to use it."""
    try:
        yield
    except click.UsageError as error:
        if is_child():
            raise click.ClickException(error.format_message()) from None
        raise


@_without_usage()
def _run(info: ScriptInfo, **given: t.Any) -> None:
    """Serve the application.

    kill -1 starts the code anew without losing a request, kill stops it after the requests in
    flight. With --debug the code is started anew when a file changes, the old code goes on serving
    if that fails, and exceptions in requests are shown by Werkzeug's debugger.
    """
    _check_variables()
    chosen = {row.name: given.pop(row.name) for row in settings.rows()}
    flags = {name: value for name, value in chosen.items() if value is not None}
    debug = get_debug_flag()
    reload, debugger = (
        debug if given[name] is None else given[name] for name in ("reload", "debugger")
    )
    if not given["with_threads"]:
        flags.setdefault("threads", 1)
    if reload or debugger:
        _check_single(flags)
        # The frames of the debugger are in one process; and the process in the foreground of the
        # terminal is to stay there.
        flags["workers"] = 1
    sources = _sources(given) if reload else None
    if not {"host", "port"} <= _defaults():
        flags["bind"] = _address(given["host"], given["port"])
    app = _load(info)
    if not is_child():
        show_server_banner(debug, info.app_import_path)
    _serve(app, flags, given["cert"], sources, debugger)


def _defaults() -> set[str]:
    """The flags that neither the command nor the environment has given."""
    ctx = click.get_current_context()
    source = click.core.ParameterSource.DEFAULT
    return {name for name in ctx.params if ctx.get_parameter_source(name) is source}


def _check_variables() -> None:
    """A variable that is misspelt would be overlooked.

    :raises UsageError: there is one.
    """
    prefix = f"{click.get_current_context().auto_envvar_prefix}_"
    known = [f"{prefix}{name.upper()}" for name in click.get_current_context().params]
    for name in os.environ:
        if name.startswith(prefix) and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else "see --help"
            raise click.UsageError(f"unknown variable {name!r}; {hint}")


def _check_single(flags: dict[str, t.Any]) -> None:
    count = flags.get("workers", 1)
    if count > 1:
        raise click.UsageError(
            f"--workers {count}: the debugger and the restart on changes need a single worker; "
            "leave out --workers, or --debug"
        )


# The application.


def _sources(given: dict[str, t.Any]) -> Sources:
    """What the program is made of, remembered from now on."""
    from .sources import Sources

    sources = Sources(given["extra_files"] or (), given["exclude_patterns"] or ())
    sources.begin()
    return sources


def _load(info: ScriptInfo) -> Flask:
    """
    :raises NoAppException: Flask does not find it; SystemExit: it raises, and that is shown.
    :raises UsageError: its configuration is wrong.
    """
    try:
        return info.load_app()
    except click.ClickException:
        raise
    except Exception as error:
        from .doors import is_misconfigured, print_failure

        if is_misconfigured(error):
            raise click.UsageError(str(error)) from None
        print_failure(error)
        raise SystemExit(1) from None


# The server.


def _address(host: str, port: int) -> str:
    from .listeners import parse_address

    if host.startswith(("unix:", "systemd:")):
        text = host.replace("unix://", "unix:", 1)
    else:
        text = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
    try:
        return parse_address(text).text
    except ValueError as error:
        raise click.UsageError(f"--host: {error}") from None


def _make_server(app: Flask, options: dict[str, t.Any], certificate: Certificate) -> GracefulServer:
    from .appstate import make_server

    try:
        return make_server(app, options, certificate)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None


def _serve(
    app: Flask,
    options: dict[str, t.Any],
    certificate: Certificate,
    sources: Sources | None,
    has_debugger: bool,
) -> None:
    """Serve until a signal ends it."""
    from .doors import START_ERRORS, show_log
    from .restart import serve
    from .server import ServerClosed

    develops = sources is not None or has_debugger
    show_log(develops)
    try:
        server = _make_server(app, options, certificate)
        # Whoever calls the command needs the pid, whatever hooks the application has.
        server.always_logs_start = True
        if not develops:
            serve(server)
            return
        from .development import Development

        Development(app, server, sources, has_debugger).serve()
    except ServerClosed:
        # Told to stop before it began.
        pass
    except START_ERRORS as error:
        raise click.ClickException(str(error)) from None


# The flags.


def _read(row: settings.Row, ctx: click.Context, param: click.Parameter, value: t.Any) -> t.Any:
    """The value of a setting, which a flag or its variable has."""
    if not isinstance(value, str):
        return value
    try:
        return settings.from_text(row.name, value)
    except (TypeError, ValueError) as error:
        # click names the flag.
        reason = str(error).removeprefix(f"{row.name}: ")
        raise click.BadParameter(reason, ctx=ctx, param=param) from None


def _flask_options() -> t.Iterator[click.Parameter]:
    for param in run_command.params:
        if param.name in _TAKEN:
            own = copy.copy(param)
            name = str(param.name).upper()
            own.envvar = [f"FLASK_GRACEFUL_RUN_{name}", f"FLASK_RUN_{name}"]
            if own.name == "port":
                own.type = click.IntRange(0, settings.MOST_PORT)
            yield own
    # What the other command has.
    yield click.Option(["--bind"], callback=_refuse_bind, expose_value=False, hidden=True)


def _refuse_bind(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.UsageError(
            "--bind is a flag of `python -m flask_graceful`; --host and --port say where, or "
            "GRACEFUL_BIND in app.config, which may be several addresses"
        )


def _setting_options() -> t.Iterator[click.Option]:
    for row in settings.rows():
        unit = "" if row.unit in (settings.COUNT, settings.SWITCH) else f"{row.unit}; "
        text = f"{row.help} ({unit}default: {row.default})"
        if row.unit == settings.SWITCH:
            flags = f"{row.flag}/--no-{row.flag.removeprefix('--')}"
            yield click.Option([flags], default=None, help=text)
            continue
        metavar = "N" if row.unit == settings.COUNT else row.unit.upper()
        yield click.Option([row.flag], callback=partial(_read, row), metavar=metavar, help=text)


def _asking(name: str) -> click.Command:
    """A command that asks a server, which has its own flags."""

    def ask(arguments: tuple[str, ...]) -> None:
        commands.main([name, *arguments], "flask graceful")

    return click.Command(
        name,
        callback=ask,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        help=commands.SUMMARIES[name].capitalize() + ".",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )


cli.add_command(
    click.Command(
        "run",
        callback=pass_script_info(_run),
        params=[*_flask_options(), *_setting_options()],
        help=_run.__doc__,
        short_help="Serve the application.",
    )
)
for _name in commands.NAMES:
    cli.add_command(_asking(_name))
