"""Fixes that are safe to write: renamed arguments, shown as a diff and written whole.

Each is an exact replacement at a place the syntax tree named; a line that no longer says what was read is left alone.
In a notebook the line is the JSON's, and the name must stand in it once.
"""

import difflib
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorawise.base.files import write_text
from lorawise.checking.files import MAX_NOTEBOOK, read_text
from lorawise.checking.rules import Fix


def fixed(text: str, fixes: Sequence[Fix]) -> str:
    """`text` with every fix that still fits; from the last to the first, so that places stay true."""
    lines = text.splitlines(keepends=True)
    for fix in sorted(fixes, key=lambda fix: (fix.line, fix.column), reverse=True):
        if not 1 <= fix.line <= len(lines):
            continue
        raw, old = lines[fix.line - 1].encode(), fix.old.encode()
        if raw[fix.column : fix.column + len(old)] == old:
            lines[fix.line - 1] = (raw[: fix.column] + fix.new.encode() + raw[fix.column + len(old) :]).decode()
    return "".join(lines)


def fixed_notebook(text: str, fixes: Sequence[Fix]) -> str:
    """`fixed`, for a notebook's JSON: an argument's name is replaced where it stands once in the line as `name=`."""
    lines = text.splitlines(keepends=True)
    for fix in fixes:
        if not 1 <= fix.line <= len(lines):
            continue
        changed, count = re.subn(rf"\b{re.escape(fix.old)}(?=\s*=)", fix.new, lines[fix.line - 1])
        if count == 1:
            lines[fix.line - 1] = changed
    return "".join(lines)


WAYS = {".py": fixed, ".ipynb": fixed_notebook}


def apply_fixes(fixes: Mapping[str, Sequence[Fix]]) -> str:
    """Write every file that has fixes; the unified diff of what was changed."""
    shown: list[str] = []
    for path, wanted in fixes.items():
        way = WAYS.get(Path(path).suffix.lower())
        if way is None:
            continue
        raw = Path(path).read_bytes()
        before = read_text(Path(path), MAX_NOTEBOOK)
        ends = "\r\n" if b"\r\n" in raw else "\n"
        if before.replace("\n", ends).encode() != raw:
            continue  # another encoding or mixed line ends: not ours to rewrite
        after = way(before, wanted)
        if after != before:
            _rewrite(Path(path).resolve(), after.replace("\n", ends))
            shown += difflib.unified_diff(
                before.splitlines(), after.splitlines(), f"a/{path}", f"b/{path}", lineterm="", n=1
            )
    return "\n".join(shown)


def _rewrite(path: Path, text: str) -> None:
    """`path` is where the text really lies: a link to it stays one; the permissions stay as they were."""
    mode = stat.S_IMODE(path.stat().st_mode)
    write_text(path, text)
    path.chmod(mode)
