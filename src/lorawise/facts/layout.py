"""A config's facts: the family's rule applied, the parts gathered."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorawise.facts.config import Config, Dimensions
from lorawise.facts.families import Family
from lorawise.facts.model import Matrix, ModelFacts, Parameter

_DTYPE = "float32"  # what transformers takes for a config that names none


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A family with one config: its dimensions and its parts."""

    family: Family
    config: Config
    dimensions: Dimensions
    matrices: tuple[Matrix, ...]
    others: tuple[Parameter, ...]
    tied: bool


def layout_of(family: Family, values: Mapping[str, Any], where: str) -> Layout:
    """`ModelError` when the config lacks a key the rule needs, or holds nonsense there."""
    config = Config(where=where, values=values, defaults=family.defaults)
    dimensions = family.dimensions(config)
    parts = list(family.rule(dimensions, config))
    return Layout(
        family=family,
        config=config,
        dimensions=dimensions,
        matrices=tuple(part for part in parts if isinstance(part, Matrix)),
        others=tuple(part for part in parts if isinstance(part, Parameter)),
        tied=config.flag("tie_word_embeddings", family.tied),
    )


def facts_of(layout: Layout, source: str) -> ModelFacts:
    d, c = layout.dimensions, layout.config
    return ModelFacts(
        source=source,
        model_type=layout.family.model_type,
        architecture=layout.family.architecture,
        hidden_size=d.hidden,
        intermediate_size=d.intermediate,
        num_layers=d.layers,
        num_heads=d.heads,
        num_kv_heads=d.kv_heads,
        head_dim=d.head_dim,
        vocab_size=d.vocab,
        max_positions=d.positions,
        tied=layout.tied,
        dtype=config_dtype(c.values),
        matrices=layout.matrices,
        others=layout.others,
        sliding_window=c.number("sliding_window") if c.flag("use_sliding_window", True) else None,
        num_experts=c.number("num_local_experts", "num_experts", "n_routed_experts") or 0,
        experts_per_token=c.number("num_experts_per_tok") or 0,
        config=dict(c.values),
    )


def config_dtype(values: Mapping[str, Any]) -> str:
    return str(values.get("dtype") or values.get("torch_dtype") or _DTYPE).removeprefix("torch.")
