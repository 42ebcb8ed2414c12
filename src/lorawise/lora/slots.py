"""Putting adapters into a model and reading them back: `hold` and `held` are inverses.

`hold` makes a model carry exactly the adapters it is given: it wraps the layers they need, unwraps those nobody needs,
and fills the banks. Injecting, loading, adding, removing and ejecting are all one call of it.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

import torch
from torch import Tensor, nn

from lorawise.base.errors import AdapterError, ConfigError
from lorawise.lora.bank import BankLayer, Conv1DBank, EmbeddingBank
from lorawise.lora.experts_bank import ExpertsBank
from lorawise.lora.full_modules import FullLayer
from lorawise.lora.routing import Routing
from lorawise.lora.targets import bank_kind, places, places_of, target_modules
from lorawise.lora.weights import AdapterWeights, LayerKind
from lorawise.lora.wrapping import Wrapper, base_modules, base_parameters, layers_of, replace_children

Held = Mapping[str, AdapterWeights]  # adapter name → what it holds, in the order of the slots
_SHOWN = 8  # strangers listed by name; the search for the nearest name is not free
_KINDS: Mapping[type[BankLayer], LayerKind] = {
    Conv1DBank: "conv1d",
    EmbeddingBank: "embedding",
    ExpertsBank: "experts",
}


def held(model: nn.Module, routing: Routing) -> dict[str, AdapterWeights]:
    """The adapters a model carries, as unpadded views of its own tensors."""
    banks, full = layers_of(model, BankLayer), layers_of(model, FullLayer)
    return {
        name: AdapterWeights(
            config=routing.configs[i],
            layers={layer: slot for layer, bank in banks.items() if (slot := bank.slot(i)) is not None},
            full={
                f"{layer}.{key}": copy.detach() for layer, part in full.items() for key, copy in part.slot(i).items()
            },
            kinds={layer: kind for layer, bank in banks.items() if bank.ranks[i] and (kind := _KINDS.get(type(bank)))},
            task=routing.task,
        )
        for i, name in enumerate(routing.names)
    }


def hold(model: nn.Module, routing: Routing, adapters: Held) -> None:
    """Make `model` carry exactly `adapters`. Layers that stay adapted keep their parameter objects."""
    factors = dict(zip(routing.names, routing.factors, strict=True))
    routing.names[:] = list(adapters)
    routing.configs[:] = [weights.config for weights in adapters.values()]
    routing.factors[:] = [factors.get(name, 1.0) for name in adapters]
    banks, full = layers_of(model, BankLayer), layers_of(model, FullLayer)
    parts = [_by_module(weights.full) for weights in adapters.values()]
    replacements: dict[nn.Module, nn.Module] = {}
    for name, base in base_modules(model):
        copies = [part.get(name, {}) for part in parts]
        outer: nn.Module = full.get(name, base)
        inner: nn.Module = base
        if any(copies):
            inner = _over(base, full.get(name) or FullLayer(base, name, routing))
            inner.fill(copies)
        for place in places_of(name, base):
            slots = [weights.layers.get(place) for weights in adapters.values()]
            outer = banks.get(place, outer)
            if any(slot is not None for slot in slots):
                inner = _over(inner, banks.get(place) or _bank(base, place, routing))
                inner.fill(slots)
        if inner is not outer:
            replacements[outer] = inner
    replace_children(model, replacements)


def misfits(model: nn.Module, weights: AdapterWeights) -> list[str]:
    """Why an adapter does not fit a model, module by module; empty when it does."""
    modules = places(model)
    problems = [] if weights.layers or weights.full else ["it holds no tensors"]
    strangers = [name for name in weights.layers if name not in modules]
    if strangers and len(strangers) == len(weights.layers):
        problems.append("none of its modules is in the model")
    problems += [f"{name}: the model has no such layer{_nearest(name, modules)}" for name in strangers[:_SHOWN]]
    if len(strangers) > _SHOWN:
        problems.append(f"and {len(strangers) - _SHOWN} more that the model does not have")
    for name, (A, B) in weights.layers.items():
        if name not in modules:
            continue
        kind = bank_kind(modules[name])
        if kind is None:
            problems.append(f"{name}: not adaptable")
            continue
        rank, (in_width, out_width) = weights.config.rank_of(name), kind.widths(modules[name], name)
        stack = kind.stacked(modules[name])
        expected = (*stack, rank, in_width), (*stack, out_width, rank)
        if (tuple(A.shape), tuple(B.shape)) != expected:
            problems.append(f"{name}: A {_shape(A)} and B {_shape(B)}, expected {expected[0]} and {expected[1]}")
    own = dict(base_parameters(model, tied_once=False))
    for name, value in weights.full.items():
        if name not in own:
            problems.append(f"{name}: the model has no such parameter")
        elif own[name].shape != value.shape:
            problems.append(f"{name}: {_shape(value)}, expected {_shape(own[name])}")
    return problems


def lacking(model: nn.Module, weights: AdapterWeights) -> list[str]:
    """Modules of the model that an adapter's own setting names and its tensors lack: it was trained on a smaller model,
    or lost them. Empty when the setting cannot be applied here (its targets name more than this model has)."""
    try:
        wanted = target_modules(model, weights.config)
    except (AdapterError, ConfigError):
        return []
    missing = [name for name in wanted if name not in weights.layers]
    named = [f"{name}: its setting names it, it has no tensors for it" for name in missing[:_SHOWN]]
    return named if len(missing) <= _SHOWN else [*named, f"and {len(missing) - _SHOWN} more without tensors"]


def require_fit(model: nn.Module, name: str, weights: AdapterWeights) -> None:
    """Raise `AdapterError` with everything that keeps adapter `name` from this model."""
    if problems := [*misfits(model, weights), *lacking(model, weights)]:
        raise AdapterError(
            f"adapter '{name}' does not fit {type(model).__name__}:\n  " + "\n  ".join(problems),
            cure="load it over the base model that it was trained on",
        )


def as_saved(weights: AdapterWeights) -> AdapterWeights:
    """A copy on the CPU, in the masters' dtype (fp32; fp64 over an fp64 base), that later training does not change."""
    return AdapterWeights(
        config=weights.config,
        layers={name: (_copy(A), _copy(B)) for name, (A, B) in weights.layers.items()},
        full={name: _copy(value) for name, value in weights.full.items()},
        kinds=dict(weights.kinds),
        task=weights.task,
    )


def _nearest(name: str, modules: Mapping[str, nn.Module]) -> str:
    close = get_close_matches(name, list(modules), n=1, cutoff=0.6)
    return f" (nearest: {close[0]})" if close else ""


def _by_module(full: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parted: dict[str, dict[str, Tensor]] = {}
    for name, value in full.items():
        module, _, key = name.rpartition(".")
        parted.setdefault(module, {})[key] = value
    return parted


def _bank(base: nn.Module, name: str, routing: Routing) -> BankLayer:
    kind = bank_kind(base)
    assert kind is not None, name
    return kind(base, name, routing)


W = TypeVar("W", bound=Wrapper)


def _over(inner: nn.Module, wrapper: W) -> W:
    wrapper.base_layer = inner
    return wrapper


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))
