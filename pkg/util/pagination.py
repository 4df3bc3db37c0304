from __future__ import annotations

from pkg.util.number import INT64_MAX


def page_offset(page: int, size: int) -> int:
    """The rows before a page; what is no page counts as the first.

    Held within what a database takes as an offset, where every page is empty anyway.
    """
    return min((page - 1) * size, INT64_MAX) if page > 0 else 0
