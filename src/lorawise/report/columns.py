"""Texts side by side, as wide as the terminal: one column a text; one below the other where columns would be thin."""

import textwrap
from collections.abc import Mapping
from itertools import zip_longest

from lorawise.report import words

THINNEST = 24  # characters of a column that can still be read
_GAP = "  "


def side_by_side(texts: Mapping[str, str], width: int) -> str:
    """`texts` by their headings; control characters are shown, not obeyed."""
    texts = {words.visible(heading): text for heading, text in texts.items()}
    across = (width - len(_GAP) * (len(texts) - 1)) // max(1, len(texts))
    if across < THINNEST:
        return "\n\n".join(f"{heading}\n" + "\n".join(_wrapped(text, width)) for heading, text in texts.items())
    blocks = [[heading[:across], "─" * across, *_wrapped(text, across)] for heading, text in texts.items()]
    lines = [_GAP.join(cell.ljust(across) for cell in row) for row in zip_longest(*blocks, fillvalue="")]
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for paragraph in words.visible(text).expandtabs(4).split("\n"):
        lines += textwrap.wrap(paragraph, width, drop_whitespace=False, replace_whitespace=False) or [""]
    return lines
