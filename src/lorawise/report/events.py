"""What a run says while it runs: the stream that the training loop yields and every reader takes.

    RunStarted → PreflightDone → (StepDone | Evaluated | Saved | Noted)* → RunEnded

The loop prints, logs and saves nothing itself; console, metrics file, trackers, pruners and the report read this
stream. Units: memory in bytes, times in seconds, losses in nats per trained token. Steps count optimizer steps from 1;
step 0 is the untrained state. A loss that diverged is NaN here and null in files. No torch in here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from lorawise.base.findings import Finding

EvaluationName = Literal["validation", "base"]
EndReason = Literal["finished", "stopped early", "interrupted", "diverged", "failed", "dry run"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of one row's text as the model sees it; `trained` when its tokens carry a label."""

    text: str
    trained: bool


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing preflight looked at: `name` is the claim, `detail` what was seen."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ExpertTokens:
    """Tokens that one layer's router sent to each of its experts; a token counts once for each that it was sent to."""

    module: str
    tokens: tuple[int, ...]

    @property
    def idle(self) -> tuple[int, ...]:
        """Experts that no token reached."""
        return tuple(e for e, count in enumerate(self.tokens) if not count)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Of an adapter's low-rank parameters: how many there are, how many the batch tried would move."""

    meant: int
    moved: int
    experts: tuple[ExpertTokens, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What preflight saw before the first step.

    row            one training row as the model sees it, special tokens included, in order
    rows .. cut_tokens   of the training rows: how many, skipped as bad, cut at `max_length`, and what that cost
    longest        tokens of the longest row; its forward and backward is what `peak_memory` was measured on
    coverage       what of the adapter that pass reached
    """

    checks: tuple[Check, ...]
    row: tuple[Piece, ...]
    rows: int
    validation_rows: int
    skipped_rows: int
    cut_rows: int
    cut_tokens: int
    tokens: int
    trained_tokens: int
    longest: int
    peak_memory: int
    seconds: float
    coverage: Coverage | None = None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One generated answer: its prompt as text, the reference, and what came out."""

    prompt: str
    reference: str
    answer: str
    match: bool


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """`setting` shows at least r, alpha, scaling, target_modules, learning_rate; `first_step` is above 1 on resume."""

    run: Path
    setting: Mapping[str, object]
    steps_total: int
    first_step: int = 1
    epochs: float
    trainable_parameters: int
    total_parameters: int
    tokens_per_epoch: int
    trained_tokens_per_epoch: int
    device: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class PreflightDone:
    report: Preflight


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """One optimizer step. `tokens` and `trained_tokens` are this step's (real, unpadded).

    `gradient_norm` is before clipping; `tokens_per_second` is over this step; `memory` is the peak so far (allocated on
    an accelerator, RSS on CPU).
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    trained_tokens: int
    seconds: float
    tokens_per_second: float
    memory: int


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One evaluation on the validation rows: the adapter's (`validation`) or the untouched base's (`base`).

    exact_match, accuracy, f1   shares of 1, None where not measured
    best                        this is the lowest validation loss so far (never set for `base`)
    """

    step: int
    name: EvaluationName
    loss: float
    perplexity: float
    tokens: int
    seconds: float = 0.0
    exact_match: float | None = None
    accuracy: float | None = None
    f1: float | None = None
    samples: tuple[Sample, ...] = ()
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint was written whole."""

    step: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class Noted:
    """Something worth a person's attention; `step` 0 before the run."""

    finding: Finding
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class RunEnded:
    """The last event of every run that reached its loop, also of one that stopped."""

    reason: EndReason
    step: int
    tokens: int
    trained_tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory: int
    validation_loss: float | None = None
    base_validation_loss: float | None = None
    best_step: int | None = None
    adapter: Path | None = None


Event = RunStarted | PreflightDone | StepDone | Evaluated | Saved | Noted | RunEnded


class Reader(Protocol):
    """Takes every event of a run, in order; `close` comes once, also after an error."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...
