"""From a micro-batch to its loss: decoder, then head and loss on labelled positions alone.

Every one of n slots sees the same rows: ids are repeated slot after slot, (n·rows, t), as banks of adapters
expect them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from lorawise.base.errors import ModelError
from lorawise.models.attention import DOCUMENTS, document_call
from lorawise.models.batch import ModelBatch
from lorawise.models.head import Head, decoder_of
from lorawise.models.loss import chunk_of, chunked_loss, wide_dtype


@dataclass(frozen=True, kw_only=True, eq=False)
class LossParts:
    """Sums, for the caller to divide: Σ sums / Σ counts over a step's micro-batches is the token-weighted mean.

    sums      (n,) fp32, differentiable
    counts    (n,) int64: trained tokens (classification: documents)
    per_row   (n, documents) fp32, detached: each document's sum
    """

    sums: Tensor
    counts: Tensor
    per_row: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Classified:
    """`loss` over documents, and their logits (n, documents, labels), detached."""

    loss: LossParts
    logits: Tensor


def causal_loss(model: PreTrainedModel, batch: ModelBatch, *, n: int = 1, chunk: int | None = None) -> LossParts:
    """Next-token cross-entropy of the batch's trained tokens, `chunk` of them at a time (None: as `chunk_of` says)."""
    hidden, output = _hidden(model, batch, n)
    head = Head(model, output)
    if chunk is None:
        slots = 1 if head.draws_masks() else n  # a mask follows from the chunk's shape, so n may not decide it (law 4)
        chunk = chunk_of(model.config.get_text_config().vocab_size, slots, hidden.element_size())
    sums, each = chunked_loss(hidden, batch.positions, batch.targets, head, chunk)
    per_row = each.new_zeros(n, len(batch.lengths)).index_add_(1, batch.documents, each)
    counts = torch.full((n,), len(batch.targets), device=sums.device)
    return LossParts(sums=sums, counts=counts, per_row=per_row)


def classification_loss(model: PreTrainedModel, batch: ModelBatch, labels: Tensor, *, n: int = 1) -> Classified:
    """Cross-entropy of `labels` (documents,) under `model.score` at each document's last token."""
    hidden, _ = _hidden(model, batch, n)
    picked = torch.index_select(hidden, 1, batch.last)
    logits: Tensor = model.get_submodule("score")(picked)
    z = logits.to(wide_dtype(logits.dtype))
    each = F.cross_entropy(z.flatten(0, 1), labels.repeat(n), reduction="none").view(n, -1)
    counts = torch.full((n,), len(labels), device=each.device)
    loss = LossParts(sums=each.sum(1), counts=counts, per_row=each.detach())
    return Classified(loss=loss, logits=logits.detach())


def _hidden(model: PreTrainedModel, batch: ModelBatch, n: int) -> tuple[Tensor, type[ModelOutput]]:
    """The decoder's last hidden states, (n, rows·t, width), and the type of its output."""
    ids = batch.ids.repeat(n, 1)
    if batch.layout == "padded":
        mask = batch.attention_mask()
        mask = None if mask is None else mask.repeat(n, 1)
        output = decoder_of(model)(input_ids=ids, attention_mask=mask, use_cache=False)
    else:
        if model.config._attn_implementation != DOCUMENTS:
            raise ModelError(
                f"packed rows, but the model's attention is {model.config._attn_implementation!r}",
                expected="attention document by document",
                cure="ask packing_support(model) first; it sets it where the model can pack",
            )
        output = decoder_of(model)(
            input_ids=ids, use_cache=False, **document_call(batch.position_ids, batch.spans, n=n)
        )
    return output.last_hidden_state.unflatten(0, (n, -1)).flatten(1, 2), type(output)
