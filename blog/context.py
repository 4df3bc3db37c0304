"""What belongs to one application, found through Flask's current_app."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from flask import Flask, current_app

from blog.models import Models, map_models
from pkg.logging import open_file_log
from pkg.setting import Settings

LOG_DIRECTORY = Path("runtime/logs")
# A check holds 32 MiB while it runs: this many run at once, however many people log in.
_PASSWORD_CHECKS = 4


@dataclass
class Context:
    settings: Settings
    models: Models
    file_log: logging.Logger
    password_checks: threading.BoundedSemaphore
    tables_exist: bool = False


def init_app(app: Flask, settings: Settings) -> None:
    app.extensions["blog"] = Context(
        settings=settings,
        models=map_models(settings.database.table_prefix),
        file_log=open_file_log(LOG_DIRECTORY),
        password_checks=threading.BoundedSemaphore(settings.server.share(_PASSWORD_CHECKS)),
    )


def context() -> Context:
    return cast(Context, current_app.extensions["blog"])
