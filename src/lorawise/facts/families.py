"""Which parameters a model of a family has in memory, from its config alone: one rule a family.

A rule yields the parts in model order, under the names that transformers gives the modules. Tests hold every rule
against transformers' own model of the same config, parameter by parameter.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorawise.base.errors import ModelError
from lorawise.facts.blocks import Part
from lorawise.facts.config import Config, Dimensions, read_dimensions

Rule = Callable[[Dimensions, Config], Iterator[Part]]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type`.

    architecture   the class that transformers opens it with
    tied           what the class takes for `tie_word_embeddings` when the config does not say
    defaults       keys that change shapes and may be left out of config.json, with the class's values
    intermediate   the config's key of the feed-forward width; `widening`: times the hidden size when it is not set
    kv_heads       key-value heads; as many as query heads when None
    disk           how its files spell names (`facts/disk.py`), by the family that first did
    """

    model_type: str
    architecture: str
    rule: Rule
    tied: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    intermediate: str = "intermediate_size"
    widening: int | None = None
    kv_heads: Callable[[Config], int | None] = lambda c: c.number("num_key_value_heads")
    disk: str = "plain"

    def dimensions(self, config: Config) -> Dimensions:
        """`ModelError` names the keys that are missing."""
        return read_dimensions(
            config, intermediate=self.intermediate, widening=self.widening, kv_heads=self.kv_heads(config)
        )


_FAMILIES: dict[str, Family] = {}


def family(model_type: str, architecture: str, **own: Any) -> Callable[[Rule], Rule]:
    """Register a rule for a `model_type`; one rule may serve several."""

    def add(rule: Rule) -> Rule:
        _FAMILIES[model_type] = Family(model_type=model_type, architecture=architecture, rule=rule, **own)
        return rule

    return add


def families() -> Mapping[str, Family]:
    """Every family that is known by a rule, by its `model_type`."""
    from lorawise.facts import rules_experts, rules_llama, rules_older  # noqa: F401  (they register themselves)

    return _FAMILIES


def family_of(model_type: str) -> Family | None:
    return families().get(model_type)


def unknown_family(model_type: str, where: str, looked_for: str) -> ModelError:
    """The refusal of a model whose shapes neither a header nor a rule tells."""
    return ModelError(
        f"{where}: model type '{model_type}' is in no rule here, and no safetensors tell its shapes "
        f"(looked for {looked_for})",
        expected=f"its safetensors, or one of: {', '.join(sorted(families()))}",
        cure="put the model's safetensors beside its config.json: their headers alone are read",
    )
