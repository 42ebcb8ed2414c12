"""What NF4 makes of a weight: quantised and back, as bitsandbytes does it and an NF4 run's adapter saw it.

Flat blocks of 64 share one scale m = max|w|; each w becomes the nearest of 16 levels times m. With double
quantisation the scales, less their mean, are kept in 8 bits: blocks of 256, the nearest of 256 levels times their
maximum. Levels: the quantiles of a normal distribution (QLoRA, Dettmers et al. 2023, arXiv 2305.14314); for the scales
the dynamic data type (arXiv 1511.04561). Tests hold the result to bitsandbytes' own: to the bit, but for the few scales
that lie midway between two of the 256 levels.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BLOCK, SCALES = 64, 256
Quantised = Literal["nf4", "nf4-double"]

_LEVELS = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    dtype=np.float32,
)
_BOUNDS = (_LEVELS[1:] + _LEVELS[:-1]) / np.float32(2)


def round_trip(weight: NDArray[np.float32], how: Quantised) -> NDArray[np.float32]:
    """`weight` (out, in), any values, after NF4; float32, not yet rounded to the type it is computed in."""
    flat = weight.astype(np.float32, copy=False).reshape(-1)
    padded = np.zeros(-(-flat.size // BLOCK) * BLOCK, dtype=np.float32)
    padded[: flat.size] = flat
    blocks = padded.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1)
    inverse = (np.float32(1) / np.maximum(scales, np.float32(1e-38)))[:, None]
    levels = _LEVELS[np.searchsorted(_BOUNDS, np.clip(blocks * inverse, -1, 1).reshape(-1))]
    if how == "nf4-double":
        scales = _scales_in_8_bits(scales)
    restored: NDArray[np.float32] = levels.reshape(-1, BLOCK) * scales[:, None]
    return restored.reshape(-1)[: flat.size].reshape(weight.shape)


def _scales_in_8_bits(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = scales.mean(dtype=np.float32)
    centred = np.zeros(-(-scales.size // SCALES) * SCALES, dtype=np.float32)
    centred[: scales.size] = scales - mean
    blocks = centred.reshape(-1, SCALES)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    code = _dynamic_levels()
    scaled = blocks * (np.float32(1) / np.maximum(largest, np.float32(1e-38)))
    nearest = np.searchsorted((code[1:] + code[:-1]) / np.float32(2), scaled.reshape(-1))
    restored: NDArray[Any] = code[nearest].reshape(blocks.shape) * largest + mean
    return restored.reshape(-1)[: scales.size].astype(np.float32)


def _dynamic_levels() -> NDArray[np.float32]:
    """256 levels from -1 to 1: seven decades, each with twice the fractions of the one below."""
    found = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(np.float32(0.1), np.float32(1), 2**i + 1, dtype=np.float32)
        means = (edges[:-1] + edges[1:]) / np.float32(2)
        decade = np.float32(10.0 ** (i - 6))
        found += [*(decade * means), *(-decade * means)]
    return np.sort(np.array(found, dtype=np.float32))
