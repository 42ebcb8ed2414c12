"""Threads of numpy's BLAS, where a pool of our own already has one for every core.

Each worker's product would start as many threads again, and they wait for one another: merging 106M weights on two busy
cores took 10 s of processor time so, and 1.3 s with one BLAS thread a worker.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Products run on the thread that asks for them; as it was before at the end. It holds for the whole process."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield
