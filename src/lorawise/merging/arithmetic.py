"""W' = round(W + L·R), block of rows by block of rows, and what the rounding lost.

L (rows, k) · R (k, columns) is the whole update of one weight: for a linear layer L = [w₁s₁B₁ | w₂s₂B₂ | …] and
R = [A₁ ; A₂ ; …], for a weight stored (in, out) L = [w₁s₁A₁ᵀ | …] and R = [B₁ᵀ ; …]. Sums are taken in float32 (float64
over a float64 weight) and rounded once. With G = W' − W, the update that was got:

    retention  ⟨G, L·R⟩ / ‖L·R‖²      1 when rounding lost nothing of the update's own direction
    error      ‖G − L·R‖ / ‖L·R‖      noise outside it included (EVIDENCE 4: it is most of the error)
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.tensors import NUMPY, as_bits, widen_bf16

Rows = Callable[[int, int], NDArray[Any]]  # (first, last) → those rows' bits, in the type of their file
BLOCK = 1 << 18  # elements: a block and its temporaries stay in the processor's cache
AT_ONCE = 8  # blocks in memory


@dataclass(frozen=True, kw_only=True)
class Factors:
    """An update as two thin matrices: left (rows, k), right (k, columns), float32 or float64. Of fused experts a stack
    of both: left (E, rows, k), right (E, k, columns), for a weight of E·rows rows."""

    left: NDArray[Any]
    right: NDArray[Any]

    @property
    def shape(self) -> tuple[int, int]:
        return math.prod(self.left.shape[:-1]), self.right.shape[-1]

    def rows(self, first: int, last: int) -> NDArray[Any]:
        """These rows of the update."""
        if self.left.ndim == 2:
            return np.asarray(self.left[first:last] @ self.right)
        height = self.left.shape[1]
        experts = range(first // height, (last - 1) // height + 1)
        spans = [(max(first - e * height, 0), min(last - e * height, height)) for e in experts]
        return np.concatenate(
            [self.left[e, slice(*span)] @ self.right[e] for e, span in zip(experts, spans, strict=True)]
        )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Sums over one weight or many: wanted ‖ΔW‖², along ⟨G, ΔW⟩, missed ‖G − ΔW‖²."""

    wanted: float = 0.0
    along: float = 0.0
    missed: float = 0.0

    @classmethod
    def of(cls, got: NDArray[Any], delta: NDArray[Any]) -> "Loss":
        """Of one block: the update that was got, which is overwritten, and the one that was wanted."""
        wanted, along = _dot(delta, delta), _dot(got, delta)
        got -= delta
        return cls(wanted=wanted, along=along, missed=_dot(got, got))

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(
            wanted=self.wanted + other.wanted, along=self.along + other.along, missed=self.missed + other.missed
        )

    @property
    def retention(self) -> float:
        """Of the update; 1 where there is none to lose."""
        return self.along / self.wanted if self.wanted else 1.0

    @property
    def error(self) -> float:
        return math.sqrt(self.missed / self.wanted) if self.wanted else 0.0

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.wanted) and math.isfinite(self.along) and math.isfinite(self.missed)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A matrix on disk before and after: shape (rows, columns), `rows` its bits of type `dtype`, to become `into`."""

    shape: tuple[int, int]
    dtype: str
    into: str
    rows: Rows

    def spans(self) -> list[tuple[int, int]]:
        height = max(1, BLOCK // max(1, self.shape[1]))
        return [(first, min(first + height, self.shape[0])) for first in range(0, self.shape[0], height)]


def merged(weight: Weight, update: Factors, pool: ThreadPoolExecutor) -> Iterator[tuple[NDArray[Any], Loss]]:
    """The rows of W' in order, as bits of type `into`, each block with what it lost; a few blocks in memory at once."""

    def block(span: tuple[int, int]) -> tuple[NDArray[Any], Loss]:
        with np.errstate(over="ignore", invalid="ignore"):  # told by `Loss.is_finite`; a thread has its own state
            return merged_block(weight.rows(*span), weight.dtype, update.rows(*span), weight.into)

    spans = weight.spans()
    for i in range(0, len(spans), AT_ONCE):
        yield from pool.map(block, spans[i : i + AT_ONCE])


def merged_block(bits: NDArray[Any], dtype: str, delta: NDArray[Any], into: str) -> tuple[NDArray[Any], Loss]:
    """One block: W's bits and the update's numbers, of one shape."""
    before = numbers(bits, dtype)
    wide = np.add(before, delta, dtype=np.result_type(before.dtype, np.float32))
    out = as_bits(wide, into)
    return out, Loss.of(numbers(out, into) - before, delta)


def numbers(bits: NDArray[Any], dtype: str) -> NDArray[Any]:
    """float64 as it is, every narrower type as float32, which is exact."""
    if dtype == "BF16":
        return widen_bf16(bits)
    return bits if dtype == "F64" else bits.astype(np.float32, copy=False)


def cast(bits: NDArray[Any], dtype: str, into: str) -> NDArray[Any]:
    """Bits of one floating type as bits of another; the same array where nothing changes."""
    return bits if dtype == into else as_bits(numbers(bits, dtype), into)


def width_of(dtype: str) -> int:
    """Bytes an element."""
    return NUMPY[dtype].itemsize


def _dot(a: NDArray[Any], b: NDArray[Any]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.dot(a.reshape(-1), b.reshape(-1)))
