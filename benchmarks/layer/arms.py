"""The layers that are compared: y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ over the same frozen W, from the same A and B.

    base          the frozen layer alone: what no adapter can beat
    lorawise      our bank layer with one slot (fp32 masters, computed in the base's dtype)
    plain         as one writes it by hand: A and B fp32, cast to the base's dtype in every forward
    plain 16      the same with A and B kept in the base's dtype: no masters, no casts
    peft          PEFT's LoRA Linear as `get_peft_model` makes it (A and B fp32; x is cast up to them)

Shapes: x (1, tokens, in), A (r, in), B (out, r).
"""

from collections.abc import Callable, Mapping

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import Tensor, nn

from lorawise.lora import LoraConfig, inject

R, SCALING = 16, 2.0


class Plain(nn.Module):
    """A LoRA layer of ten lines."""

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        self.A, self.B = nn.Parameter(A.to(dtype)), nn.Parameter(B.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        return self.base(x) + (x @ A.mT) @ B.mT * SCALING


def frozen(base: nn.Linear, A: Tensor, B: Tensor) -> nn.Module:
    return nn.Sequential(base)


def ours(base: nn.Linear, A: Tensor, B: Tensor) -> nn.Module:
    model = nn.Sequential(base)
    adapters = inject(model, LoraConfig(r=R, scaling=SCALING, target_modules=["0"]))
    for entry in adapters.bank_parameters():
        entry.parameter.data.copy_((A if entry.kind == "A" else B)[None])
    return model.train()


def plain(base: nn.Linear, A: Tensor, B: Tensor) -> nn.Module:
    return Plain(base, A, B, torch.float32)


def plain_16(base: nn.Linear, A: Tensor, B: Tensor) -> nn.Module:
    return Plain(base, A, B, base.weight.dtype)


def peft(base: nn.Linear, A: Tensor, B: Tensor) -> nn.Module:
    config = PeftConfig(r=R, lora_alpha=int(R * SCALING), target_modules=["0"], lora_dropout=0.0)
    model = get_peft_model(nn.Sequential(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(A if "lora_A" in name else B)
    return model.train()


ARMS: Mapping[str, Callable[[nn.Linear, Tensor, Tensor], nn.Module]] = {
    "lorawise": ours,
    "plain": plain,
    "plain 16": plain_16,
    "peft": peft,
    "base": frozen,
}


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The gradients of A (r, in) and B (out, r), whatever the arm calls them."""
    found = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            kind = "A" if name.endswith((".A", "lora_A", "lora_A.default.weight")) or name == "A" else "B"
            found[kind] = parameter.grad.detach().reshape(parameter.shape[-2:])
    return found
