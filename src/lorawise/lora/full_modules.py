"""Parameters trained in full beside the adapter: `modules_to_save`, and biases.

The base module stays as it is; each adapter that has one holds fp32 copies of its parameters, and the forward pass
calls the base module with those in place of its own (`torch.func.functional_call`), cast to the base's dtype. So a
16-bit base does not lose small updates, a tied weight is not changed behind its twin's back, and switching adapters
or going back to the base copies nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from lorawise.lora.config import LoraConfig
from lorawise.lora.routing import Routing
from lorawise.lora.selection import called_within
from lorawise.lora.wrapping import Wrapper, base_modules, master_dtype, set_values


class FullLayer(Wrapper):
    """One base module and, for each slot that trains some of its own parameters in full, a copy of those."""

    def __init__(self, base_layer: nn.Module, name: str, routing: Routing) -> None:
        super().__init__(base_layer, name, routing)
        self.copies = nn.ModuleList()

    def fill(self, slots: Sequence[Mapping[str, Tensor]]) -> None:
        """Hold exactly these slots: parameter key → value (empty: the base's own). A parameter that is already there
        under the same slot and key stays the same object."""
        before = list(self.copies)
        self.copies = nn.ModuleList(nn.ParameterDict() for _ in slots)
        own = dict(self.base_layer.named_parameters(recurse=False))
        for i, (held, slot) in enumerate(zip(self.copies, slots, strict=True)):
            assert isinstance(held, nn.ParameterDict)
            old = dict(before[i].named_parameters()) if i < len(before) else {}
            for key, value in slot.items():
                master = value.detach().to(own[key].device, master_dtype(own[key].dtype), copy=True)
                parameter = old.get(key)
                if parameter is None:
                    parameter = nn.Parameter(master, requires_grad=False)
                else:
                    set_values(parameter, master)
                held[key] = parameter

    def slot(self, i: int) -> dict[str, nn.Parameter]:
        """Slot i's parameters by their key in the module; empty where it has none here."""
        return dict(self.copies[i].named_parameters())

    def active(self) -> dict[str, nn.Parameter]:
        """The parameters that stand in for the base's under the current route."""
        if self.routing.merged is not None:
            return {}
        return self.chosen([i for i, _ in self.routing.mix()])

    def chosen(self, slots: Sequence[int]) -> dict[str, nn.Parameter]:
        """The copies of the one slot among these that has any (`Adapters` lets only one have them)."""
        return next((copies for i in slots if (copies := self.slot(i))), {})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        copies = self.active()
        if not copies:
            return self.base_layer(*args, **kwargs)
        values = {key: self._cast(key, copy) for key, copy in copies.items()}
        return functional_call(self.base_layer, values, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            copies = self.active()
            if name in copies:
                return self._cast(name, copies[name])
        return super().__getattr__(name)

    def _cast(self, key: str, copy: Tensor) -> Tensor:
        return copy.to(self.base_layer.get_parameter(key).dtype)


def full_parameters_of(model: nn.Module, config: LoraConfig, targets: Sequence[str]) -> dict[str, Tensor]:
    """The base parameters that `config` trains in full, by name: those of modules_to_save, and biases."""
    chosen: dict[str, Tensor] = {}
    adapted = frozenset(targets)
    for name, module in base_modules(model):
        saved = any(called_within(name, wanted) for wanted in config.modules_to_save)
        biases = config.bias == "all" or (config.bias == "lora_only" and name in adapted)
        for key, parameter in module.named_parameters(recurse=False):
            if saved or (biases and "bias" in key):
                chosen[f"{name}.{key}" if name else key] = parameter
    return chosen
