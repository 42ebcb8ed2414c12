"""Standing in a frozen module's place, and stepping aside again.

A wrapper holds `base_layer` and calls it; it never copies, patches or subclasses it. What the wrapper does not know
(`embed_scale`, `in_features`, …) it asks the base layer, so code that reads a module's attributes does not notice.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lorawise.lora.routing import Routing


class Wrapper(nn.Module):
    """One module of the base, frozen, with the adapters' share of it around it. Abstract.

    name     the module's name in the base model
    routing  the state that all wrappers of a model share
    kept     the base's own parameters while merged ones stand in their place
    """

    base_layer: nn.Module

    def __init__(self, base_layer: nn.Module, name: str, routing: Routing) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.routing = routing
        self.kept: dict[str, nn.Parameter] = {}
        self.training = base_layer.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if "base_layer" not in modules:
                raise
            return getattr(modules["base_layer"], name)


def unwrapped(module: nn.Module) -> nn.Module:
    """The base module under any wrappers."""
    while isinstance(module, Wrapper):
        module = module.base_layer
    return module


def base_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """`named_modules` of the base model, as if it had never been injected; each module once, in model order."""
    seen: set[int] = set()

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        module = unwrapped(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        yield name, module
        for key, child in module.named_children():
            yield from walk(child, f"{name}.{key}" if name else key)

    yield from walk(model, prefix)


def base_parameters(model: nn.Module, *, tied_once: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """`named_parameters` of the base model alone; those that several modules share once, or under each name."""
    seen: set[int] = set()
    for name, module in base_modules(model):
        for key, parameter in module.named_parameters(recurse=False):
            if not tied_once or id(parameter) not in seen:
                seen.add(id(parameter))
                yield (f"{name}.{key}" if name else key), parameter


W = TypeVar("W", bound=Wrapper)


def layers_of(model: nn.Module, kind: type[W]) -> dict[str, W]:
    """The model's wrappers of one kind by their names in the base model, in model order."""
    return {module.name: module for module in model.modules() if isinstance(module, kind)}


def replace_children(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put each replacement wherever its original is held, in every parent."""
    for parent in list(model.modules()):
        if isinstance(parent, Wrapper):
            continue
        for key, child in list(parent.named_children()):
            if child in replacements:
                setattr(parent, key, replacements[child])


def set_values(parameter: nn.Parameter, values: Tensor) -> None:
    """Other values for a parameter, in the same memory where the shape allows: an optimizer may hold views of it."""
    if parameter.shape == values.shape:
        parameter.data.copy_(values)
        if parameter.grad is not None:
            parameter.grad.zero_()
    else:
        parameter.grad, parameter.data = None, values


def master_dtype(base: torch.dtype) -> torch.dtype:
    """fp32 masters over every base but an fp64 one."""
    return torch.float64 if base == torch.float64 else torch.float32
