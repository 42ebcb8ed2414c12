"""Fixes that are safe to write: renamed arguments, shown as a diff and written whole.

Each is an exact replacement at a place the syntax tree named; a line that no longer says what was read is left alone.
"""

import difflib
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorawise.base.files import write_text
from lorawise.checking.files import read_text
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


def apply_fixes(fixes: Mapping[str, Sequence[Fix]]) -> str:
    """Write every file that has fixes; the unified diff of what was changed. Notebooks are left alone."""
    shown: list[str] = []
    for path, wanted in fixes.items():
        if not path.endswith(".py"):
            continue
        raw = Path(path).read_bytes()
        before = read_text(Path(path))
        if before.encode() != raw:
            continue  # another encoding or other line ends: not ours to rewrite
        after = fixed(before, wanted)
        if after != before:
            _rewrite(Path(path).resolve(), after)
            shown += difflib.unified_diff(
                before.splitlines(), after.splitlines(), f"a/{path}", f"b/{path}", lineterm="", n=1
            )
    return "\n".join(shown)


def _rewrite(path: Path, text: str) -> None:
    """`path` is where the text really lies: a link to it stays one; the permissions stay as they were."""
    mode = stat.S_IMODE(path.stat().st_mode)
    write_text(path, text)
    path.chmod(mode)
