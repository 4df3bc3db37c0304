"""The files that a program is made of, and which of them have changed.

Owns what each file was when it was loaded, and the look at what it is now.

Strategy: Python says what a source file is right before it reads it; that is remembered, so that a
change is one from what runs, whenever it was made: also while the program was starting. What was
imported before anybody could remember it has changed when it is younger than the process. Besides
what was imported, all Python files below the directories of the user's own code count, since the
one that is missing or broken is imported by nobody.

Rules: what is installed beside Python's own library counts only when it was imported, and that
library not at all. A file is told from another version of it by its time and its size.
"""

from __future__ import annotations

import fnmatch
import math
import os
import sys
import sysconfig
import time
import typing as t
from collections import deque
from importlib.machinery import SourceFileLoader

from .inheritance import inheritance, is_child

# Time of the last change, and size; None: there is no such file.
Stamp: t.TypeAlias = "tuple[float, int] | None"

# Directories that hold no code of the user's; hidden ones don't either.
_FOREIGN = {"__pycache__", "node_modules", "site-packages", "dist-packages"}
# What settings are read from before the application is.
_DOTENV = (".env", ".flaskenv")

# Files that are about to be imported, and what they are; from any thread.
_notes: deque[tuple[str, Stamp]] = deque()
_is_noting = False


def note_imports() -> None:
    """Remember what source files are when they are imported, from now on."""
    global _is_noting
    if _is_noting:
        return
    _is_noting = True
    path_stats = SourceFileLoader.path_stats

    def noted(loader: SourceFileLoader, path: str) -> t.Mapping[str, t.Any]:
        stats = path_stats(loader, path)
        _notes.append((os.path.abspath(path), (stats["mtime"], stats["size"])))
        return stats

    SourceFileLoader.path_stats = noted  # type: ignore[method-assign, assignment]


class Sources:
    """The files of this process.

    :param extra: files that count too, and directories whose Python files do.
    :param excluded: patterns (`fnmatch`) of paths that don't count.
    """

    def __init__(self, extra: t.Iterable[str] = (), excluded: t.Iterable[str] = ()) -> None:
        self._extra = [os.path.abspath(path) for path in (*extra, *_DOTENV)]
        self._excluded = list(excluded)
        self._library = _library()
        self._known: dict[str, Stamp] = {}
        self._loaded: set[str] = set()
        self._roots: list[str] = []
        self._whole: tuple[str, ...] = ()
        # Where something happens when a file changes, comes or goes.
        self.directories: set[str] = set()

    def begin(self) -> None:
        """Remember what files are, from now on when they are imported."""
        note_imports()
        self._known = self._look(self._find())
        modules = _modules()
        self._loaded.update(modules, self._extra)
        began, now = _begin_time(), time.time()
        for path in modules & self._known.keys():
            stamp = self._known[path]
            # Not those of a clock that is ahead: they would be younger after each restart.
            if stamp is not None and began < stamp[0] <= now:
                self._known[path] = None
        self._take_notes()

    def complete(self, whole: t.Iterable[str] = ()) -> None:
        """The program has been loaded: remember what else there is.

        :param whole: directories of which each file counts.
        """
        self._whole = tuple(os.path.abspath(path) + os.sep for path in whole)
        self._take_notes()
        for path, stamp in self._look(self._find()).items():
            # What is not loaded yet will be as it is then; the program may just have made it.
            if path not in self._loaded:
                self._known[path] = stamp

    def changed(self) -> list[str]:
        """The files that are not as they were when this was last asked, or they were loaded."""
        self._take_notes()
        paths = self._walk(self._roots) | self._known.keys()
        now = self._look(paths)
        changed = [path for path, stamp in now.items() if stamp != self._known.get(path)]
        for path in changed:
            self._known[path] = now[path]
        return sorted(changed)

    def concerns(self, path: str) -> bool:
        """Could there be a change when something has happened to this file or directory?"""
        is_source = path.endswith(".py") or path.startswith(self._whole)
        return is_source or path in self._known or os.path.isdir(path)

    def _take_notes(self) -> None:
        """What has been imported is as it was then."""
        while _notes:
            path, stamp = _notes.popleft()
            if self._counts(path):
                self._loaded.add(path)
                self._known[path] = stamp

    def _counts(self, path: str) -> bool:
        if path.startswith(self._library):
            return False
        return not any(fnmatch.fnmatch(path, pattern) for pattern in self._excluded)

    def _find(self) -> set[str]:
        """The files that count now; and settle below which directories."""
        own = [os.path.abspath(path) for path in sys.path]
        directories = [path for path in own if not _is_foreign(path, self._library)]
        self._roots = [path for path in [*directories, *self._extra] if os.path.isdir(path)]
        paths = self._walk(self._roots)
        paths.update(path for path in self._extra if not os.path.isdir(path))
        paths |= _modules()
        return {path for path in paths if self._counts(path)}

    def _walk(self, roots: t.Iterable[str]) -> set[str]:
        """The Python files below these directories, and what else counts."""
        paths: set[str] = set()
        self.directories = {os.path.dirname(path) for path in self._known}
        for root in roots:
            above = {root: True}
            for place, names, files in os.walk(root):
                found = [name for name in files if name.endswith(".py")]
                paths.update(os.path.join(place, name) for name in found)
                self.directories.add(place)
                # Code may be one directory further down, but not two.
                if "pyvenv.cfg" in files or not (found or above[place]):
                    names.clear()
                names[:] = [one for one in names if one not in _FOREIGN and one[0] != "."]
                above.update((os.path.join(place, name), bool(found)) for name in names)
        for root in self._whole:
            for place, _, files in os.walk(root):
                paths.update(os.path.join(place, name) for name in files)
                self.directories.add(place)
        return {path for path in paths if self._counts(path)}

    def _look(self, paths: t.Iterable[str]) -> dict[str, Stamp]:
        return {path: _stamp(path) for path in paths}


def _begin_time() -> float:
    """When this process was started, in seconds since the epoch; never, if nobody has noted it."""
    worker = inheritance().worker if is_child() else None
    return math.inf if worker is None else float(worker.get("begun", math.inf))


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime, status.st_size


def _modules() -> set[str]:
    """The files of the modules that have been imported."""
    paths = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return {os.path.abspath(path) for path in paths if path and os.path.isfile(path)}


def _library() -> tuple[str, ...]:
    """Where Python's own library is."""
    names = ("stdlib", "platstdlib")
    return tuple(sysconfig.get_path(name) + os.sep for name in names)


def _is_foreign(path: str, library: tuple[str, ...]) -> bool:
    """Is it a directory of programs or packages that were installed?"""
    installed = (*library, sysconfig.get_path("scripts") + os.sep)
    return f"{path}{os.sep}".startswith(installed) or not _FOREIGN.isdisjoint(path.split(os.sep))
