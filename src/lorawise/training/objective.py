"""What a micro-batch is trained for: next tokens, or the class of each document.

    objective(model, batch, n=n) → LossParts: sums (n,), counts (n,), per_row (n, documents)

A step's loss is Σ sums / Σ units over its micro-batches, so it does not depend on how the step was split (law 6).
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lorawise.data.batches import MicroBatch
from lorawise.lora.weights import Task
from lorawise.models.batch import to_model_batch
from lorawise.models.forward import Classified, LossParts, causal_loss, classification_loss


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the trained tokens. `units` of a batch is what its loss is a mean over."""

    def __call__(self, model: PreTrainedModel, batch: MicroBatch, *, n: int = 1) -> LossParts:
        return causal_loss(model, to_model_batch(batch, model.device), n=n)

    def units(self, batch: MicroBatch) -> int:
        return batch.trained_tokens


@dataclass(frozen=True)
class Label:
    """Cross-entropy of each document's class."""

    def __call__(self, model: PreTrainedModel, batch: MicroBatch, *, n: int = 1) -> LossParts:
        return self.classified(model, batch, n=n).loss

    def classified(self, model: PreTrainedModel, batch: MicroBatch, *, n: int = 1) -> Classified:
        labels = torch.tensor(batch.labels, device=model.device)
        return classification_loss(model, to_model_batch(batch, model.device), labels, n=n)

    def units(self, batch: MicroBatch) -> int:
        return len(batch.labels)


def objective_of(task: Task) -> NextToken | Label:
    return Label() if task == "SEQ_CLS" else NextToken()
