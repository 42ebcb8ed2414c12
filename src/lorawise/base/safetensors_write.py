"""safetensors files written without torch, one tensor in memory at a time.

The header needs only types and shapes, so it is written first, and every tensor's bits are asked for when their turn
comes. As in the format's own writer, tensors of wider types come first: each then begins at a multiple of its width,
which readers that map the file rely on.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from lorawise.base.tensors import NUMPY, StoredTensor

_ALIGNED = 8  # bytes; the tensors begin at a multiple of it


def write_safetensors(path: Path, tensors: Mapping[str, StoredTensor], *, metadata: Mapping[str, str]) -> None:
    """Write the file at `path`, not atomically: call it inside `atomic_folder`. `OSError` when the disk refuses."""
    ordered = sorted(tensors.items(), key=lambda item: -NUMPY[item[1].dtype].itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % _ALIGNED)
    with path.open("wb") as out:
        out.write(len(raw).to_bytes(8, "little") + raw)
        for name, tensor in ordered:
            bits = tensor.bits()
            assert (bits.shape, bits.dtype) == (tensor.shape, NUMPY[tensor.dtype]), name
            out.write(bits.ravel().data)
