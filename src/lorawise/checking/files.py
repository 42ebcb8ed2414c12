"""Files from strangers, read with limits: so many bytes, text only, nothing followed out of the tree that was named.

What cannot be read is an `Unreadable` with its code, never another exception, so that one bad file of a thousand is one
finding.
"""

import codecs
import io
import os
import stat
import tokenize
from collections.abc import Iterator
from pathlib import Path

MAX_TEXT = 2**20  # bytes of a script or a config; the longest honest ones are a tenth of that
MAX_NOTEBOOK = 32 * 2**20  # notebooks carry pictures
MAX_LINE = 200_000  # characters of one line of a script or a config
MAX_FILES = 20_000
SKIPPED = frozenset({"node_modules", "__pycache__", "site-packages", "venv", "env", "build", "dist"})

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Unreadable(ValueError):  # noqa: N818 - a verdict on a file that the checker collects, not an error a caller sees
    """One file cannot be looked at. `code` is the rule that tells it."""

    def __init__(self, code: str, found: str, cure: str = "", line: int | None = None) -> None:
        super().__init__(found)
        self.code, self.found, self.cure, self.line = code, found, cure, line


def read_text(path: Path, limit: int = MAX_TEXT) -> str:
    """The text of a regular file of at most `limit` bytes, its line ends as `\\n`. Raises `Unreadable`."""
    try:
        with _open_regular(path) as handle:
            raw = handle.read(limit + 1)
    except OSError as problem:
        raise Unreadable("LW001", f"cannot be read: {problem.strerror}", "check its permissions") from None
    if len(raw) > limit:
        found = f"larger than {limit // 2**20} MiB, which no script or config is"
        raise Unreadable("LW001", found, "name the file that holds the setting")
    text = _decoded(raw)
    if max(map(len, text.splitlines()), default=0) > MAX_LINE and limit == MAX_TEXT:
        raise Unreadable("LW001", f"has a line of more than {MAX_LINE:,} characters", "break the line")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _open_regular(path: Path) -> io.BufferedReader:
    """A regular file only: a pipe or a device would wait, or never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Unreadable("LW001", "is not a regular file")
    return os.fdopen(handle, "rb")


def _decoded(raw: bytes) -> str:
    encoding = next((name for mark, name in _BOMS if raw.startswith(mark)), None) or _declared(raw)
    if encoding.startswith("utf-8") and b"\0" in raw:
        raise Unreadable("LW001", "is binary, not text")
    try:
        return raw.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        cure = "save the file as UTF-8, e.g. `iconv -f WINDOWS-1252 -t UTF-8 old > new`"
        raise Unreadable("LW001", f"is not {encoding.upper()} text", cure) from None


def _declared(raw: bytes) -> str:
    """UTF-8, or the encoding a Python script declares in its first two lines (PEP 263)."""
    head = b"\n".join(raw[:400].splitlines()[:2]) + b"\n"
    if b"coding" not in head:
        return "utf-8"
    try:
        return tokenize.detect_encoding(io.BytesIO(head).readline)[0]
    except SyntaxError:
        return "utf-8"


def walk(root: Path) -> Iterator[Path]:
    """Files below a folder by name, then folders; hidden ones, environments and links out of `root` are left out."""
    top, count = root.resolve(), 0
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        inner = []
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") or entry.name in SKIPPED or (entry.is_symlink() and leads_out(path, top)):
                continue
            if entry.is_dir(follow_symlinks=False):
                inner.append(path)
            elif entry.is_file():
                count += 1
                if count > MAX_FILES:
                    return
                yield path
        pending += reversed(inner)


def leads_out(path: Path, top: Path) -> bool:
    """Whether a link ends outside the folder it was found under (or nowhere)."""
    try:
        return not path.resolve(strict=True).is_relative_to(top)
    except (OSError, RuntimeError):
        return True
