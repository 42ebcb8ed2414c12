"""Shards written as a stream: each tensor in blocks, so that neither a shard nor a large embedding is ever in memory.

The header needs only types and shapes, so it comes first; then the blocks of each tensor, in the order of the header:
wider types first and else as the source had them, which keeps every tensor at a multiple of its width.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import TensorFileError
from lorawise.base.safetensors import SafetensorsFile
from lorawise.base.tensors import NUMPY, StoredTensor
from lorawise.merging.arithmetic import cast, width_of

_ALIGNED = 8  # bytes; tensors begin at a multiple of it
_CHUNK = 1 << 22  # bytes copied at once

Blocks = Callable[[], Iterable[NDArray[Any]]]
Done = Callable[[int], None]  # bytes written since the last call


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One tensor to write: its type and shape now, its bits in blocks when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    width: int  # bytes an element; 0 where a byte holds several
    nbytes: int
    blocks: Blocks


def piece(name: str, dtype: str, shape: tuple[int, ...], blocks: Blocks) -> Piece:
    width = width_of(dtype)
    return Piece(
        name=name,
        dtype=dtype,
        shape=shape,
        width=width,
        nbytes=int(np.prod(shape, dtype=np.int64)) * width,
        blocks=blocks,
    )


def copied(shard: SafetensorsFile, name: str, *, as_name: str | None = None) -> Piece:
    """A tensor as it is on disk, of any type."""
    header = shard.tensors[name]
    width = NUMPY[header.dtype].itemsize if header.dtype in NUMPY else 0
    return Piece(
        name=as_name or name,
        dtype=header.dtype,
        shape=header.shape,
        width=width,
        nbytes=header.end - header.start,
        blocks=partial(_raw, shard.path, header.start, header.end),
    )


def converted(shard: SafetensorsFile, name: str, into: str, *, as_name: str | None = None) -> Piece:
    """A tensor of plain numbers in another type."""
    header = shard.tensors[name]

    def blocks() -> Iterator[NDArray[Any]]:
        for raw in _raw(shard.path, header.start, header.end):
            yield cast(raw.view(NUMPY[header.dtype]), header.dtype, into)

    return piece(as_name or name, into, header.shape, blocks)


def placed(name: str, tensor: StoredTensor, into: str) -> Piece:
    """A trained tensor, rounded once to the base's type."""
    return piece(name, into, tensor.shape, lambda: [cast(tensor.bits(), tensor.dtype, into)])


def rows_of(shard: SafetensorsFile, name: str) -> Callable[[int, int], NDArray[Any]]:
    """(first, last) → rows of a matrix on disk, as bits; may be called from several threads. Of a stack of matrices the
    rows are those of all, one matrix after the other."""
    header = shard.tensors[name]
    stride = header.shape[-1] * width_of(header.dtype)

    def read(first: int, last: int) -> NDArray[Any]:
        raw = next(iter(_raw(shard.path, header.start + first * stride, header.start + last * stride, chunk=1 << 62)))
        return raw.view(NUMPY[header.dtype]).reshape(last - first, header.shape[-1])

    return read


def write_shard(path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str], done: Done) -> dict[str, int]:
    """Write one file, not atomically: call it inside `atomic_folder`. Bytes of each tensor by name."""
    ordered = sorted(pieces, key=lambda each: -each.width)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for each in ordered:
        start, end = end, end + each.nbytes
        header[each.name] = {"dtype": each.dtype, "shape": list(each.shape), "data_offsets": [start, end]}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % _ALIGNED)
    with path.open("wb", buffering=0) as out:
        _write(out.fileno(), np.frombuffer(len(raw).to_bytes(8, "little") + raw, dtype=np.uint8))
        for each in ordered:
            written = 0
            for block in each.blocks():
                _write(out.fileno(), block)
                written += block.nbytes
                done(block.nbytes)
            assert written == each.nbytes, each.name
    return {each.name: each.nbytes for each in ordered}


def _write(handle: int, block: NDArray[Any]) -> None:
    view = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
    while view:
        view = view[os.write(handle, view) :]


def _raw(path: Path, start: int, end: int, *, chunk: int = _CHUNK) -> Iterator[NDArray[np.uint8]]:
    with path.open("rb") as handle:
        while start < end:
            size = min(chunk, end - start)
            block = np.frombuffer(os.pread(handle.fileno(), size, start), dtype=np.uint8)
            if block.size != size:
                raise TensorFileError(f"{path} is torn: it ends at byte {start + block.size:,}", cure="fetch it again")
            yield block
            start += size
