"""A notebook's code cells as one script, with the line of the .ipynb file for every line of code.

Shell and magic lines become `pass`; a cell that is another language (`%%bash`) is left out. Jupyter writes one line of
source a line of its JSON, so each is found again by searching forward.
"""

import json
from typing import Any

from lorawise.checking.files import Unreadable


def read_notebook(text: str) -> tuple[str, dict[int, int]]:
    """(Python, its line → the file's line). Raises `Unreadable` for what is not a notebook."""
    try:
        parsed: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("LW002", "not a notebook: its JSON cannot be read") from None
    cells = parsed.get("cells") if isinstance(parsed, dict) else None
    if not isinstance(cells, list):
        raise Unreadable("LW003", "holds no cells")
    code: list[str] = []
    places: dict[int, int] = {}
    position, line = 0, 1
    for cell in cells:
        for source in _code(cell):
            needle = json.dumps(source, ensure_ascii=False)[1:-1]
            found = text.find(needle, position) if needle else -1
            if found < 0 and needle:
                found = text.find(json.dumps(source)[1:-1], position)
            if found >= 0:
                line += text.count("\n", position, found)
                position = found
            code.append(_plain(source))
            places[len(code)] = line
    return "\n".join(code) + "\n", places


def _code(cell: object) -> list[str]:
    if not isinstance(cell, dict) or cell.get("cell_type") != "code":
        return []
    source = cell.get("source")
    joined = "".join(part for part in source if isinstance(part, str)) if isinstance(source, list) else source
    if not isinstance(joined, str) or joined.lstrip().startswith("%%"):
        return []
    return joined.split("\n")


def _plain(line: str) -> str:
    stripped = line.lstrip()
    if stripped[:1] in ("!", "%", "?"):
        return line[: len(line) - len(stripped)] + "pass"
    return line
