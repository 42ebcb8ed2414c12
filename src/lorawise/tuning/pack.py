"""The bank run: many settings side by side over one base and the same rows.

    lift   a bank of n slots → n slot states      hold   slot states → a bank of them      (inverses, to the bit)

A slot state is unpadded: A (r, in) and B (out, r) a layer, both Adam moments in the same shapes, and its counters. So a
setting moves between banks of any size and any longest rank, and dropout follows the setting, not the slot.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lorawise.lora.adapters import Adapters
from lorawise.lora.config import LoraConfig
from lorawise.lora.injection import eject, inject
from lorawise.lora.weights import AdapterWeights
from lorawise.training.evaluate import Scores, score
from lorawise.training.loop import Stepped, Trainer, trained_parameters
from lorawise.training.optimizer import BankAdamW, SlotSettings
from lorawise.training.setup import Prepared
from lorawise.tuning.shared import Plans, Shared

WORDS = ("parameter", "exp_avg", "exp_avg_sq")
Factor = Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One setting in a pack: what it adapts, how it is optimised, its rate's factor at step k, the steps at which it
    is compared, and what it shares with the others of its pack."""

    trial: int
    config: LoraConfig
    optimiser: SlotSettings
    schedule: Factor
    rungs: tuple[int, ...] = ()
    shared: Shared = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class SlotState:
    """`tensors`: `parameter.LAYER.lora_A`, `exp_avg.…`, `exp_avg_sq.…`, unpadded copies on the CPU."""

    tensors: Mapping[str, Tensor]
    counters: Mapping[str, Any]

    @property
    def alive(self) -> bool:
        return bool(self.counters["alive"])


class Pack:
    """A bank over the base of `prepared`. `members` are its slots, in order; those that step share their rows."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.members: tuple[Member, ...] = ()
        self.plans = Plans(prepared)
        eject(prepared.model)

    def hold(self, members: Sequence[Member], states: Mapping[int, SlotState]) -> None:
        """Bank `members`; one without a state starts fresh."""
        if self.members:
            eject(self.prepared.model)
        prepared, self.members = self.prepared, tuple(members)
        adapters = inject(prepared.model, [m.config for m in members], names=[str(m.trial) for m in members])
        optimizer = BankAdamW(
            trained_parameters(adapters),
            [m.optimiser for m in members],
            scaled=prepared.run.base.computes_in == "float16",
        )
        self.trainer = replace(
            prepared.trainer,
            adapters=adapters,
            plan=self.plans.of(members[0].shared),
            optimizer=optimizer,
            schedules=tuple(m.schedule for m in members),
        )
        _restore(self.trainer, [states.get(m.trial) for m in members])

    def lift(self) -> dict[int, SlotState]:
        """Every member's state."""
        tensors, counters = self.trainer.optimizer.tensors(), self.trainer.optimizer.counters()
        return {
            member.trial: SlotState(
                tensors={name: _copy(part) for name, part in _parts(self.trainer.adapters, tensors, i)},
                counters={name: values[i] for name, values in counters.items()},
            )
            for i, member in enumerate(self.members)
        }

    def step(self, k: int) -> Stepped:
        assert len({member.shared for member in self.members}) == 1, "one pack sees one batch"
        return self.trainer.step(k)

    def scores(self) -> Scores:
        """Every member on every validation row, in one pass."""
        assert self.prepared.evaluator is not None
        self.trainer.adapters.bank()
        evaluator = self.prepared.evaluator
        return score(self.prepared.model, evaluator.batches, evaluator.objective, n=len(self.members))

    def weights(self, trial: int) -> AdapterWeights:
        """The finished adapter of one member: its true r and alpha, no padding."""
        return self.trainer.adapters.weights(str(trial))


def _restore(trainer: Trainer, states: Sequence[SlotState | None]) -> None:
    optimizer = trainer.optimizer
    tensors, counters = optimizer.tensors(), optimizer.counters()
    with torch.no_grad():
        for i, state in enumerate(states):
            if state is None:
                continue
            for name, part in _parts(trainer.adapters, tensors, i):
                part.copy_(state.tensors[name])
            for name, values in counters.items():
                values[i] = state.counters[name]
    optimizer.load_counters(counters)


def _parts(adapters: Adapters, tensors: Mapping[str, Tensor], i: int) -> Iterator[tuple[str, Tensor]]:
    """Slot i's own columns of every tensor, without padding; views."""
    for layer_name, layer in adapters.layers.items():
        rank = layer.ranks[i]
        if not rank:
            continue
        for word in WORDS:
            name_A, name_B = f"{word}.{layer_name}.lora_A", f"{word}.{layer_name}.lora_B"
            yield name_A, tensors[name_A][i, ..., :rank, :]
            yield name_B, tensors[name_B][i, ..., :rank]


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
