"""Writes the tables of settings into the documents: `make settings`.

A document keeps everything around its table. The tables come from `flask_graceful.settings` and
`flask_graceful.configuration`, where settings and the extension's options are declared;
`tests/test_documents.py` compares them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from flask_graceful import configuration
from flask_graceful.settings import BYTES, SECONDS, markdown_rows, rows

ROOT = Path(__file__).parent.parent


def ways_to_set() -> Iterable[str]:
    """Each setting with its flag and its key of `app.config`."""
    yield "| setting, flag, key | default | |"
    yield "|---|---|---|"
    for row in rows():
        names = f"`{row.name}`<br>`{row.flag}`<br>`{configuration.key_of(row.name)}`"
        unit = {SECONDS: " s", BYTES: " bytes"}.get(row.unit, "")
        default = row.default if row.default == "off" else row.default + unit
        yield f"| {names} | {default} | {row.help} |"


# The document, and what its table is made from.
TABLES: dict[str, Callable[[], Iterable[str]]] = {
    "README.md": markdown_rows,
    "docs/command.md": markdown_rows,
    "docs/extension.md": configuration.markdown_rows,
    "docs/settings.md": ways_to_set,
}


def written(document: str) -> str:
    """The document with the table that it should have."""
    table = list(TABLES[document]())
    text = (ROOT / document).read_text()
    old = re.compile(rf"^{re.escape(table[0])}\n(?:\|.*\n)+", re.MULTILINE)
    new, count = old.subn(lambda _: "\n".join(table) + "\n", text)
    if count != 1:
        raise ValueError(f"{document}: expected one table that begins with {table[0]!r}")
    return new


if __name__ == "__main__":
    for name in TABLES:
        (ROOT / name).write_text(written(name))
