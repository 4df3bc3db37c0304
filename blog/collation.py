"""The collation utf8mb4_general_ci for SQLite: letters compare without case and accent.

MySQL gives each character one weight, that of its base letter in upper case, and ignores blanks
at the end. Its table was made from Unicode 3.0, for letters of some scripts only; every other
character weighs itself. Here the weights come from Unicode 3.2, less what that added.
"""

from __future__ import annotations

from unicodedata import ucd_3_2_0 as unicode

# The blocks of 256 code points in which MySQL knows letters.
_BLOCKS = frozenset([0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x1E, 0x1F, 0x21, 0x24, 0xFF])
# Capitals that came after Unicode 3.0.
_YOUNGER = frozenset([0x220, 0x3D8, 0x48A, 0x4C5, 0x4C9, 0x4CD, *range(0x500, 0x510)])
_EXCEPTIONS = {"ß": "S", "Й": "Й", "й": "Й", "ϲ": "Σ", "ϵ": "ϵ", "ӏ": "ӏ"}


class _Weights(dict[int, int]):
    """Code point to weight, worked out when first met: a table for str.translate.

    Only the blocks with letters are kept: clients could send every other code point there is.
    """

    def __missing__(self, code: int) -> int:
        if code >> 8 not in _BLOCKS:
            return code
        known = unicode.category(chr(code)) != "Cn"
        weight = self[code] = _weight(chr(code)) if known else code
        return weight


def _weight(character: str) -> int:
    base = _base(character)
    upper = base.upper()
    if len(upper) > 1 or ord(upper) in _YOUNGER or unicode.category(upper) == "Cn":
        upper = base
    return ord(upper)


def _base(character: str) -> str:
    """The letter below the accents. What decomposes into one part is a variant, not accented."""
    parts = unicode.decomposition(character).split()
    if len(parts) == 2 and parts[0][0] != "<" and unicode.category(character)[0] == "L":
        return _base(chr(int(parts[0], 16)))
    return character


_weights = _Weights({ord(letter): ord(weight) for letter, weight in _EXCEPTIONS.items()})


def compare(left: str, right: str) -> int:
    """Negative, 0 or positive, as SQLite asks of a collation."""
    one, other = (text.rstrip(" ").translate(_weights) for text in (left, right))
    return (one > other) - (one < other)
