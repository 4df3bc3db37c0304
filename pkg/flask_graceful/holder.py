"""Who listens on a TCP port, for the message that somebody does.

Owns the reading of /proc for it; on a system without, nothing is known.
"""

from __future__ import annotations

import os
import sys
import typing as t

SUPERVISOR = "flask_graceful.supervisor"
# How much of a command is shown.
MOST = 80


def holder_text(port: int) -> str:
    """` (held by pid 1: command)`; empty when it can't be told."""
    inodes = set(_listening_inodes(port))
    if not inodes or not sys.platform.startswith("linux"):
        return ""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _holds_socket(entry, inodes):
            return f" (held by pid {entry}: {_command(entry)})"
    return ""


def _listening_inodes(port: int) -> t.Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        # Local address is the second column, state the fourth (0A is LISTEN), inode the tenth.
        for row in rows:
            if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{row[9]}]"


def _holds_socket(pid: str, inodes: set[str]) -> bool:
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for fd in fds:
        try:
            if os.readlink(f"/proc/{pid}/fd/{fd}") in inodes:
                return True
        except OSError:
            continue
    return False


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode("utf-8", "replace").split("\0")
    except OSError:
        return "?"
    # Where the program is says little; what a supervisor runs stands behind its own module.
    words[0] = os.path.basename(words[0])
    if words[1:3] == ["-m", SUPERVISOR]:
        del words[1:3]
    text = " ".join(" ".join(words).split()) or "?"
    return text if len(text) <= MOST else f"{text[:MOST]}..."
