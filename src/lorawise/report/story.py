"""A run read back from its folder: what the report tells, gathered from files alone.

    run.yaml  metrics.jsonl  facts.json  adapter/provenance.json   ─▶ Story

Any of them but run.yaml may be missing or short: a run that stopped early still has a report.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lorawise.report import words
from lorawise.report.facts import FACTS_NAME, read_facts
from lorawise.report.metrics import METRICS_NAME, read_metrics
from lorawise.runfile import RunFile, load_run_file

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Story:
    folder: Path
    run: RunFile
    run_text: str
    steps: tuple[Line, ...]
    evaluations: tuple[Line, ...]
    facts: Line
    provenance: Line

    @cached_property
    def base(self) -> Line | None:
        """The base's own evaluation, the last one made."""
        return next((line for line in reversed(self.evaluations) if line["name"] == "base"), None)

    @cached_property
    def validations(self) -> tuple[Line, ...]:
        return tuple(line for line in self.evaluations if line["name"] == "validation")

    @cached_property
    def best(self) -> Line | None:
        """The adapter's evaluation with the lowest loss: the adapter that was kept."""
        scored = [line for line in self.validations if line["loss"] is not None]
        return min(scored, key=lambda line: line["loss"]) if scored else None

    @cached_property
    def ended(self) -> Line:
        ended: Line = self.facts.get("ended", {})
        return ended

    @property
    def name(self) -> str:
        return self.folder.name

    def verdict(self) -> str:
        """One sentence: did it work?"""
        parts = [self._compared(), self._how_it_ended()]
        return " ".join(part for part in parts if part)

    def _compared(self) -> str:
        best, base = self.best, self.base
        if any(line["loss"] is None for line in self.steps):
            return "The loss diverged: a lower learning rate or scaling is the first thing to try."
        if best is None:
            return "No validation rows were measured, so nothing here shows what the adapter learned."
        if base is None or base["loss"] is None:
            return f"Validation loss {words.loss(best['loss'])} at step {best['step']}."
        moved = "fell" if best["loss"] < base["loss"] else "did not fall"
        sentence = f"Validation loss {moved} from {words.loss(base['loss'])} to {words.loss(best['loss'])}"
        for key, noun in (("exact_match", "exact match"), ("accuracy", "accuracy")):
            if best.get(key) is not None and base.get(key) is not None:
                sentence += f", {noun} went from {words.percent(base[key])} to {words.percent(best[key])}"
        return sentence + "."

    def _how_it_ended(self) -> str:
        match self.ended.get("reason"):
            case "interrupted":
                return f"Stopped at step {self.ended['step']}; it can go on with --resume."
            case "stopped early":
                return f"Stopped early at step {self.ended['step']}: validation no longer got better."
            case "failed":
                return f"Something went wrong after step {self.ended['step']}; it can go on with --resume."
            case None:
                return "The run has not ended yet."
        return ""

    def samples(self, limit: int = 12) -> list[Line]:
        """The base's answers beside the kept adapter's, by prompt and reference; misses of the adapter first."""
        after = (self.best or {}).get("samples") or []
        before = {(s["prompt"], s["reference"]): s for s in (self.base or {}).get("samples") or []}
        pairs = [{"after": sample, "before": before.get((sample["prompt"], sample["reference"]))} for sample in after]
        return sorted(pairs, key=lambda pair: bool(pair["after"]["match"]))[:limit]

    def tokens_per_second(self) -> float | None:
        if self.ended.get("tokens_per_second"):
            return float(self.ended["tokens_per_second"])
        seconds = math.fsum(line["seconds"] or 0 for line in self.steps)
        return sum(line["tokens"] for line in self.steps) / seconds if seconds else None


def read_story(folder: Path) -> Story:
    """Everything the report needs from a run's folder. ConfigError when it holds no run.yaml."""
    run, _ = load_run_file(folder / "run.yaml")
    lines = read_metrics(folder / METRICS_NAME)
    return Story(
        folder=folder.absolute(),
        run=run,
        run_text=(folder / "run.yaml").read_text(encoding="utf-8"),
        steps=tuple(line for line in lines if line["kind"] == "step"),
        evaluations=tuple(line for line in lines if line["kind"] == "evaluation"),
        facts=read_facts(folder / FACTS_NAME),
        provenance=_provenance(folder / "adapter" / "provenance.json"),
    )


def _provenance(path: Path) -> Line:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return record if isinstance(record, dict) else {}
