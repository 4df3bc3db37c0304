"""How this program was started, and how the same is started again.

Owns the words of the command and the directory where it was given.

Rules: words and directory are resolved anew at each start. A relative path leads from the directory
by the name that the user had for it, so that a symbolic link to another release is followed; a name
without a path is looked up in PATH.
"""

from __future__ import annotations

import os
import shutil
import sys
import typing as t


class Command(t.NamedTuple):
    """A command as it was given.

    :param script: where in the words a script is that was started as a program; 0: there is none.
    """

    words: list[str]
    directory: str
    script: int = 0

    def resolved(self) -> list[str]:
        """The words with which the same program is started now."""
        if self.script:
            # By its interpreter of now, which may be another release's.
            script = os.path.join(self.directory, self.words[self.script])
            if os.access(script, os.X_OK):
                return [script, *self.words[self.script + 1 :]]
        return [self.interpreter(), *self.words[1:]]

    def interpreter(self) -> str:
        """The program that runs the others."""
        program = self.words[0]
        if os.sep in program:
            # Not sys.executable: that has the directory in it, without its links.
            program = os.path.join(self.directory, program)
        else:
            program = shutil.which(program) or program
        return program if os.access(program, os.X_OK) else sys.executable


def _start_directory() -> str:
    """Where the command was given, as the user wrote it: a symbolic link in it may have moved on
    to a new release when the command is repeated."""
    here = os.getcwd()
    logical = os.environ.get("PWD", here)
    try:
        return logical if os.path.samefile(logical, here) else here
    except OSError:
        return here


def _script_place() -> int:
    """Where in the command a script is that was started as a program: after the words of its first
    line, which name the interpreter. 0: there is none."""
    for place, word in enumerate(sys.orig_argv[1:3], 1):
        try:
            with open(word, "rb") as file:
                line = os.fsdecode(file.readline(512))
        except (OSError, ValueError):
            continue
        if line.startswith("#!") and line[2:].strip().split(None, 1) == sys.orig_argv[:place]:
            return place
    return 0


# Taken at import: the application may go elsewhere.
OWN = Command(sys.orig_argv or [sys.executable], _start_directory(), _script_place())
