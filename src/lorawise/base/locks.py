"""One process at a time in a folder. A killed process holds nothing: the lock is the system's, not the file."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lorawise.base.errors import LorawiseError
from lorawise.base.files import storage_errors

LOCK_NAME = ".lock"


@contextlib.contextmanager
def alone_in(folder: Path, *, busy: Callable[[], LorawiseError | None], patience: float = 0.0) -> Iterator[None]:
    """Hold `folder`, made if it is missing, while the block runs.

    After `patience` seconds of another process holding it, `busy` is asked: the error to raise, or None to wait on.
    """
    from filelock import FileLock, Timeout

    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            if refusal := busy():
                raise refusal from None
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
