"""The file log: runtime/logs/logYYYYMMDD.log, named after the day on which the process started.

It tells which rules a request broke. That is rare, so each line opens the file anew: nothing stays
open over a restart, and a file moved away comes back by itself.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

_GO_LEVELS = {"WARNING": "WARN", "CRITICAL": "FATAL"}


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = _GO_LEVELS.get(record.levelname, record.levelname)
        stamp = self.formatTime(record, "%Y/%m/%d %H:%M:%S")
        return f"[{level}][{record.filename}:{record.lineno}]{stamp} [{record.getMessage()}]\n"


class _AppendingHandler(logging.Handler):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.setFormatter(_Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode("utf-8", "backslashreplace")
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                # One write: processes that share the file do not cut each other's lines.
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError:
            self.handleError(record)


def open_file_log(directory: Path) -> logging.Logger:
    # Not by getLogger: the name would be shared by all applications of the process.
    logger = logging.Logger("blog.file", logging.DEBUG)
    logger.addHandler(_AppendingHandler(directory.absolute() / time.strftime("log%Y%m%d.log")))
    return logger
