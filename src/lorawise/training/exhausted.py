"""Out of memory, explained once: which cause grew beyond its prediction, and what would fit.

             predicted (planning)                          held
weights      base weights and NF4 constants                the base's tensors
adapter      adapters, gradients, optimizer moments        the trainer's tensors
step         all other causes: activations, logits, …      the peak, less the two above and what was there before
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lorawise.base.errors import MemoryExhausted
from lorawise.lora.wrapping import base_parameters
from lorawise.planning.load import Load
from lorawise.planning.memory import static
from lorawise.training.fitting import cure_for
from lorawise.training.loop import Trainer
from lorawise.training.memory import held_memory, peak_memory

GIB = 2**30
WEIGHTS, ADAPTER, STEP = "the base's weights", "the adapter and its optimizer", "activations, logits and workspace"
_STANDING = {
    static.WEIGHTS: WEIGHTS,
    static.CONSTANTS: WEIGHTS,
    static.ADAPTERS: ADAPTER,
    static.GRADIENTS: ADAPTER,
    static.MOMENTS: ADAPTER,
}


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Bytes predicted and held."""

    name: str
    predicted: int
    held: int

    @property
    def beyond(self) -> int:
        return self.held - self.predicted


@contextmanager
def explained(trainer: Trainer, load: Load | None) -> Iterator[None]:
    """Inside, running out of memory is told with its cause and its cure."""
    before = max(0, held_memory(trainer.model.device) - sum(_bytes_of(trainer).values()))
    try:
        yield
    except MemoryExhausted as problem:
        if load is None:
            raise
        raise explanation(problem, load, causes(trainer, load, before)) from problem


def causes(trainer: Trainer, load: Load, before: int) -> tuple[Cause, ...]:
    """What was predicted and what is held; `before`: bytes of this process that are not the run's."""
    predicted = dict.fromkeys((WEIGHTS, ADAPTER, STEP), 0)
    for line in load.memory.by_cause:
        predicted[_STANDING.get(line.cause, STEP)] += line.bytes
    held = _bytes_of(trainer)
    held[STEP] = max(0, peak_memory(trainer.model.device) - before - held[WEIGHTS] - held[ADAPTER])
    return tuple(Cause(name=name, predicted=predicted[name], held=held[name]) for name in predicted)


def explanation(problem: MemoryExhausted, load: Load, found: tuple[Cause, ...]) -> MemoryExhausted:
    """The same error with what grew, and the concession that would fit."""
    grown = max(found, key=lambda cause: cause.beyond)
    beyond = max(0, grown.beyond)
    usable = load.device.usable
    if beyond > 0.05 * load.needed:
        told = f"{grown.name} hold {grown.held / GIB:.2f} GiB, {grown.predicted / GIB:.2f} were predicted"
    elif load.needed > usable:
        told = f"the run was predicted to need {load.needed / GIB:.2f} GiB, and could have {usable / GIB:.2f}"
    else:
        told = (
            f"nothing grew beyond its prediction ({load.needed / GIB:.2f} of {usable / GIB:.2f} GiB): other programs "
            "took what was free"
        )
    cure = cure_for(load, beyond=beyond) or "train.memory: frugal, fewer train.micro_batch_tokens, or a larger device"
    return MemoryExhausted(f"{problem.found}\n  {told}", expected=problem.expected, cure=cure)


def _bytes_of(trainer: Trainer) -> dict[str, int]:
    base = [parameter for _, parameter in base_parameters(trainer.model)]
    trained = [parameter for _, parameter in trainer.adapters.trainable()]
    state = [*trained, *(p.grad for p in trained if p.grad is not None), *trainer.optimizer.tensors().values()]
    return {WEIGHTS: _unique(base), ADAPTER: _unique(state)}


def _unique(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of the storages behind them, each once."""
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())
