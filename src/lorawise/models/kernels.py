"""Whose kernels a tensor meets: its own device's, or those of a device that a run without values stands for.

A trace of memory runs on fake CPU tensors and means CUDA. What chooses a kernel by device asks here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_assumed: ContextVar[str | None] = ContextVar("assumed_device", default=None)


def kernel_device(tensor: Tensor) -> str:
    """`cuda`, `cpu`, `mps`: the device type whose kernels compute `tensor`."""
    return _assumed.get() or tensor.device.type


@contextmanager
def assume_device(kind: str | None) -> Iterator[None]:
    """Choose kernels as on a device of this type; None: as on the tensors' own."""
    token = _assumed.set(kind)
    try:
        yield
    finally:
        _assumed.reset(token)
