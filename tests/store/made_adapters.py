"""Adapters of any mix of rank, alpha, rsLoRA, patterns and dtypes, and their dense deltas in float64 as the oracle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from lorawise import LoraConfig
from lorawise.lora.weights import AdapterWeights
from lorawise.store import load_adapter, save_adapter
from lorawise.store.algebra.result import Source

SHAPES = {
    "model.layers.0.self_attn.q_proj": (24, 40),
    "model.layers.1.self_attn.q_proj": (24, 40),
    "model.layers.1.mlp.down_proj": (80, 24),
    "model.layers.10.mlp.down_proj": (80, 24),
}
NAMES = tuple(SHAPES)

_keys = st.sampled_from(["q_proj", r".*layers\.1\..*", "mlp.down_proj", NAMES[0], r"layers\.10\.mlp\.down_proj"])
configs = st.builds(
    LoraConfig,
    r=st.integers(1, 64),
    alpha=st.floats(0.25, 128),
    rslora=st.booleans(),
    dropout=st.sampled_from([0.0, 0.1]),
    rank_pattern=st.dictionaries(_keys, st.integers(1, 64), max_size=2),
    alpha_pattern=st.dictionaries(_keys, st.floats(0.25, 128), max_size=2),
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


def draw(config: LoraConfig, modules: Sequence[str], dtype: torch.dtype, seed: int) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for module in modules:
        width_in, width_out = SHAPES[module]
        rank = config.rank_of(module)
        a, b = torch.randn(rank, width_in, generator=generator), torch.randn(width_out, rank, generator=generator)
        layers[module] = (a.to(dtype), (b / 8).to(dtype))
    return AdapterWeights(config=config, layers=layers)


adapters = st.builds(
    draw,
    configs,
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True).map(tuple),
    dtypes,
    st.integers(0, 10_000),
)


def saved(folder: Path, weights: AdapterWeights, **options: Any) -> Source:
    save_adapter(folder, weights, base="somebody/base", **options)
    return Source.open(folder)


def dense(weights: AdapterWeights) -> dict[str, torch.Tensor]:
    """Module → scaling · B @ A in float64, from the tensors and PEFT's meaning of the setting alone."""
    return {
        module: weights.config.scaling_of(module) * (b.double() @ a.double())
        for module, (a, b) in weights.layers.items()
    }


def dense_of(folder: Path) -> dict[str, torch.Tensor]:
    return dense(load_adapter(folder))


def error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Relative Frobenius over all modules; those one side lacks count as zero."""
    zero = {module: torch.zeros_like(delta) for module, delta in {**found, **wanted}.items()}
    off = sum(float((({**zero, **found})[m] - ({**zero, **wanted})[m]).square().sum()) for m in zero)
    return (off / max(sum(float(delta.square().sum()) for delta in wanted.values()), 1e-300)) ** 0.5
