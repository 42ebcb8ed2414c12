"""One micro-batch as the tensors a forward pass wants.

A packed batch is one flat row of documents with positions that restart; a padded one has a document a row, padded on
the right. Token j of a document is predicted from position j − 1, so the first token of a document is never a target.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from lorawise.base.errors import DataError

if TYPE_CHECKING:
    from lorawise.data.batches import MicroBatch

Layout = Literal["packed", "padded"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelBatch:
    """All on one device, int64. Flat indices count the tokens of all rows, padding included.

    ids, position_ids  (rows, t)
    lengths            tokens of each document, in order
    positions          (P,) flat index of each position that predicts a trained token, rising
    targets            (P,) that token
    documents          (P,) which document it belongs to
    last               (documents,) flat index of each document's last token
    """

    layout: Layout
    ids: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]
    positions: Tensor
    targets: Tensor
    documents: Tensor
    last: Tensor

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    def attention_mask(self) -> Tensor | None:
        """(rows, t) ones on the tokens of a padded batch; None where no row has padding."""
        if self.layout == "packed" or min(self.lengths) == self.ids.shape[1]:
            return None
        lengths = torch.tensor(self.lengths, device=self.ids.device)
        return (torch.arange(self.ids.shape[1], device=self.ids.device) < lengths[:, None]).long()


def to_model_batch(batch: "MicroBatch", device: torch.device | str = "cpu") -> ModelBatch:
    """Find targets and documents' ends in numpy, then move everything to `device` at once."""
    rows, width = batch.ids.shape
    lengths = np.asarray(batch.lengths)
    starts = np.cumsum(lengths) - lengths if batch.layout == "packed" else np.arange(rows) * width
    trained = np.asarray(batch.trained, dtype=bool).reshape(-1)
    if trained[starts].any():
        where = int(np.flatnonzero(trained[starts])[0])
        raise DataError(
            f"the first token of document {where} of a batch is marked as trained",
            expected="trained tokens that follow another token of their document",
            cure="leave the first token of every row out of the trained ones",
        )
    targets = np.flatnonzero(trained)
    documents = np.searchsorted(starts, targets, side="right") - 1

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)

    return ModelBatch(
        layout=batch.layout,
        ids=tensor(batch.ids),
        position_ids=tensor(batch.position_ids),
        lengths=tuple(int(length) for length in lengths),
        positions=tensor(targets - 1),
        targets=tensor(np.asarray(batch.ids).reshape(-1)[targets]),
        documents=tensor(documents),
        last=tensor(starts + lengths - 1),
    )
