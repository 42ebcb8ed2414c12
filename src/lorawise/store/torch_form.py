"""Adapters on disk from and to torch: the edge where files meet what trains and answers.

`to_torch` and `from_torch` are inverses, to the bit. What files hold and mean is said once, in `peft_format`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from lorawise.base.tensors import StoredTensor
from lorawise.lora.weights import AdapterWeights, StoredAdapter
from lorawise.store.peft_format import read_adapter, read_history, write_adapter
from lorawise.store.provenance import Provenance, stored_digest

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def load_adapter(folder: Path) -> AdapterWeights:
    """The adapter in `folder`, ours or PEFT's, as it is on disk (dtype included). `AdapterError` with cure."""
    return to_torch(read_adapter(folder))


def save_adapter(
    folder: Path,
    weights: AdapterWeights,
    *,
    base: str,
    provenance: Provenance | None = None,
    modules: Iterable[str] = (),
) -> None:
    """Write the adapter to `folder`, whole or not at all; tensors keep their dtype (see `write_adapter`)."""
    write_adapter(folder, from_torch(weights), base=base, provenance=provenance, modules=modules)


def read_provenance(folder: Path, weights: AdapterWeights) -> Provenance | None:
    """The history of the adapter just loaded from `folder`; None when it has none (PEFT wrote it).

    `AdapterError` when the history is torn or tells of other tensors.
    """
    return read_history(folder, from_torch(weights))


def adapter_digest(weights: AdapterWeights) -> str:
    """sha256 of what decides the answers (see `stored_digest`)."""
    return stored_digest(from_torch(weights))


def to_torch(stored: StoredAdapter) -> AdapterWeights:
    """Every tensor read, into memory of its own."""
    return AdapterWeights(
        config=stored.config,
        layers={name: (_tensor(a), _tensor(b)) for name, (a, b) in stored.layers.items()},
        full={name: _tensor(tensor) for name, tensor in stored.full.items()},
        kinds=stored.kinds,
        task=stored.task,
    )


def from_torch(weights: AdapterWeights) -> StoredAdapter:
    """The tensors are not copied: what is written is what they hold then."""
    return StoredAdapter(
        config=weights.config,
        layers={name: (stored_tensor(a), stored_tensor(b)) for name, (a, b) in weights.layers.items()},
        full={name: stored_tensor(tensor) for name, tensor in weights.full.items()},
        kinds=weights.kinds,
        task=weights.task,
    )


def stored_tensor(tensor: torch.Tensor) -> StoredTensor:
    def bits() -> NDArray[Any]:
        held = tensor.detach().cpu().contiguous()
        array: NDArray[Any] = (held.view(torch.uint16) if held.dtype == torch.bfloat16 else held).numpy()
        return array

    name = _NAMES.get(tensor.dtype) or str(tensor.dtype).removeprefix("torch.")
    return StoredTensor(dtype=name, shape=tuple(tensor.shape), bits=bits)


def _tensor(stored: StoredTensor) -> torch.Tensor:
    return torch.from_numpy(stored.bits().copy()).view(_DTYPES[stored.dtype])
