"""Encoded rows → the micro-batches of every optimizer step, as a pure function of (options, seed, step).

    epoch   every row once (or as its weight says), shuffled by (seed, epoch)
    step    rows of one optimizer update: `batch_tokens` filled by packing.py, or `batch_size` rows
    micro   what one forward sees, within `micro_batch_tokens` and `micro_batch_size`

Two layouts of a micro-batch: `packed`, documents end to end in one flat row with position_ids that restart; `padded`,
one document a row, filled on the right. Which rows a step holds does not depend on how it is split into micro-batches,
so a smaller micro-batch changes memory and not the training (law 6). Resuming needs the step number only (law 7).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import ConfigError, DataError
from lorawise.data.encoded import Encoded, EncodedSet
from lorawise.data.packing import pack, pack_windows, random_bits, shuffled

Layout = Literal["packed", "padded"]

MAX_EPOCHS = 10_000  # beyond it the number of steps or the weight of a source is a slip, not a plan
LOOKED_AT = 64  # epochs searched for the largest micro-batch; later ones are drawn from the same rows
BUCKET_STEPS = 32  # padded steps whose rows are sorted by length together


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """What one forward and backward sees; (rows, t) arrays, in `packed` layout rows is 1.

    ids           int64; filler beyond a document in `padded` layout
    trained       bool; token j is a target, predicted from position j-1 of its document. Never true on filler
    position_ids  int64, from 0 in each document
    lengths       of the documents, in order; packed: their sum is t
    rows          index of each document's row in the data
    labels        class of each document; empty unless the rows are for classification
    """

    ids: NDArray[np.int64]
    trained: NDArray[np.bool_]
    position_ids: NDArray[np.int64]
    lengths: tuple[int, ...]
    layout: Layout
    rows: tuple[int, ...]
    labels: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Real tokens, without filler."""
        return sum(self.lengths)

    @property
    def cells(self) -> int:
        """Positions that are computed: rows · t."""
        return int(self.ids.size)

    @cached_property
    def trained_tokens(self) -> int:
        """What the loss is a mean over: labelled positions, or one for each document that is classified."""
        return len(self.labels) or int(np.count_nonzero(self.trained))


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """
    layout              packed or padded
    batch_tokens        tokens of an optimizer step, at most; or `batch_size` rows: one of the two
    micro_batch_tokens  positions of a micro-batch, at most (filler counts); None: no bound but the step
    micro_batch_size    documents of a micro-batch, at most
    pad_id              the filler of padded rows
    """

    layout: Layout = "packed"
    batch_tokens: int | None = None
    batch_size: int | None = None
    micro_batch_tokens: int | None = None
    micro_batch_size: int | None = None
    seed: int = 0
    pad_id: int = 0

    def __post_init__(self) -> None:
        if (self.batch_tokens is None) == (self.batch_size is None):
            raise ConfigError(
                f"batch_tokens={self.batch_tokens} and batch_size={self.batch_size}",
                expected="one of the two",
                cure="write batch_tokens (a step by tokens) or batch_size (a step by rows)",
            )
        for name in ("batch_tokens", "batch_size", "micro_batch_tokens", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}", expected="a whole number from 1")
        if self.layout not in ("packed", "padded"):
            raise ConfigError(f"layout={self.layout!r}", expected="packed or padded")


class BatchPlan:
    """All steps of a run, addressed by number: `plan.step(k)` gives the micro-batches of optimizer step k from 0.

    Epochs are planned when first needed and may differ in their number of steps by a few.
    """

    def __init__(self, encoded: EncodedSet, options: BatchOptions) -> None:
        if not len(encoded):
            raise DataError("there are no rows to train on", cure="add rows, or look at why all were left out")
        longest = int(encoded.lengths.max())
        for name in ("batch_tokens", "micro_batch_tokens"):
            bound = getattr(options, name)
            if bound is not None and bound < longest:
                raise ConfigError(
                    f"{name}={bound:,}, but the longest row has {longest:,} tokens",
                    expected="room for the longest row: documents are never split",
                    cure=f"set {name} to {longest:,} or more, or lower max_length",
                )
        self.encoded = encoded
        self.options = options
        self._epochs: list[list[NDArray[np.int64]]] = []
        self._phases = random_bits(len(encoded), options.seed, 1).astype(np.float64) / 2.0**64

    @property
    def steps_per_epoch(self) -> int:
        """Of the first epoch; `steps_in` counts several exactly."""
        return len(self._epoch(0))

    def steps_in(self, epochs: float) -> int:
        """Optimizer steps of that many epochs, a part of an epoch rounded up."""
        if epochs > MAX_EPOCHS:
            raise _too_many(f"{epochs:g} epochs")
        whole = int(epochs)
        part = epochs - whole
        steps = sum(len(self._epoch(epoch)) for epoch in range(whole))
        return steps + (int(np.ceil(part * len(self._epoch(whole)))) if part > 0 else 0)

    def epoch_at(self, step: int) -> float:
        """Epochs done when `step` steps are done: 1.5 is the middle of the second."""
        epoch, at = self._locate(step)
        return epoch + at / len(self._epoch(epoch))

    def step(self, k: int) -> list[MicroBatch]:
        """The micro-batches of optimizer step k; the same every time it is asked, in any order."""
        epoch, at = self._locate(k)
        return micro_batches(self.encoded, self._epoch(epoch)[at], self.options)

    def longest(self, epochs: float = 1.0) -> MicroBatch:
        """The micro-batch with the most positions, then the longest document: what memory has to hold."""
        best: tuple[int, int] = (0, 0)
        chosen: NDArray[np.int64] | None = None
        for epoch in range(min(max(1, int(np.ceil(epochs))), LOOKED_AT)):
            for documents in self._epoch(epoch):
                for group in split(self.encoded.lengths[documents], self.options):
                    lengths = self.encoded.lengths[documents[group]]
                    size = (_cells(lengths, self.options.layout), int(lengths.max()))
                    if size > best:
                        best, chosen = size, documents[group]
        assert chosen is not None, "a plan has at least one row"
        return micro_batch([self.encoded[i] for i in chosen], self.options)

    @cached_property
    def efficiency(self) -> float:
        """Real tokens over the positions paid for in the first epoch: the step budget, or the padded rectangles."""
        steps = self._epoch(0)
        tokens = sum(int(self.encoded.lengths[documents].sum()) for documents in steps)
        if self.options.layout == "packed":
            return tokens / (self.options.batch_tokens * len(steps)) if self.options.batch_tokens else 1.0
        cells = 0
        for documents in steps:
            lengths = self.encoded.lengths[documents]
            cells += sum(_cells(lengths[group], "padded") for group in split(lengths, self.options))
        return tokens / cells

    def _locate(self, step: int) -> tuple[int, int]:
        if step > MAX_EPOCHS * self.steps_per_epoch:
            raise _too_many(f"{step:,} steps over {len(self.encoded):,} rows")
        epoch = 0
        while step >= len(self._epoch(epoch)):
            step -= len(self._epoch(epoch))
            epoch += 1
        return epoch, step

    def _epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        while len(self._epochs) <= epoch:
            self._epochs.append(self._plan(len(self._epochs)))
        return self._epochs[epoch]

    def _plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """The steps of one epoch, each as indices into the encoded rows."""
        seed = self.options.seed
        order = shuffled(self._drawn(epoch), seed, 2, epoch)
        if self.options.batch_tokens is not None:
            steps = list(pack_windows(order, self.encoded.lengths, self.options.batch_tokens))
        else:
            size = self.options.batch_size or 1
            if self.options.layout == "padded":
                order = self._bucketed(order, size * BUCKET_STEPS)
            steps = [order[start : start + size] for start in range(0, len(order), size)]
        return [steps[i] for i in shuffled(np.arange(len(steps)), seed, 3, epoch)]

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        """Rows of an epoch: weight 1 once, 2 twice, 0.5 in every second epoch, by a phase of its own for each row."""
        weights = self.encoded.weights
        copies = np.floor(weights * (epoch + 1) + self._phases) - np.floor(weights * epoch + self._phases)
        drawn = np.repeat(np.arange(len(weights)), copies.astype(np.int64))
        return drawn if len(drawn) else np.array([int(np.argmax(weights))], dtype=np.int64)

    def _bucketed(self, order: NDArray[np.int64], window: int) -> NDArray[np.int64]:
        lengths = self.encoded.lengths
        parts = [order[start : start + window] for start in range(0, len(order), window)]
        return np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])


def _too_many(found: str) -> ConfigError:
    return ConfigError(
        f"{found} are more than {MAX_EPOCHS:,} passes over the data", cure="lower train.steps or train.epochs"
    )


def eval_batches(encoded: EncodedSet, options: BatchOptions) -> list[MicroBatch]:
    """Every row once, in an order that never changes, in micro-batches as large as training's."""
    if not len(encoded):
        return []
    bound = options.micro_batch_tokens or options.batch_tokens
    room = BatchOptions(
        layout=options.layout,
        batch_size=len(encoded),
        micro_batch_tokens=None if bound is None else max(bound, int(encoded.lengths.max())),
        micro_batch_size=options.micro_batch_size or (options.batch_size if bound is None else None),
        pad_id=options.pad_id,
    )
    return micro_batches(encoded, np.arange(len(encoded)), room)


def micro_batches(encoded: EncodedSet, documents: NDArray[np.int64], options: BatchOptions) -> list[MicroBatch]:
    """Some encoded rows, given by index, as micro-batches within the options' bounds."""
    groups = split(encoded.lengths[documents], options)
    return [micro_batch([encoded[i] for i in documents[group]], options) for group in groups]


def split(lengths: NDArray[np.int64], options: BatchOptions) -> list[list[int]]:
    """Documents of a step → those of each micro-batch, as indices into `lengths`."""
    most = options.micro_batch_size
    if options.layout == "packed":
        return pack(lengths, options.micro_batch_tokens or int(lengths.sum()), most=most)
    groups: list[list[int]] = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        last = groups[-1] if groups else []
        width = int(lengths[last[0]]) if last else 0
        fits = options.micro_batch_tokens is None or width * (len(last) + 1) <= options.micro_batch_tokens
        if last and fits and (most is None or len(last) < most):
            last.append(index)
        else:
            groups.append([index])
    return groups


def micro_batch(documents: Sequence[Encoded], options: BatchOptions) -> MicroBatch:
    """Documents side by side in the options' layout."""
    lengths = tuple(len(document) for document in documents)
    labels = tuple(document.label for document in documents if document.label is not None)
    if options.layout == "packed":
        ids = np.concatenate([document.ids for document in documents]).astype(np.int64)[None]
        trained = np.concatenate([document.trained for document in documents])[None]
        positions = np.concatenate([np.arange(length) for length in lengths])[None]
    else:
        shape = (len(documents), max(lengths))
        ids, trained = np.full(shape, options.pad_id, dtype=np.int64), np.zeros(shape, dtype=bool)
        positions = np.minimum(np.arange(shape[1]), np.array(lengths)[:, None] - 1)
        for i, document in enumerate(documents):
            ids[i, : lengths[i]], trained[i, : lengths[i]] = document.ids, document.trained
    return MicroBatch(
        ids=ids,
        trained=trained,
        position_ids=positions.astype(np.int64),
        lengths=lengths,
        layout=options.layout,
        rows=tuple(document.row for document in documents),
        labels=labels,
    )


def _cells(lengths: NDArray[np.int64], layout: Layout) -> int:
    return int(lengths.sum()) if layout == "packed" else int(lengths.max()) * len(lengths)
