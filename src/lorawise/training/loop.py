"""The trainer: n ≥ 1 adapters over one base, one optimizer step at a time.

    step k:  for each micro-batch j:  draw(k, j); Σᵢ scaleᵢ · sumᵢ / units → backward
             then clip and update every slot; loss of slot i = Σⱼ sumᵢⱼ / Σⱼ unitsⱼ

Everything random in a step is a function of its number, so a run goes on from its parameters, moments and k alone.
Nothing here prints, logs or saves: `steps` yields what happened.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lorawise.base.errors import DivergedError
from lorawise.data.batches import BatchPlan, MicroBatch
from lorawise.lora.adapters import Adapters
from lorawise.models.loss import wide_dtype
from lorawise.report.events import StepDone
from lorawise.training.memory import memory_errors, peak_memory
from lorawise.training.objective import Label, NextToken
from lorawise.training.optimizer import BankAdamW, Trained
from lorawise.training.peers import ALONE, Peers


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """One step of all slots, a value a slot: mean loss before the update, gradient norm before clipping, whether it
    moved. `tokens` are real ones, of the rows that every slot saw."""

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    rates: tuple[float, ...]
    moved: tuple[bool, ...]
    tokens: int
    trained_tokens: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainer:
    """One schedule a slot. The model is in training mode while it steps, in eval mode otherwise."""

    model: PreTrainedModel
    adapters: Adapters
    plan: BatchPlan
    optimizer: BankAdamW
    schedules: Sequence[Callable[[int], float]]
    objective: NextToken | Label
    peers: Peers = ALONE

    def step(self, k: int) -> Stepped:
        """Optimizer step k = 0, 1, …; a slot whose loss or gradient is not finite does not move."""
        if self.peers.leads:
            self.peers.tell(k)
        micros = self.plan.step(k)
        losses = self.accumulate(k, micros, self.peers)
        factors = [schedule(k) for schedule in self.schedules]
        applied = self.optimizer.step(factors)
        return Stepped(
            losses=losses,
            norms=applied.norms,
            rates=tuple(s.learning_rate * f for s, f in zip(self.optimizer.settings, factors, strict=True)),
            moved=applied.moved,
            tokens=sum(micro.tokens for micro in micros),
            trained_tokens=sum(micro.trained_tokens for micro in micros),
        )

    def accumulate(self, k: int, micros: Sequence[MicroBatch], peers: Peers = ALONE) -> tuple[float, ...]:
        """Gradients of one step onto the parameters' `grad`, shared out among `peers`; each slot's mean loss."""
        units = sum(self.objective.units(micro) for micro in micros)
        self.adapters.bank()
        self.model.train()
        total = torch.zeros(self.adapters.n, dtype=wide_dtype(self.model.dtype), device=self.model.device)
        with memory_errors():
            for j in peers.mine(len(micros)):
                self.adapters.draw(k, j)
                sums = self.objective(self.model, micros[j], n=self.adapters.n).sums
                (sums * (self.optimizer.loss_scales(sums) / units)).sum().backward()  # type: ignore[no-untyped-call]
                total += sums.detach()
        self.model.train(False)
        peers.sum_([total, *self.optimizer.received()])
        return tuple((total / units).tolist())


def steps(trainer: Trainer, *, first: int, total: int) -> Iterator[StepDone]:
    """Steps `first` .. `total` − 1 of a single adapter, each as it was done (`StepDone.step` counts from 1).

    `DivergedError` when the loss or the gradient is not finite: the parameters are then those of the step before.
    """
    for k in range(first, total):
        started = time.perf_counter()
        done = trainer.step(k)
        _refuse_divergence(trainer, k, done)
        seconds = time.perf_counter() - started
        yield StepDone(
            step=k + 1,
            epoch=trainer.plan.epoch_at(k + 1),
            loss=done.losses[0],
            learning_rate=done.rates[0],
            gradient_norm=done.norms[0],
            tokens=done.tokens,
            trained_tokens=done.trained_tokens,
            seconds=seconds,
            tokens_per_second=done.tokens / seconds,
            memory=peak_memory(trainer.model.device),
        )


def trained_parameters(adapters: Adapters) -> list[Trained]:
    """What an optimizer holds. Vectors trained in full (biases, norms) are not decayed, as in transformers' Trainer."""
    return [
        *(Trained(name=p.name, kind=p.kind, parameter=p.parameter) for p in adapters.bank_parameters()),
        *(
            Trained(name=name, kind="full" if parameter.dim() > 1 else "undecayed", parameter=parameter)
            for name, parameter in adapters.full_parameters()
        ),
    ]


def _refuse_divergence(trainer: Trainer, k: int, done: Stepped) -> None:
    loss, norm = done.losses[0], done.norms[0]
    if math.isfinite(loss) and trainer.optimizer.alive[0]:
        return
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
    setting, config = trainer.optimizer.settings[0], trainer.adapters.configs[0]
    raise DivergedError(
        f"the {what} at step {k + 1} (learning rate {done.rates[0]:.3g}, {config})",
        expected="a finite loss; the adapter is still that of the step before",
        cure=f"lower learning_rate × scaling (now {setting.learning_rate:g} × {config.scaling:g}), lengthen the "
        "warm-up, or use base.dtype: bfloat16 if it is float16",
    )
