"""Which files of an adapter's folder may be opened: plain files that lie in it.

A link may lead to another file of the folder, or, in the hub's cache, from `snapshots/<revision>/` to the `blobs/`
beside it. One that leads anywhere else would make an adapter of a stranger read, copy and publish files of this
machine; a pipe or a device would be read for ever.
"""

import stat
from pathlib import Path

from lorawise.base.errors import AdapterError


def own_file(folder: Path, name: str) -> Path | None:
    """The file called `name` in `folder`, None when there is none; `AdapterError` when it is not the folder's own."""
    path = folder / name
    if not path.is_symlink() and not path.exists():
        return None
    home, real = folder.resolve(), path.resolve()
    if not any(real.is_relative_to(root) for root in (home, *_blobs(home))):
        raise AdapterError(
            f"{path} is a link to {real}, outside of the adapter's folder",
            expected="a file of the folder itself",
            cure="where you know it, put a copy of the file in the link's place",
        )
    if not real.exists():
        raise AdapterError(f"{path} is a link to nothing", expected="a file", cure="copy the folder again")
    if not stat.S_ISREG(real.stat().st_mode):
        raise AdapterError(f"{path} is no plain file", expected="a file", cure="copy the folder again")
    return path


def _blobs(home: Path) -> list[Path]:
    return [parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots"]
