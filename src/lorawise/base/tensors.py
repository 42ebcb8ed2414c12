"""One tensor as a safetensors file holds it, without torch: the name of its type, its shape, and its bits when asked.

    dtype F32, F16, BF16, …   shape (out, in)   bits() a numpy array in the file's own type, BF16 as uint16

A tensor's numbers come from a file, from torch or from arithmetic only when `bits` is called, so that what handles
tensors by the thousand holds one at a time. numpy has no bf16: its bits are widened to float32, which is exact, and
rounded back to nearest, ties to even.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMPY: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # the bits; `values` widens them
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredTensor:
    """`bits()` reads or computes the numbers, of `shape` and in the type that files call `dtype`."""

    dtype: str
    shape: tuple[int, ...]
    bits: Callable[[], NDArray[Any]]

    @classmethod
    def of(cls, values: NDArray[Any], dtype: str) -> "StoredTensor":
        """Numbers in memory, rounded to `dtype` at once."""
        held = as_bits(values, dtype)
        return cls(dtype=dtype, shape=held.shape, bits=lambda: held)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * NUMPY[self.dtype].itemsize

    def values(self) -> NDArray[Any]:
        """The numbers in their own type; bf16 as float32."""
        bits = self.bits()
        return widen_bf16(bits) if self.dtype == "BF16" else bits

    def double(self) -> NDArray[np.float64]:
        """The numbers as float64, exact from every type an adapter has."""
        return self.values().astype(np.float64)

    def is_finite(self) -> bool:
        """Whether there is neither NaN nor infinity, told from the bits: half the memory of widening them."""
        bits = self.bits()
        if self.dtype == "BF16":
            return not bool(((bits & 0x7F80) == 0x7F80).any())
        return bool(np.isfinite(bits).all())


def as_bits(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Floating numbers rounded to `dtype`; what lies beyond its largest becomes infinity."""
    if dtype == "BF16":
        return round_bf16(values.astype(np.float32, copy=False))
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=NUMPY[dtype])


def widen_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bf16, given as its bits, as float32: the same numbers, 16 zero bits appended to each."""
    wide: NDArray[np.float32] = (bits.astype(np.uint32) << 16).view(np.float32)
    return wide


def round_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of float32 values rounded to bf16, ties to even; NaN stays NaN, beyond the largest becomes infinity."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view("<u4")
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += bits
    rounded += np.uint32(0x7FFF)
    upper: NDArray[np.uint16] = rounded.reshape(-1).view("<u2")[1::2].reshape(values.shape)
    if np.isnan(values).any():
        upper[np.isnan(values)] = 0x7FC0
    return np.ascontiguousarray(upper)
