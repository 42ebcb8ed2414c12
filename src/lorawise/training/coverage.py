"""What of an adapter a training batch reached: parameters meant, parameters moved, tokens that each expert saw.

A layer moves when either of its factors gets a gradient; of fused experts each one does so for itself. An expert that
no token was sent to is told, and is no failure: its B stays zero, so it answers as the base.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorawise.lora.adapters import Adapters
from lorawise.lora.experts_bank import ExpertsBank
from lorawise.report.events import Coverage, ExpertTokens
from lorawise.training.optimizer import BankAdamW


class RoutingTally:
    """Tokens sent to each expert of every adapted layer, counted while `counting` is open."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        self._counts: dict[str, Tensor] = {}
        self._counted: set[tuple[str, tuple[int, int] | None]] = set()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """A layer that activation checkpointing runs again in backward, for the same draw, is counted once."""
        with ExitStack() as stack:
            for name, bank in outermost(self._adapters).items():
                handle = bank.register_forward_pre_hook(self._hook_of(name, bank.stack[0]))
                stack.callback(handle.remove)
            yield

    def layers(self) -> tuple[ExpertTokens, ...]:
        """In model order; none when no experts are adapted."""
        return tuple(ExpertTokens(module=name, tokens=tuple(c.tolist())) for name, c in self._counts.items())

    def _hook_of(self, name: str, experts: int) -> Any:
        def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            turn = (name, self._adapters.routing.draw)
            if turn in self._counted:
                return
            self._counted.add(turn)
            found = torch.bincount(arguments[1].flatten(), minlength=experts)
            self._counts[name] = self._counts[name] + found if name in self._counts else found

        return count


def outermost(adapters: Adapters) -> dict[str, ExpertsBank]:
    """Adapted modules of experts by name, each with the bank that computes it."""
    banks = {name: layer for name, layer in adapters.layers.items() if isinstance(layer, ExpertsBank)}
    inner = {id(bank.base_layer) for bank in banks.values()}
    return {name.rpartition(".")[0]: bank for name, bank in banks.items() if id(bank) not in inner}


def coverage_of(adapters: Adapters, optimizer: BankAdamW, tally: RoutingTally) -> Coverage:
    """From the gradients now held."""
    moving: dict[str, Tensor] = {}
    for trained, gradient in optimizer.gradients():
        if trained.kind in ("A", "B"):
            module = trained.name.rpartition(".")[0]
            stack = len(adapters.layers[module].stack)
            flat = gradient.flatten(1 + stack).ne(0).any(-1)
            moving[module] = flat | moving[module] if module in moving else flat
    meant = moved = 0
    for name, layer in adapters.layers.items():
        for i, rank in enumerate(layer.ranks):
            each = rank * (layer.in_width + layer.out_width)
            meant += each * moving[name][i].numel()
            moved += each * int(moving[name][i].sum())
    return Coverage(meant=meant, moved=moved, experts=tally.layers())
