"""Micro-batches of random tokens for the tests of the models room, and a loss by transformers to hold ours against."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorawise.data.batches import MicroBatch

VOCABULARY = 250  # of the tiny models' 256, without the special tokens


def packed_rows(lengths: Sequence[int], *, seed: int = 0, trained: float = 0.6) -> MicroBatch:
    """One flat row of documents; each token but a document's first is a target with probability `trained`."""
    draw = np.random.default_rng(seed)
    tokens = sum(lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    return MicroBatch(
        ids=draw.integers(3, VOCABULARY, (1, tokens)),
        trained=(draw.random((1, tokens)) < trained) & (positions > 0),
        position_ids=positions,
        lengths=tuple(lengths),
        layout="packed",
        rows=tuple(range(len(lengths))),
    )


def alone(batch: MicroBatch) -> list[MicroBatch]:
    """Each document of a packed batch as a packed batch of its own."""
    marks = np.cumsum((0, *batch.lengths))
    return [
        MicroBatch(
            ids=batch.ids[:, start:stop],
            trained=batch.trained[:, start:stop],
            position_ids=batch.position_ids[:, start:stop],
            lengths=(int(stop - start),),
            layout="packed",
            rows=(row,),
        )
        for row, start, stop in zip(batch.rows, marks[:-1], marks[1:], strict=True)
    ]


def padded(batch: MicroBatch, *, pad_id: int = 0) -> MicroBatch:
    """The documents of a packed batch one a row, padded on the right."""
    width = max(batch.lengths)

    def stack(name: str, fill: int) -> np.ndarray:
        rows = [getattr(one, name)[0] for one in alone(batch)]
        return np.stack([np.pad(row, (0, width - len(row)), constant_values=fill) for row in rows])

    return MicroBatch(
        ids=stack("ids", pad_id),
        trained=stack("trained", False),
        position_ids=np.tile(np.arange(width), (len(batch.lengths), 1)),
        lengths=batch.lengths,
        layout="padded",
        rows=batch.rows,
    )


def transformers_loss(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Σ cross-entropy by the model's own loss, document by document, under transformers' own eager attention."""
    model.set_attn_implementation("eager")
    total = torch.zeros((), dtype=model.dtype)
    for one in alone(batch):
        ids = torch.from_numpy(one.ids)
        labels = ids.masked_fill(~torch.from_numpy(one.trained), -100)
        if one.trained.any():
            total = total + model(input_ids=ids, labels=labels).loss * one.trained_tokens
    return total
