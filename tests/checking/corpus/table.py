"""Misses and false alarms over the corpus, as a table: `python -m tests.checking.corpus`.

A fault is caught when its rule speaks; an error of another rule over the same fault is a false alarm, and so is any
error over a sane setting.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.checking.corpus.case import Case
from tests.checking.corpus.faults import FAULTS
from tests.checking.corpus.sane import SANE

from lorawise import check
from lorawise.base.findings import Finding


@dataclass(frozen=True, kw_only=True)
class Outcome:
    case: Case
    findings: tuple[Finding, ...]

    @property
    def caught(self) -> bool:
        return any(finding.code == self.case.expects for finding in self.findings)

    @property
    def false_alarms(self) -> list[Finding]:
        return [f for f in self.findings if f.level == "error" and f.code != self.case.expects]


def outcome_of(case: Case, folder: Path) -> Outcome:
    paths = case.write(folder)
    return Outcome(case=case, findings=check(*paths, base=folder / case.base if case.base else None).findings)


def outcomes() -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory() as top:
        for number, case in enumerate((*FAULTS, *SANE)):
            yield outcome_of(case, Path(top) / str(number))


def table() -> str:
    seen = list(outcomes())
    faults = [outcome for outcome in seen if outcome.case.expects]
    sane = [outcome for outcome in seen if not outcome.case.expects]
    lines = [f"{'':<38}{'expected':<10}findings"]
    for outcome in seen:
        wrong = outcome.false_alarms or (outcome.case.expects and not outcome.caught)
        if wrong:
            said = ", ".join(f"{f.code} {f.level}" for f in outcome.findings) or "none"
            lines.append(f"{outcome.case.name:<38}{outcome.case.expects or 'no error':<10}{said}")
    if len(lines) == 1:
        lines = ["no miss, no false alarm"]
    caught = sum(outcome.caught for outcome in faults)
    alarms = sum(bool(outcome.false_alarms) for outcome in seen)
    lines.append(f"\n{caught} of {len(faults)} seeded faults caught; {len(sane)} sane settings; {alarms} false alarms")
    return "\n".join(lines)
