"""MLX: the adapters.safetensors and adapter_config.json that mlx-lm loads.

    y = x·Wᵀ + scale · (x·lora_a)·lora_b    lora_a = Aᵀ (in, r), lora_b = Bᵀ (r, out), scale a plain factor, not alpha

mlx-lm wraps the modules named in `keys` in every layer, with one rank and one scale: smaller ranks are padded with
zeros, and a module the files do not hold keeps lora_b = 0, so both are exact. Modules whose scalings differ need them
folded into B, with scale 1.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import AdapterError
from lorawise.base.files import atomic_folder
from lorawise.base.safetensors import SafetensorsFile
from lorawise.base.safetensors_write import write_safetensors
from lorawise.base.tensors import StoredTensor, as_bits
from lorawise.exporting.exporters import EXPORTERS, Exported, Options
from lorawise.exporting.measure import error_of
from lorawise.exporting.refusals import refuse_beyond_linear
from lorawise.lora.weights import StoredAdapter
from lorawise.store.algebra.factors import Factors
from lorawise.store.algebra.normalize import folds_exactly
from lorawise.store.algebra.result import Source, stored_type
from lorawise.store.peft_config import listing
from lorawise.store.peft_keys import finite

CONFIG, TENSORS = "adapter_config.json", "adapters.safetensors"
ALL_LAYERS = -1  # mlx-lm's word for every layer
_IN_LAYER = re.compile(r"model\.layers\.\d+\.(?P<key>.+)")


@EXPORTERS.register("mlx")
def to_mlx(source: Source, folder: Path, options: Options) -> Exported:
    """`AdapterError` for scalings that differ, unless `options.fold`, and for modules outside model.layers."""
    refuse_beyond_linear(source, "MLX")
    adapter = source.adapter
    keys = _keys(source)
    scale = _scale(source, fold=options.fold)
    rounded = options.fold and not folds_exactly(adapter)
    dtype = stored_type(options.dtype, [adapter], computes=rounded)
    dtype = "F32" if dtype == "F64" else dtype  # MLX has no 64-bit floats on its GPU
    rank = max(a.shape[0] for a, _ in adapter.layers.values())
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys}
    config = {"fine_tune_type": "lora", "num_layers": ALL_LAYERS, "lora_parameters": parameters}
    with atomic_folder(folder) as scratch:
        write_safetensors(scratch / TENSORS, _tensors(adapter, rank, scale, dtype), metadata={"format": "mlx"})
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return Exported(
        path=folder,
        error=error_of(adapter, _read(folder, scale)),
        rank=rank,
        scale=scale,
        files=(CONFIG, TENSORS),
        rounded=rounded,
    )


def _keys(source: Source) -> list[str]:
    """Names within a layer, `self_attn.q_proj`, which mlx-lm wraps in all of them."""
    names = source.adapter.layers
    found = {name: _IN_LAYER.fullmatch(name) for name in names}
    strange = [name for name, match in found.items() if match is None or name in source.adapter.kinds]
    if strange:
        raise AdapterError(
            f"{source.folder} adapts {listing(strange)}",
            expected="linear layers named model.layers.N.…, as mlx-lm names them",
            cure=f"lorawise merge {source.base or 'MODEL'} {source.folder} -o merged, and convert the merged model",
        )
    return sorted({match["key"] for match in found.values() if match is not None})


def _scale(source: Source, *, fold: bool) -> float:
    if fold:
        return 1.0
    scalings = sorted({source.adapter.config.scaling_of(name) for name in source.adapter.layers})
    if not math.isclose(scalings[0], scalings[-1], rel_tol=1e-12):
        raise AdapterError(
            f"{source.folder}: scalings differ from module to module, {scalings[0]:g} to {scalings[-1]:g}",
            expected="one scaling, which is all that mlx-lm reads",
            cure="add --fold: the scalings go into B",
        )
    return scalings[0]


def _tensors(adapter: StoredAdapter, rank: int, scale: float, dtype: str) -> Mapping[str, StoredTensor]:
    tensors = {}
    for module, (a, b) in adapter.layers.items():
        fold = adapter.config.scaling_of(module) / scale if scale == 1.0 else 1.0
        width_in, width_out = a.shape[1], b.shape[0]
        for name, half, shape, factor in (
            ("lora_a", a, (width_in, rank), 1.0),
            ("lora_b", b, (rank, width_out), fold),
        ):
            bits = _turned(half, shape, factor, dtype)
            tensor = StoredTensor(dtype=dtype, shape=shape, bits=bits)
            cure = "use --dtype float32, whose range is wider"
            tensors[f"{module}.{name}"] = finite(tensor, f"{module}.{name} in {dtype}", cure=cure)
    return tensors


def _turned(half: StoredTensor, shape: tuple[int, int], factor: float, dtype: str) -> Callable[[], NDArray[Any]]:
    """Transposed, padded with zeros to `shape`, times `factor`, in `dtype`."""

    def made() -> NDArray[Any]:
        turned = factor * half.double().T
        more = [(0, want - have) for want, have in zip(shape, turned.shape, strict=True)]
        return np.ascontiguousarray(as_bits(np.pad(turned, more), dtype))

    return made


def _read(folder: Path, scale: float) -> Callable[[str], Factors]:
    file = SafetensorsFile.open(folder / TENSORS)

    def read(module: str) -> Factors:
        a, b = (file.tensor(f"{module}.{name}").double() for name in ("lora_a", "lora_b"))
        return Factors(A=a.T, B=scale * b.T)

    return read
