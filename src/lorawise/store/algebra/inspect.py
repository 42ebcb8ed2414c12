"""What one adapter does, layer by layer, told from its file alone.

‖ΔW‖ (Frobenius)   share = ‖ΔW‖² / Σ‖ΔW‖²   effective rank: singular values that hold 90 % and 99 % of ‖ΔW‖²
of base = ‖ΔW‖ / ‖W‖, where the base is given
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorawise.base.errors import ModelError, TensorFileError
from lorawise.base.safetensors import SafetensorsFile
from lorawise.base.tensors import StoredTensor
from lorawise.store.algebra.factors import Factors, effective_rank
from lorawise.store.algebra.result import Source, ratio


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One module. `of_base` is None where the base was not given or does not hold it by that name. Of fused experts
    the ranks are those of all of them together."""

    name: str
    r: int
    alpha: float
    scaling: float
    shape: tuple[int, int]  # (out, in)
    parameters: int
    norm: float
    share: float
    rank_90: int
    rank_99: int
    experts: int = 1
    of_base: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    source: Source
    layers: tuple[Layer, ...]
    full: Mapping[str, tuple[int, ...]]  # what is trained in full, with its shape
    norm: float
    parameters: int
    dtypes: tuple[str, ...]


def inspect(source: Source, base: Path | None = None) -> Inspection:
    """A pass over the adapter, one module in memory at a time; with `base`, one of its weights beside it."""
    adapter, weights = source.adapter, {} if base is None else _base_weights(base)
    if base is not None and adapter.layers and not weights.keys() & adapter.layers.keys():
        raise ModelError(
            f"{base} has none of the adapter's modules: no {next(iter(adapter.layers))}",
            expected="the base model that the adapter was trained over, its weights named as the adapter names them",
            cure="name that base, or leave out --base",
        )
    measured = {}
    for module in adapter.layers:
        values = Factors.of(adapter, module).singular_values()
        measured[module] = (values, float(np.linalg.norm(values)))
    whole = float(np.linalg.norm([norm for _, norm in measured.values()])) if measured else 0.0
    layers = []
    for module, (values, norm) in measured.items():
        a, b = adapter.layers[module]
        layers.append(
            Layer(
                name=module,
                r=a.shape[-2],
                alpha=adapter.config.alpha_of(module),
                scaling=adapter.config.scaling_of(module),
                shape=(b.shape[-2], a.shape[-1]),
                experts=math.prod(a.shape[:-2]),
                parameters=a.size + b.size,
                norm=norm,
                share=ratio(norm**2, whole**2),
                rank_90=effective_rank(values, 0.9),
                rank_99=effective_rank(values, 0.99),
                of_base=None if module not in weights else ratio(norm, _norm(*weights[module], like=(a, b))),
            )
        )
    full = adapter.full
    tensors = [tensor for pair in adapter.layers.values() for tensor in pair] + list(full.values())
    return Inspection(
        source=source,
        layers=tuple(layers),
        full={name: tensor.shape for name, tensor in full.items()},
        norm=whole,
        parameters=sum(tensor.size for tensor in tensors),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors})),
    )


def _base_weights(folder: Path) -> dict[str, tuple[SafetensorsFile, str]]:
    """Module → the file and key of its weight, in a folder of safetensors."""
    found: dict[str, tuple[SafetensorsFile, str]] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            file = SafetensorsFile.open(path)
            found |= {key.removesuffix(".weight"): (file, key) for key in file if key.endswith(".weight")}
    except OSError as problem:
        raise ModelError(f"{folder} cannot be read: {problem.strerror}", cure="check the path") from None
    if not found:
        raise ModelError(f"{folder} holds no weights", expected="a folder with .safetensors files", cure="see --base")
    return found


def _norm(file: SafetensorsFile, key: str, *, like: tuple[StoredTensor, StoredTensor]) -> float:
    """‖W‖ of a weight that A and B fit; Conv1D keeps it as (in, out)."""
    try:
        weight = file.read(key).astype(np.float32, copy=False)
    except TensorFileError as problem:
        raise ModelError(
            problem.found, expected="weights in 16, 32 or 64 bits", cure="give an unquantised base"
        ) from None
    a, b = like
    if sorted(weight.shape[-2:]) != sorted((a.shape[-1], b.shape[-2])):
        raise ModelError(
            f"{key} is {weight.shape} in the base, the adapter is for {(b.shape[-2], a.shape[-1])}",
            expected="the base model that the adapter was trained over",
            cure="name that base, or leave out --base",
        )
    return float(np.linalg.norm(weight))
