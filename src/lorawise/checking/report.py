"""What a check found: findings by file, worst first; counts; and how it ended."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from lorawise.base.findings import Finding, Level
from lorawise.checking.rules import Fix

RANK: Mapping[Level, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, kw_only=True)
class Report:
    """`findings` in the order they are shown; `fixes` are safe to write, by file; `silenced` were asked away."""

    findings: tuple[Finding, ...]
    fixes: Mapping[str, tuple[Fix, ...]] = field(default_factory=dict)
    files: int = 0
    subjects: int = 0
    silenced: int = 0
    strict: bool = False

    @property
    def counts(self) -> Counter[str]:
        return Counter(finding.level for finding in self.findings)

    @property
    def failed(self) -> bool:
        counts = self.counts
        return bool(counts["error"] or (self.strict and counts["warning"]))

    def by_file(self) -> dict[str, list[Finding]]:
        """Files with their worst finding first; within a file by level, then line."""
        grouped: dict[str, list[Finding]] = {}
        for finding in self.findings:
            grouped.setdefault(finding.path, []).append(finding)
        return grouped


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """Each once; files whose worst finding is worst come first, and in a file errors before warnings before notes."""
    once = list(dict.fromkeys(findings))
    worst: dict[str, int] = {}
    for finding in once:
        worst[finding.path] = min(worst.get(finding.path, 9), RANK[finding.level])
    return tuple(
        sorted(once, key=lambda f: (worst[f.path], f.path, RANK[f.level], f.line or 0, f.code, f.message)),
    )
