"""The architecture, enforced: who may import whom, and how large a module may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pkg" / "flask_graceful"

# From the ground up: a module imports only what stands before it. The table in docs/design.md.
FLOORS = [
    ["settings", "errors", "states", "version"],
    ["body", "http11", "files", "wsgi"],
    ["holder", "handshakes", "sockfile", "listeners", "activation", "peers", "places"],
    ["deadlines", "poller", "signals", "meter", "tls", "ranges", "channel", "shares", "running"],
    ["wire", "hijack", "exchange", "timekeeper", "timed", "crew", "handover", "host", "owned"],
    ["connection", "secure"],
    ["acceptor"],
    ["work", "roster", "server", "relief"],
    ["loop", "output", "pidfile", "inheritance", "heirlooms", "command", "child"],
    ["history", "inquiry", "census", "asker", "control"],
    ["departures", "predecessor", "heirs", "successor", "succession", "desk"],
    ["hooks", "life", "sole", "worker"],
    ["notify", "reexec", "staff", "team", "consent", "turnover", "origin"],
    ["reload", "replacement", "ending", "office", "supervisor"],
    ["promotion", "restart"],
    ["doors", "loader", "ask", "commands", "cli", "__main__"],
    ["configuration", "health", "metrics", "statuspage", "appstate"],
    ["sources", "notice", "development", "apprun", "extension", "flask_commands"],
    ["__init__"],
]
ORDER = [module for floor in FLOORS for module in floor]
# Those that Flask users have, and that may know Flask.
FOR_FLASK = {"appstate", "apprun", "extension", "statuspage", "development", "flask_commands"}
# Modules without sockets and threads.
PURE = set(FLOORS[0] + FLOORS[1])
IMPURE = {"socket", "threading", "select", "selectors", "signal", "subprocess", "os"}

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def imports(module: str) -> tuple[set[str], set[str]]:
    """What a module imports at run time: of the package, and from elsewhere."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "t.TYPE_CHECKING"
        for child in ast.walk(node)
    }
    inner: set[str] = set()
    outer: set[str] = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            inner |= {node.module} if node.module else {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            outer.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            outer |= {name.name.split(".")[0] for name in node.names}
    return inner, outer


def test_every_module_has_a_floor() -> None:
    assert set(MODULES) == set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    inner, outer = imports(module)
    assert inner <= set(ORDER[: ORDER.index(module)]), inner
    assert not outer & {"blog", "routers", "pkg"}, outer
    if module not in FOR_FLASK:
        assert not outer & {"flask", "werkzeug", "click", "blinker"}, outer
    if module in PURE:
        assert not outer & IMPURE, outer


@pytest.mark.parametrize("module", ["commands", "control", "census"])
def test_commands_and_what_answers_them_need_no_server(module: str) -> None:
    needed = {module}
    while more := {other for one in needed for other in imports(one)[0]} - needed:
        needed |= more
    assert not needed & {"server", "connection", "wsgi", "http11", "restart", "loader"}, needed


def test_supervisor_imports_nothing_that_serves() -> None:
    """In fact, and not only by the words in its modules."""
    code = "import sys, flask_graceful.supervisor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "flask_graceful.supervisor" in loaded
    for name in ("server", "connection", "wsgi", "http11", "restart", "worker", "crew", "tls"):
        assert f"flask_graceful.{name}" not in loaded
    assert not loaded & {"flask", "werkzeug", "click", "httptools", "ssl", "asyncio"}


@pytest.mark.parametrize("module", MODULES)
def test_module_fits_a_head_and_functions_a_screen(module: str) -> None:
    text = (PACKAGE / f"{module}.py").read_text()
    assert len(text.splitlines()) <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{module}.{node.name} has {length} lines"
            assert ast.get_docstring(node) or length <= 30, f"{module}.{node.name} says nothing"
