"""A training loop as plain as can be, for laws about layers: Adam, one setting a slot, no clipping, no decay."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorawise.lora import Adapters


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Adam's learning rates and eps for A and B."""

    A: float = 1e-3
    B: float = 1e-3
    eps_a: float = 1e-8
    eps_b: float = 1e-8


def token_ids(rows: int = 2, length: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(3, 200, (rows, length), generator=torch.Generator().manual_seed(seed))


def rouse(adapters: Adapters, seed: int = 1, std: float = 0.1) -> None:
    """Give every live entry of A and B, and every full copy, a random value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapters.layers.values():
            for i, rank in enumerate(layer.ranks):
                layer.lora_A[i, ..., :rank, :].normal_(std=std, generator=generator)
                layer.lora_B[i, ..., :rank].normal_(std=std, generator=generator)
        for _, parameter in adapters.full_parameters():
            parameter.add_(torch.empty_like(parameter).normal_(std=std, generator=generator))


def slot_losses(model: nn.Module, ids: Tensor, n: int) -> Tensor:
    """Mean next-token loss of each slot, every slot on the same rows: (n,)."""
    logits = model(ids.repeat(n, 1)).logits[:, :-1]
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].repeat(n, 1).flatten(), reduction="none")
    return losses.view(n, -1).mean(1)


def train(
    model: nn.Module,
    adapters: Adapters,
    steps: int,
    rates: Sequence[Rates],
    *,
    data: Callable[[int], Tensor] = lambda step: token_ids(seed=step),
) -> Tensor:
    """Losses (steps, n). Adam is elementwise, so one optimizer of slices trains each slot with its own rates."""
    moments = {
        entry.name: torch.zeros(2, *entry.parameter.shape, dtype=entry.parameter.dtype)
        for entry in adapters.bank_parameters()
    }
    history = []
    for step in range(steps):
        adapters.draw(step)
        losses = slot_losses(model, data(step), adapters.n)
        losses.sum().backward()
        history.append(losses.detach())
        with torch.no_grad():
            for entry in adapters.bank_parameters():
                first, second = moments[entry.name]
                _adam(entry.parameter, first, second, step + 1, rates, entry.kind)
                entry.parameter.grad = None
    return torch.stack(history)


def _adam(
    parameter: nn.Parameter, first: Tensor, second: Tensor, count: int, rates: Sequence[Rates], kind: str
) -> None:
    grad = parameter.grad
    assert grad is not None
    first.mul_(0.9).add_(0.1 * grad)
    second.mul_(0.999).add_(0.001 * grad * grad)
    for i, rate in enumerate(rates):
        lr, eps = (rate.A, rate.eps_a) if kind == "A" else (rate.B, rate.eps_b)
        denominator = (second[i] / (1 - 0.999**count)).sqrt() + eps
        parameter[i] -= lr * ((first[i] / (1 - 0.9**count)) / denominator)
