"""Every row of the specification is accounted for, of Go's http.Server and of the systems that
build on it: a test carries its id, or docs/differences.md says what is done instead."""

from __future__ import annotations

import ast
import re
import typing as t
from pathlib import Path

TESTS = Path(__file__).parent
DIFFERENCES = TESTS.parent / "docs" / "differences.md"

LAST_OF_KIND = {
    "L": 10,  # lifecycle
    "S": 18,  # shutdown
    "C": 3,  # close
    "KA": 4,  # the keep-alive switch
    "K": 8,  # states of connections
    "TM": 17,  # timeouts
    "P": 18,  # request heads
    "B": 20,  # request bodies
    "R": 12,  # response framing
    "A": 4,  # reuse
    "F": 7,  # failures and log lines
    "X": 5,  # TLS
    "Y": 5,  # accept loop, sockets, contexts
    "E": 19,  # fvbock/endless
    "G": 16,  # facebookgo/grace
    "H": 14,  # tylerb/graceful
    "M": 12,  # braintree/manners
    "U": 16,  # cloudflare/tableflip
}
ROWS = {f"{kind}{i}" for kind, last in LAST_OF_KIND.items() for i in range(1, last + 1)}

_ID = r"(?:KA|TM|[LSCKPBRAFXYEGHMU])[1-9][0-9]?"


def in_tests() -> set[str]:
    """Ids in names and docstrings of tests, and at the start of what names their cases."""
    found: set[str] = set()
    for path in TESTS.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found |= _ids_of(node)
    return found


def _ids_of(node: ast.AST) -> set[str]:
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
        named = {part for part in node.name.split("_") if re.fullmatch(_ID, part)}
        return named | set(re.findall(rf"\b{_ID}\b", ast.get_docstring(node) or ""))
    if isinstance(node, ast.Dict):
        return {id for key in node.keys for id in _leading_id(key)}
    return set()


def _leading_id(key: ast.expr | None) -> t.Iterator[str]:
    if isinstance(key, ast.Constant) and isinstance(key.value, str):
        match = re.match(rf"({_ID}) ", key.value)
        if match:
            yield match[1]


def in_differences() -> set[str]:
    """Ids in the first columns of the tables of differences."""
    cells = re.findall(r"^\| ([^|]*) \|", DIFFERENCES.read_text(), re.MULTILINE)
    return {id for cell in cells for id in cell.split(", ") if re.fullmatch(_ID, id)}


def test_every_row_is_accounted_for() -> None:
    accounted = in_tests() | in_differences()
    assert sorted(accounted - ROWS) == [], "no such rows"
    assert sorted(ROWS - accounted) == [], "rows that nothing accounts for"
