"""Adapters made of random numbers, and their comparison to the bit."""

from collections.abc import Mapping
from typing import Any

import torch

from lorawise.lora.config import LoraConfig
from lorawise.lora.weights import AdapterWeights

Q, V, DOWN, EMBED = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.v_proj",
    "model.layers.1.mlp.down_proj",
    "model.embed_tokens",
)
SHAPES = {Q: (6, 8), V: (6, 4), DOWN: (10, 6), EMBED: (12, 6)}  # module → (in, out)


def sample_weights(
    config: LoraConfig, modules: tuple[str, ...] = (Q, V), *, dtype: torch.dtype = torch.float32, **fields: Any
) -> AdapterWeights:
    generator = torch.Generator().manual_seed(config.r)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    layers = {}
    for module in modules:
        width_in, width_out = SHAPES[module]
        rank = config.rank_of(module)
        layers[module] = (draw(rank, width_in), draw(width_out, rank))
    kinds: Mapping[str, Any] = {EMBED: "embedding"} if EMBED in modules else {}
    return AdapterWeights(**({"config": config, "layers": layers, "kinds": kinds} | fields))


def assert_identical(one: AdapterWeights, other: AdapterWeights) -> None:
    assert one.config == other.config
    assert (one.task, dict(one.kinds)) == (other.task, dict(other.kinds))
    assert sorted(one.layers) == sorted(other.layers)
    pairs = [(a, b) for name in one.layers for a, b in zip(one.layers[name], other.layers[name], strict=True)]
    assert sorted(one.full) == sorted(other.full)
    pairs += [(one.full[name], other.full[name]) for name in one.full]
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8))
