"""The documentation as a site: `make docs`.

The pages are markdown that reads well where it lies, too. What a page of the repository leads to
outside of docs/ is led to its place in the site here.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
README = HERE.parent / "README.md"

project = "flask-graceful"
author = "the flask-graceful maintainers"
copyright = f"2026, {author}"
release = version = importlib.metadata.version(project)

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
# Single backticks mean code in docstrings, too.
default_role = "code"
# A block that does not say what it is is what a terminal shows.
highlight_language = "none"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
maximum_signature_line_length = 80

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
# The theme's other pages lead out of here.
html_theme_options = {"top_of_page_buttons": []}

_OUT_OF_DOCS = {
    "../README.md": "server.md",
    "../CHANGES.md": "changes.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../SECURITY.md": "security.md",
}
# Pages that are files of the root.
_WHOLE = {
    "changes": "CHANGES.md",
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
}


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """The text of a page of the site."""
    text = source[0]
    if docname in _WHOLE:
        path = HERE.parent / _WHOLE[docname]
        text = _as_in_docs(path.read_text())
        app.env.note_dependency(str(path))
    elif docname == "server":
        part = _part(
            README.read_text(), "## Use the server in your own Flask app", "## The blog API"
        )
        text = f"# The server\n{_as_in_docs(part)}"
        app.env.note_dependency(str(README))
    for outside, inside in _OUT_OF_DOCS.items():
        text = text.replace(f"]({outside}", f"]({inside}")
    source[0] = text


def _as_in_docs(text: str) -> str:
    """A text of the repository's root with its links as they are from docs/."""
    return re.sub(r"\]\((?!https?:|#)", "](../", text).replace("](../docs/", "](")


def _part(text: str, first: str, after: str) -> str:
    """The chapters from one heading to another one."""
    return text[text.index(f"\n{first}\n") : text.index(f"\n{after}\n")]


def plain(_app: Sphinx, *words: object) -> tuple[str | None, str | None]:
    """A signature without the name that `typing` has in the code."""
    signature, result = (None if word is None else str(word) for word in words[-2:])
    return signature and signature.replace("t.", ""), result


def setup(app: Sphinx) -> None:
    app.connect("source-read", read)
    app.connect("autodoc-process-signature", plain)
