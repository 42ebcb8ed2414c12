"""How many parameters train: the guide's line."""

import math
from dataclasses import dataclass

from torch import nn

from lorawise.lora.bank import BankLayer
from lorawise.lora.full_modules import FullLayer
from lorawise.lora.packed import PackedLinear
from lorawise.lora.selection import called_within
from lorawise.lora.wrapping import base_parameters, layers_of


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """trainable: of the adapters, padding left out. total: the base (tied weights once) and what was added to it."""

    trainable: int
    total: int

    @property
    def percent(self) -> float:
        return 100 * self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"trainable params: {self.trainable:,} || all: {self.total:,} || trainable%: {self.percent:.4f}"


def trainable_parameters(model: nn.Module) -> ParameterCount:
    """Count an injected model. As in PEFT, a packed 4-bit weight counts the values it stands for, `modules_to_save`
    adds its copies to the total, and a trained bias does not."""
    packed = {id(m.weight): m.in_features * m.out_features for m in model.modules() if isinstance(m, PackedLinear)}
    base = sum(packed.get(id(parameter)) or _values(parameter) for _, parameter in base_parameters(model))
    low_rank = sum(
        math.prod(layer.stack) * rank * (layer.in_width + layer.out_width)
        for layer in layers_of(model, BankLayer).values()
        for rank in layer.ranks
    )
    trained = added = 0
    for layer in layers_of(model, FullLayer).values():
        for config, copies in zip(layer.routing.configs, layer.copies, strict=True):
            values = sum(parameter.numel() for parameter in copies.parameters())
            trained += values
            added += values if _saved(layer.name, config.modules_to_save) else 0
    return ParameterCount(trainable=low_rank + trained, total=base + low_rank + added)


def _saved(name: str, modules_to_save: tuple[str, ...]) -> bool:
    return any(called_within(name, wanted) for wanted in modules_to_save)


def _values(parameter: nn.Parameter) -> int:
    if type(parameter).__name__ == "Params4bit":
        return 2 * parameter.numel() * parameter.element_size()
    return parameter.numel()
