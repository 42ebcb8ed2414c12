"""Token ids and which of them are trained: the values that encoding makes and batches are cut from.

Encoded.ids      (t,) int32
Encoded.trained  (t,) bool    token j is a target: predicted from the tokens before it. Token 0 never is
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorawise.base.findings import Finding


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One row as the model sees it. `row` is its index in the rows given, `cut` the tokens beyond max_length."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    row: int
    cut: int = 0
    label: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def trained_tokens(self) -> int:
        """Labelled positions; one for a row whose class a head learns."""
        return 1 if self.label is not None else int(np.count_nonzero(self.trained))


MUTE = ("no-trained-tokens", "one-token", "no-answer-printed")  # codes of rows that would teach nothing


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A row that cannot be trained on: its index, a code and what was found."""

    row: int
    code: Literal["template-refuses", "no-trained-tokens", "one-token", "no-answer-printed", "unknown-label"]
    found: str


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSet:
    """Encoded rows in order, without those refused; what was cut and what was refused.

    stop_ids  the tokenizer's stop ids and every terminator that was trained: generation stops at any of them
    weights   (rows,) how often each is seen an epoch
    digest    of the rows, the tokenizer, the template and the options
    """

    rows: tuple[Encoded, ...]
    weights: NDArray[np.float64]
    stop_ids: tuple[int, ...]
    digest: str = ""
    problems: tuple[Finding, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Encoded]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Encoded:
        return self.rows[index]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        return np.array([len(row.ids) for row in self.rows], dtype=np.int64)

    @cached_property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def trained_tokens(self) -> int:
        return sum(row.trained_tokens for row in self.rows)

    @property
    def tokens_per_epoch(self) -> int:
        """Of a mean epoch: a row of weight 2 counts twice, one of weight 0.5 half."""
        return round(float(self.lengths @ self.weights))

    @property
    def trained_tokens_per_epoch(self) -> int:
        """Those of them that are trained."""
        counts = np.array([row.trained_tokens for row in self.rows], dtype=np.int64)
        return round(float(counts @ self.weights))

    @cached_property
    def highest_id(self) -> int:
        return max((int(row.ids.max()) for row in self.rows if len(row)), default=0)

    @cached_property
    def cut_rows(self) -> int:
        return sum(row.cut > 0 for row in self.rows)

    @cached_property
    def cut_tokens(self) -> int:
        return sum(row.cut for row in self.rows)
