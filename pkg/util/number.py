"""Numbers as the tutorial's program reads them."""

from __future__ import annotations

import re

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)

# int() alone would also take blanks, underscores and digits of other scripts.
_INTEGER = re.compile(r"([+-]?)0*([0-9]*)")


def to_int(text: str) -> int:
    """A base-10 integer held within 64 bits; text that is none counts as 0."""
    found = _INTEGER.fullmatch(text)
    if not found or not found[2]:
        return 0
    # More digits than fit are not converted at all: that takes long, or is refused.
    size = INT64_MAX + 1 if len(found[2]) > 19 else int(found[2])
    return max(INT64_MIN, min(INT64_MAX, -size if found[1] == "-" else size))
