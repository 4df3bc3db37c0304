"""gin's debug lines, on standard error. The router asks for them in debug mode only."""

from __future__ import annotations

import sys

from pkg.logging.safe import mask, printable


def _debug(text: str) -> None:
    print(f"[GIN-debug] {text}", file=sys.stderr, flush=True)


def warn_debug_mode() -> None:
    _debug(
        '[WARNING] Running in "debug" mode. Switch to "release" mode in production.\n'
        " - using env:\texport BLOG_RUN_MODE=release\n"
        ' - using code:\tdataclasses.replace(settings, run_mode="release")\n'
    )


def registered(method: str, path: str, handler: str, handlers: int) -> None:
    _debug(f"{method:<6} {path:<25} --> {handler} ({handlers} handlers)")


def redirecting(status: int, path: str, location: str) -> None:
    _debug(f"redirecting request {status}: {mask(printable(path))} --> {mask(location)}")
