"""One step of lorawise's own trainer, traced: the real adapters, forward, loss, backward and BankAdamW."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from lorawise.base.errors import ModelError
from lorawise.data.batches import BatchOptions, BatchPlan
from lorawise.data.encoded import Encoded, EncodedSet
from lorawise.lora.config import LoraConfig
from lorawise.lora.injection import inject
from lorawise.models.packing import PACKED, packing_support
from lorawise.planning.memory.model import Mode, Workload
from lorawise.training.loop import Trainer, trained_parameters
from lorawise.training.memory import keep_activations
from lorawise.training.objective import objective_of
from lorawise.training.optimizer import BankAdamW, SlotSettings
from lorawise.training.schedule import Schedule
from lorawise.training.trace.ledger import Ledger
from lorawise.training.trace.parts import ADAPTERS, BACKWARD, OPTIMIZER, labelled_by_part


@dataclass(frozen=True, kw_only=True)
class OurStep:
    """`prepare` outside any mode, then `run` inside the fake mode and the ledger."""

    model: PreTrainedModel
    configs: Sequence[LoraConfig]
    workload: Workload
    mode: Mode

    def prepare(self) -> None:
        """Set attention up as a run does. `ModelError` where rows of this model cannot be packed."""
        reason = packing_support(self.model)
        if self.workload.packed and reason != PACKED:
            raise ModelError(
                f"rows are not packed: {reason}", cure="ask for padded rows: Workload(packed=False, rows=…)"
            )

    def run(self, ledger: Ledger) -> None:
        n = len(self.configs)
        with ledger.during(ADAPTERS, phase="adapters in place"):
            adapters = inject(self.model, self.configs)
            keep_activations(self.model, self.mode)
        with ledger.during(OPTIMIZER):
            optimizer = BankAdamW(trained_parameters(adapters), [SlotSettings(learning_rate=1e-4)] * n, scaled=False)
            for _, parameter in adapters.trainable():
                ledger.enter(parameter, ADAPTERS)
        trainer = Trainer(
            model=self.model,
            adapters=adapters,
            plan=plan_of(self.workload),
            optimizer=optimizer,
            schedules=[Schedule(name="constant", total=2, warmup=0)] * n,
            objective=objective_of("CAUSAL_LM"),
        )
        with labelled_by_part(self.model, ledger), ledger.during(BACKWARD, phase="forward and backward"):
            trainer.accumulate(0, trainer.plan.step(0))
        with ledger.during(OPTIMIZER, phase="optimizer step"):
            optimizer.step([1.0] * n)


def plan_of(workload: Workload) -> BatchPlan:
    """One step, of two micro-batches when gradients are accumulated; every token but each row's first is trained."""
    if workload.packed:
        whole, rest = divmod(workload.tokens, workload.length)
        lengths = [workload.length] * whole + ([rest] if rest else [])
    else:
        lengths = [workload.length] * workload.rows
        if workload.filler and workload.length > 1:
            lengths[-1] -= 1
    repeats = 2 if workload.accumulate else 1
    rows = [_row(i, length) for i, length in enumerate(lengths * repeats)]
    encoded = EncodedSet(rows=tuple(rows), weights=np.ones(len(rows)), stop_ids=())
    if workload.packed:
        options = BatchOptions(batch_tokens=workload.tokens * repeats, micro_batch_tokens=workload.tokens)
    else:
        options = BatchOptions(layout="padded", batch_size=len(rows), micro_batch_size=workload.rows)
    return BatchPlan(encoded, options)


def _row(number: int, length: int) -> Encoded:
    trained = np.ones(length, dtype=bool)
    trained[0] = False
    return Encoded(ids=np.zeros(length, dtype=np.int32), trained=trained, row=number)
