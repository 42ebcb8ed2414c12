"""Many adapters over the fused experts of one layer: a bank for each of the layer's two parameters.

    gate_up_proj  A (n, E, r, hidden), B (n, E, 2·inner, r)      down_proj  A (n, E, r, inner), B (n, E, hidden, r)

Two parameters of one module are two banks, the second around the first (as PEFT nests them); the outer one computes
both in one product. Rows keep their slot through routing: slot i takes the i-th share of the tokens, whichever experts
its router chose for them, so n slots are a layer of n·E experts of which slot i may choose its own E.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from lorawise.base.errors import AdapterError
from lorawise.lora.bank import BankLayer
from lorawise.lora.config import EXPERT_PARAMETERS
from lorawise.lora.experts import ExpertUpdate, adapted_experts
from lorawise.lora.full_modules import FullLayer
from lorawise.lora.routing import Routing
from lorawise.lora.wrapping import unwrapped

GATE_UP, DOWN = EXPERT_PARAMETERS  # the bank of the first is inside that of the second


class ExpertsBank(BankLayer):
    """Over one parameter of transformers' fused experts, which `name` ends in."""

    def __init__(self, base_layer: nn.Module, name: str, routing: Routing) -> None:
        super().__init__(base_layer, name, routing)
        self.parameter = _parameter(name)
        self.stored_in_out = bool(unwrapped(base_layer).is_transposed)

    @staticmethod
    def widths(base: nn.Module, name: str) -> tuple[int, int]:
        weight = base.get_parameter(_parameter(name))
        _, out_width, in_width = (weight.mT if base.is_transposed else weight).shape
        return in_width, out_width

    @staticmethod
    def stacked(base: nn.Module) -> tuple[int, ...]:
        return (base.get_parameter(DOWN).shape[0],)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        updates = {bank.parameter: update for bank in self._banks() if (update := bank.update()) is not None}
        innermost = self._innermost()
        if not updates:
            y: Tensor = innermost(hidden_states, top_k_index, top_k_weights)
            return y
        if isinstance(innermost, FullLayer) and innermost.active():
            raise AdapterError(
                f"{innermost.name} is trained in full by one adapter of the stack and adapted by another",
                expected="one of the two",
                cure="use one of these adapters at a time",
            )
        return adapted_experts(
            unwrapped(innermost),
            hidden_states,
            top_k_index,
            top_k_weights,
            gate_up=updates.get(GATE_UP),
            down=updates.get(DOWN),
        )

    def update(self) -> ExpertUpdate | None:
        """What the current route adds to this parameter: the slots' experts one after the other. None: nothing."""
        active = self.active()
        if active is None:
            return None
        A, B, scale = active
        if isinstance(scale, Tensor):
            scale = scale.repeat_interleave(self.stack[0], dim=0)
        return ExpertUpdate(A=A.flatten(0, 1), B=B.flatten(0, 1), scaling=scale)

    def _banks(self) -> Iterator["ExpertsBank"]:
        """This one and those it is around."""
        layer: nn.Module = self
        while isinstance(layer, ExpertsBank):
            yield layer
            layer = layer.base_layer

    def _innermost(self) -> nn.Module:
        """The experts, or what trains them in full."""
        *_, last = self._banks()
        return last.base_layer


def adaptable_experts(module: nn.Module) -> bool:
    """Whether these are experts that transformers computes through its experts interface, gated and without a norm of
    their own, fused into `gate_up_proj` and `down_proj`, whole on one device."""
    told, own = vars(module), dict(module.named_parameters(recurse=False))
    return (
        told.get("has_gate") is True
        and told.get("is_transposed") is not None
        and not told.get("has_post_expert_norm")
        and not told.get("_is_expert_parallel")
        and all(key in own and own[key].dim() == 3 and own[key].is_floating_point() for key in EXPERT_PARAMETERS)
    )


def _parameter(name: str) -> str:
    return name.rpartition(".")[2]
