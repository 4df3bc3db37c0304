"""The documents say what is: tables of settings, links, and the names of the API page."""

from __future__ import annotations

import importlib.util
import re
import types
from pathlib import Path

import flask_graceful
import pytest
from conftest import ROOT

DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])


def tables() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("tables", DOCS / "settings_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_settings_are_those_of_the_code() -> None:
    module = tables()
    for document in module.TABLES:
        assert (ROOT / document).read_text() == module.written(document), "run `make settings`"
    assert "| `read_timeout` | off | seconds |" in (ROOT / "README.md").read_text()


def anchors(document: Path) -> set[str]:
    """The names that headings have as targets of links."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_of_the_repository(document: Path) -> None:
    # The page of the site; what it has comes from the README.
    server = DOCS / "server.md"
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(ROOT / "README.md" if target == server else target), link


def test_the_api_page_has_every_public_name() -> None:
    text = (DOCS / "api.md").read_text()
    names = {*flask_graceful.__all__, *flask_graceful._FOR_FLASK, "create_blueprint"}
    missing = {name for name in names if not re.search(rf"\b{name}\b", text)}
    assert missing == set()


def test_every_page_is_in_the_site() -> None:
    trees = re.findall(r"^```{toctree}\n(.*?)^```", (DOCS / "index.md").read_text(), re.M | re.S)
    listed = {line for tree in trees for line in tree.splitlines() if re.match(r"[\w.-]+$", line)}
    assert listed == {path.stem for path in DOCS.glob("*.md")} - {"index"}
