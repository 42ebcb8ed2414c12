"""Adapters merged into the base weights in memory, and out again.

W' = W + Σ weight · s · B·A, summed in fp32 (fp64 over an fp64 base) and rounded once to W's dtype. Merging puts a new
parameter in W's place and keeps the old one, so unmerging restores the base to the bit whatever its dtype; the price
is a second copy of every adapted weight while merged (for all linear layers, about the model once more).

A weight shared with another module (tied embeddings) is untied: only the adapted module gets the merged one, and the
model's config says `tie_word_embeddings=False` while merged, since saving and reopening a tied model would lose it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorawise.base.errors import AdapterError
from lorawise.lora.bank import BankLayer
from lorawise.lora.full_modules import FullLayer
from lorawise.lora.routing import Routing
from lorawise.lora.wrapping import Wrapper, base_modules, layers_of, unwrapped

Mix = Sequence[tuple[int, float]]


def merge(model: nn.Module, routing: Routing, mix: Mix) -> None:
    """Merge a mix of slots; afterwards every wrapper calls its base alone. Nothing has changed if it raises."""
    layers = [layer for layer in layers_of(model, BankLayer).values() if any(layer.ranks[i] for i, _ in mix)]
    _refuse_quantised(layers)
    shared = _shared_parameters(model)
    unties = False
    try:
        for layer, key, value in _merged_values(model, layers, mix):
            base = unwrapped(layer)
            own = base.get_parameter(key)
            unties = unties or id(own) in shared
            layer.kept[key] = own
            setattr(base, key, nn.Parameter(value, requires_grad=False))
    except BaseException:
        _restore(model)
        raise
    routing.merged = {routing.names[i]: weight for i, weight in mix}
    if unties:
        _untie(model, routing)


def unmerge(model: nn.Module, routing: Routing) -> None:
    """Put the base's own parameters back: the same objects, to the bit."""
    _restore(model)
    for config in routing.untied:
        config.tie_word_embeddings = True
    routing.untied.clear()
    routing.merged = None


def forget_base(model: nn.Module) -> None:
    """Drop the kept parameters: what is merged stays merged."""
    for module in model.modules():
        if isinstance(module, Wrapper):
            module.kept.clear()


def _merged_values(model: nn.Module, layers: Sequence[BankLayer], mix: Mix) -> Iterator[tuple[Wrapper, str, Tensor]]:
    """(wrapper, parameter key, new value) one at a time, so that only one fp32 weight is alive."""
    for layer in layers:
        delta = layer.delta_weight(mix)
        if delta is not None:
            weight = unwrapped(layer).get_parameter(layer.parameter)
            merged = (weight.detach().to(delta.dtype) + delta.to(weight.device)).to(weight.dtype)
            if not merged.is_meta and not torch.isfinite(merged).all():
                raise AdapterError(
                    f"merging into {layer.name} gives values that are not finite in {weight.dtype}",
                    expected="finite A, B and base weights",
                    cure="the adapter diverged, or is too strong for fp16: check it, or open the base in bfloat16",
                )
            yield layer, layer.parameter, merged
    for full in layers_of(model, FullLayer).values():
        for key, copy in full.chosen([i for i, _ in mix]).items():
            yield full, key, copy.detach().to(unwrapped(full).get_parameter(key).dtype, copy=True)


def _refuse_quantised(layers: Sequence[BankLayer]) -> None:
    for layer in layers:
        weight = unwrapped(layer).get_parameter(layer.parameter)
        expected = (layer.in_width, layer.out_width) if layer.stored_in_out else (layer.out_width, layer.in_width)
        if not weight.is_floating_point() or tuple(weight.shape) != (*layer.stack, *expected):
            raise AdapterError(
                f"{layer.name} is quantised ({type(unwrapped(layer)).__name__}, {weight.dtype})",
                expected="base weights in float32, bfloat16 or float16",
                cure="open the base with dtype bfloat16, add the adapter there, and merge",
            )


def _shared_parameters(model: nn.Module) -> set[int]:
    """Ids of parameters that more than one place in the base holds."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, module in base_modules(model):
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _untie(model: nn.Module, routing: Routing) -> None:
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        configs: list[Any] = [model.config, model.config.get_text_config()]
        for config in configs:
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False
                routing.untied.append(config)


def _restore(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Wrapper):
            base = unwrapped(module)
            for key, own in module.kept.items():
                setattr(base, key, own)
            module.kept.clear()
