"""docs/features.md names a test for each feature: all of them exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
FEATURES = (TESTS.parent / "docs" / "features.md").read_text()
TABLE = FEATURES.partition("\n## Table\n")[2].partition("\n## ")[0]


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


FUNCTIONS = {path.name: names_in(path) for path in TESTS.glob("test_*.py")}


def exists(words: str) -> bool:
    """Is there a `test_file.py`, a `test_file.py::test_name`, or a `test_name` in any file?"""
    file, _, name = words.rpartition("::")
    if name.endswith(".py"):
        return name in FUNCTIONS
    return any(name in FUNCTIONS[other] for other in FUNCTIONS if file in ("", other))


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"\b(?:test_\w+\.py::)?test_\w+(?:\.py)?", FEATURES)
    assert [words for words in named if not exists(words)] == []
    assert len(named) > 80


def test_every_feature_of_the_table_has_its_test() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("| ")]
    assert len(rows) > 80
    for row in rows:
        last = row.rstrip(" |").rpartition("| ")[2]
        assert last == "test" or re.fullmatch(r"`test_\w+\.py::test_\w+`", last), row


def test_every_system_has_its_part() -> None:
    systems = ["net/http", "endless", "grace", "graceful", "manners", "tableflip", "plugin"]
    assert re.findall(r"^### (.*)$", TABLE, re.MULTILINE)[: len(systems)] == systems
