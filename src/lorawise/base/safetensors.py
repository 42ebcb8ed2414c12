"""safetensors files read without torch: the header first, then single tensors as numpy arrays.

    8 bytes: header length, little endian | JSON header: name → {dtype, shape, data_offsets} | the tensors' bytes

The `safetensors` package has no numpy type for bf16, so its numpy door refuses such files; `base.tensors` widens it to
float32, which is exact. A file is input from strangers: the header is bounded, and every tensor must lie inside the
file with as many bytes as its shape and type say, before any of them is read.
Format: https://huggingface.co/docs/safetensors
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import TensorFileError
from lorawise.base.tensors import NUMPY, StoredTensor

MAX_HEADER = 100_000_000  # bytes; the format's own limit
_CURE = "copy or fetch the file again"

_BITS = {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "C64": 64}
_BITS |= {"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
_BITS |= {name: dtype.itemsize * 8 for name, dtype in NUMPY.items()}


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """One tensor before its bytes are read. `start` and `end` are offsets into the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class SafetensorsFile:
    """One file's header, checked. `SafetensorsFile.open(path)`, then `read(name)`."""

    path: Path
    tensors: Mapping[str, TensorHeader]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "SafetensorsFile":
        """`TensorFileError` when the file is torn or its header lies; `OSError` when it cannot be opened."""
        header, data_start, size = _read_json(path)
        metadata = header.pop("__metadata__", None) or {}
        tensors = {name: _tensor(path, name, entry, data_start) for name, entry in header.items()}
        end = max((tensor.end for tensor in tensors.values()), default=data_start)
        if end != size:
            raise _torn(path, f"it has {size:,} bytes, its header says {end:,}")
        _require_contiguous(path, tensors, data_start)
        return cls(path=path, tensors=tensors, metadata=metadata if isinstance(metadata, dict) else {})

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def tensor(self, name: str) -> StoredTensor:
        """The tensor, its bytes read when asked for. `TensorFileError` for types numpy has no equal of."""
        header = self.tensors[name]
        if header.dtype not in NUMPY:
            raise TensorFileError(
                f"{self.path}: {name} has type {header.dtype}", expected=f"one of {', '.join(NUMPY)}", cure=""
            )
        return StoredTensor(dtype=header.dtype, shape=header.shape, bits=partial(self._bits, name))

    def read(self, name: str) -> NDArray[Any]:
        """The tensor in its own type; bf16 as float32. `TensorFileError` for types numpy has no equal of."""
        return self.tensor(name).values()

    def _bits(self, name: str) -> NDArray[Any]:
        header = self.tensors[name]
        with self.path.open("rb") as handle:
            handle.seek(header.start)
            bits = np.fromfile(handle, dtype=NUMPY[header.dtype], count=header.size)
        if bits.size != header.size:
            raise _torn(self.path, f"it ends inside {name}")
        shaped: NDArray[Any] = bits.reshape(header.shape)
        return shaped


def _read_json(path: Path) -> tuple[dict[str, Any], int, int]:
    """(header, offset of the first tensor byte, size of the file)."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            raise _torn(path, "it ends inside its header")
        if length > MAX_HEADER:
            raise _torn(path, f"its header has {length:,} bytes")
        raw = handle.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError) as problem:
        why = str(problem) if isinstance(problem, _TwiceError) else "its header is not JSON"
        raise _torn(path, why) from None
    if not isinstance(header, dict):
        raise _torn(path, "its header is not a JSON object")
    return header, 8 + length, size


def _tensor(path: Path, name: str, entry: object, data_start: int) -> TensorHeader:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise _torn(path, f"its header's entry of {_short(name)} is not a dtype, a shape and two offsets")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise _torn(path, f"{_short(name)} has shape {_short(shape)}")
    if dtype not in _BITS:
        raise _torn(path, f"{_short(name)} has type {_short(dtype)}, which the format does not know")
    count = math.prod(shape)
    if start < 0 or (end - start) * 8 != count * _BITS[dtype]:
        raise _torn(
            path, f"{_short(name)} takes {end - start:,} bytes, its shape {_short(shape)} of {dtype} says otherwise"
        )
    return TensorHeader(dtype=dtype, shape=tuple(shape), start=data_start + start, end=data_start + end)


class _TwiceError(ValueError):
    """A name said twice: readers differ on which of the two they believe."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _TwiceError("its header says a name twice")
    return table


def _require_contiguous(path: Path, tensors: Mapping[str, TensorHeader], data_start: int) -> None:
    """Tensor after tensor without a gap, as the format wants: what lies in a gap nobody reads and all copy."""
    end = data_start
    for start, stop in sorted((tensor.start, tensor.end) for tensor in tensors.values()):
        if start != end:
            raise _torn(path, "its tensors overlap" if start < end else "it holds bytes that belong to no tensor")
        end = stop


def _torn(path: Path, why: str) -> TensorFileError:
    return TensorFileError(f"{path} is torn: {why}", expected="a whole safetensors file", cure=_CURE)


def _short(value: object) -> str:
    """A header may hold a name, or a shape, of a million letters."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
