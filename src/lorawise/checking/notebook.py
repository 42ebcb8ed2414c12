"""A notebook's code cells as one script, with the line of the .ipynb file for every line of code.

Shell and magic lines become `pass`; a cell that is another language (`%%bash`), or that is no plain Python after that,
is left out: one odd cell does not hide the rest. Jupyter writes one line of source a line of its JSON, so each is found
again by searching forward.
"""

import ast
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lorawise.checking.files import Unreadable

PYTHON_MAGICS = ("%%capture", "%%time", "%%timeit", "%%prun")  # what follows is Python all the same


@dataclass(frozen=True, kw_only=True)
class Notebook:
    """`lines`: line of `code` → line of the file; `left_out`: where cells begin that could not be read."""

    code: str
    lines: dict[int, int]
    left_out: tuple[int, ...]


def read_notebook(text: str) -> Notebook:
    """Raises `Unreadable` for what is not a notebook."""
    try:
        parsed: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("LW002", "not a notebook: its JSON cannot be read") from None
    cells = parsed.get("cells") if isinstance(parsed, dict) else None
    if not isinstance(cells, list):
        raise Unreadable("LW003", "holds no cells")
    code: list[str] = []
    places: dict[int, int] = {}
    left_out: list[int] = []
    position, line = 0, 1
    for cell in cells:
        written = _code(cell)
        plain = list(_plain(written))
        readable = _is_python(plain)
        for index, source in enumerate(written):
            needle = json.dumps(source, ensure_ascii=False)[1:-1]
            found = text.find(needle, position) if needle else -1
            if found < 0 and needle:
                found = text.find(json.dumps(source)[1:-1], position)
            if found >= 0:
                line += text.count("\n", position, found)
                position = found
            if not readable and index == 0:
                left_out.append(line)
            code.append(plain[index] if readable else "")
            places[len(code)] = line
    return Notebook(code="\n".join(code) + "\n", lines=places, left_out=tuple(left_out))


def _code(cell: object) -> list[str]:
    """The lines of a code cell; none of a cell in another language."""
    if not isinstance(cell, dict) or cell.get("cell_type") != "code":
        return []
    source = cell.get("source")
    joined = "".join(part for part in source if isinstance(part, str)) if isinstance(source, list) else source
    if not isinstance(joined, str):
        return []
    first = joined.lstrip().partition("\n")[0]
    if first.startswith("%%") and not first.startswith(PYTHON_MAGICS):
        return []
    return joined.split("\n")


def _plain(lines: Iterable[str]) -> Iterator[str]:
    """Shell and magic lines, and what continues them, as `pass`."""
    continued = False
    for line in lines:
        stripped = line.lstrip()
        if continued or stripped[:1] in ("!", "%", "?"):
            yield ("" if continued else line[: len(line) - len(stripped)] + "pass")
            continued = line.rstrip().endswith("\\")
        else:
            yield line


def _is_python(lines: list[str]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse("\n".join(lines))
    except (SyntaxError, RecursionError, MemoryError, ValueError):
        return False
    return True
