"""Which release of the package this is: `flask_graceful.__version__`.

Imported only when somebody asks: to look it up takes longer than most imports.
"""

from __future__ import annotations

from importlib import metadata


def _installed() -> str:
    try:
        return metadata.version("flask-graceful")
    except metadata.PackageNotFoundError:
        # A directory on Python's path.
        return "unknown"


__version__ = _installed()
