"""`adapter_model.bin`: a pickle, read only when a person asks for it, and then its tensors alone.

torch's weights-only reading runs no code of the file's (torch ≥ 2.6; CVE-2025-32434 before it); what it cannot read so
is refused. Keys, shapes and types are then judged like those of any other adapter.
"""

import pickle
import warnings
from pathlib import Path

import torch

from lorawise.base.errors import AdapterError
from lorawise.lora.weights import StoredAdapter
from lorawise.store.algebra.result import Source
from lorawise.store.own_files import own_file
from lorawise.store.peft_format import PICKLE, adapter_of, read_fields
from lorawise.store.peft_keys import DAMAGED, check_types, finite
from lorawise.store.provenance import stored_digest
from lorawise.store.torch_form import stored_tensor

# What torch's reader of pickles raises on bytes that are none.
_TORN = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
)
_CURE = "load it in PEFT where you trust it, and save_pretrained() it"


def open_pickled(folder: Path) -> Source:
    """The adapter in `folder`, its tensors from the pickle. `AdapterError` with cure."""
    fields = read_fields(folder)
    path = own_file(folder, PICKLE)
    if path is None:
        raise AdapterError(f"{folder / PICKLE} is missing", expected="a pickle", cure="leave --from-pickle away")
    adapter = _read(path, fields)
    base = fields.get("base_model_name_or_path")
    digest = stored_digest(adapter)
    return Source(
        folder=folder, adapter=adapter, base=base if isinstance(base, str) else "", history=None, digest=digest
    )


def _read(path: Path, fields: dict[str, object]) -> StoredAdapter:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on pickle protocols say nothing to the one who asked
            held = torch.load(path, map_location="cpu", weights_only=True)
    except _TORN as problem:
        found = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise AdapterError(f"{path}: {found[:200]}", expected="a pickle of tensors alone", cure=_CURE) from None
    except OSError as problem:
        raise AdapterError(f"{path} cannot be read: {problem.strerror or problem}", cure=DAMAGED) from None
    if not isinstance(held, dict) or not all(
        isinstance(v, torch.Tensor) and isinstance(k, str) for k, v in held.items()
    ):
        raise AdapterError(f"{path} holds something else than tensors by name", cure=_CURE)
    odd = [name for name, tensor in held.items() if tensor.layout != torch.strided or not tensor.is_floating_point()]
    if odd:
        raise AdapterError(f"{path}: {odd[0]!r} is no dense floating tensor", cure=_CURE)
    tensors = {name: stored_tensor(tensor) for name, tensor in held.items()}
    check_types(tensors)
    diverged = "the training diverged: use an earlier checkpoint, and a lower learning rate"
    return adapter_of(fields, {name: finite(t, f"{path}: {name}", cure=diverged) for name, t in tensors.items()})
