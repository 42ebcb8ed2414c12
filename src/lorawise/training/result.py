"""What a run came to, for whoever called it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lorawise.base.findings import Finding
from lorawise.report.events import EndReason, Preflight, RunEnded
from lorawise.training.state import Progress


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to. Losses are in nats a trained token; None without validation rows."""

    run: Path
    adapter: Path | None
    reason: EndReason
    steps: int
    tokens: int
    trained_tokens: int
    train_seconds: float
    tokens_per_second: float
    validation_loss: float | None
    base_validation_loss: float | None
    peak_memory: int
    findings: tuple[Finding, ...] = ()
    preflight: Preflight | None = None

    @classmethod
    def of(cls, run: Path, ended: RunEnded) -> Self:
        """Of a run that has just ended."""
        return cls(
            run=run,
            adapter=ended.adapter,
            reason=ended.reason,
            steps=ended.step,
            tokens=ended.tokens,
            trained_tokens=ended.trained_tokens,
            train_seconds=ended.seconds,
            tokens_per_second=ended.tokens_per_second,
            validation_loss=ended.validation_loss,
            base_validation_loss=ended.base_validation_loss,
            peak_memory=ended.peak_memory,
        )

    @classmethod
    def of_finished(cls, run: Path, done: Progress, findings: Sequence[Finding]) -> Self:
        """Of one that ended before, by its last checkpoint."""
        assert done.ended is not None
        return cls(
            run=run,
            adapter=run / "adapter" if (run / "adapter").is_dir() else None,
            reason=done.ended,
            steps=done.step,
            tokens=done.tokens,
            trained_tokens=done.trained_tokens,
            train_seconds=done.seconds,
            tokens_per_second=done.tokens_per_second,
            validation_loss=done.best_loss,
            base_validation_loss=done.loss_of("base"),
            peak_memory=done.peak_memory,
            findings=tuple(findings),
        )

    @classmethod
    def of_dry_run(cls, run: Path, findings: Sequence[Finding], report: Preflight) -> Self:
        """Of one that stopped after preflight."""
        return cls(
            run=run,
            adapter=None,
            reason="dry run",
            steps=0,
            tokens=0,
            trained_tokens=0,
            train_seconds=0.0,
            tokens_per_second=0.0,
            validation_loss=None,
            base_validation_loss=None,
            peak_memory=report.peak_memory,
            findings=tuple(findings),
            preflight=report,
        )
