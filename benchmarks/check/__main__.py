"""Hits and false alarms of `lorawise check` and peft-doctor over the corpus in tests/checking/corpus.

    python -m benchmarks.check              needs `pip install peft-doctor`; without it, ours alone

A fault is a *hit* when something of level warning or error is said of it that is not said of the sane case it was made
from (so that what a tool always says earns nothing); ours is also held to the exact rule. A *false alarm* is an error
over a sane case. The corpus was seeded from lorawise's own rules: the table tells how much of it each tool covers, not
how either does on faults nobody thought of.
"""

import argparse
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.checking.corpus.case import Case
from tests.checking.corpus.faults import ADAPTERS, FAULTS, NUMBERS, RANKS, ROWS, RUNS, SCALING, TEMPLATE, TRAINING
from tests.checking.corpus.sane import SANE

from benchmarks.keeping import keep, today
from lorawise import __version__, check

GROUPS = {
    "scaling": (*SCALING, *NUMBERS),
    "rank and targets": RANKS,
    "template": TEMPLATE,
    "rows": ROWS,
    "trainer": TRAINING,
    "runs": RUNS,
    "adapters": ADAPTERS,
}
Said = frozenset[tuple[str, str]]  # (level, what was said)
Judge = Callable[[Case, Path], Said]


@dataclass
class Tally:
    name: str
    hits: Counter[str] = field(default_factory=Counter)
    alarms: list[str] = field(default_factory=list)
    warned: int = 0  # sane cases with a warning or an error
    crashes: int = 0
    seconds: float = 0.0


def ours(case: Case, folder: Path) -> Said:
    paths = case.write(folder)
    found = check(*paths, base=folder / case.base if case.base else None).findings
    return frozenset((finding.level, finding.code) for finding in found)


def peer(case: Case, folder: Path) -> Said:
    from benchmarks.check.peer import issues_of

    case.write(folder)
    return frozenset((issue.severity, f"{issue.code} {issue.message}") for issue in issues_of(folder))


def origin(case: Case) -> Case:
    """The sane case a fault was made from: the one that shares most lines with it, among those of the same kind."""
    return max(SANE, key=lambda sane: _shared(case, sane))


def _shared(case: Case, sane: Case) -> float:
    """Files in common come first, then lines in common; both from 0 to 1."""
    one, other = _lines(case), _lines(sane)
    files = len(set(case.files) & set(sane.files)) / len(set(case.files) | set(sane.files))
    return 2 * files + 2 * (one & other).total() / max(1, one.total() + other.total())


def _lines(case: Case) -> Counter[str]:
    texts = [text for text in case.files.values() if isinstance(text, str)]
    return Counter(line.strip() for text in texts for line in text.splitlines()[:200])


def tally(name: str, judge: Judge) -> Tally:
    result = Tally(name=name)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lorawise-bench-") as top:
        said = {case.name: judge(case, Path(top) / str(number)) for number, case in enumerate((*SANE, *FAULTS))}
    result.seconds = time.perf_counter() - started
    for group, cases in GROUPS.items():
        for case in cases:
            new = _loud(said[case.name]) - _loud(said[origin(case).name])
            result.hits[group] += bool(new)
    for case in SANE:
        levels = {level for level, _ in said[case.name]}
        if "error" in levels:
            result.alarms.append(case.name)
        result.warned += bool(levels & {"error", "warning"})
    result.crashes = sum(any(level == "crash" for level, _ in each) for each in said.values())
    return result


def _loud(said: Said) -> set[str]:
    return {what for level, what in said if level in ("error", "warning")}


def exact() -> int:
    """Faults of ours that are told by exactly the rule that was meant, at any level."""
    with tempfile.TemporaryDirectory(prefix="lorawise-bench-") as top:
        return sum(
            case.expects in {code for _, code in ours(case, Path(top) / str(number))}
            for number, case in enumerate(FAULTS)
        )


def show(tallies: Iterable[Tally], exactly: int) -> str:
    listed = list(tallies)
    head = f"{'':<26}{'cases':>6}" + "".join(f"{each.name:>22}" for each in listed)
    lines = [f"{platform.machine()}, Python {platform.python_version()}, {today()}", "", head]
    for group, cases in GROUPS.items():
        lines.append(f"{group:<26}{len(cases):>6}" + "".join(f"{each.hits[group]:>22}" for each in listed))
    lines.append(f"{'faults hit':<26}{len(FAULTS):>6}" + "".join(f"{each.hits.total():>22}" for each in listed))
    lines.append(f"{'false alarms (errors)':<26}{len(SANE):>6}" + "".join(f"{len(each.alarms):>22}" for each in listed))
    lines.append(f"{'sane cases warned about':<26}{len(SANE):>6}" + "".join(f"{each.warned:>22}" for each in listed))
    lines.append(f"{'cases it crashed on':<26}{'':>6}" + "".join(f"{each.crashes:>22}" for each in listed))
    lines.append(f"{'seconds':<26}{'':>6}" + "".join(f"{each.seconds:>22.1f}" for each in listed))
    lines += [f"\nours told by exactly the rule that was meant: {exactly} of {len(FAULTS)}"]
    return "\n".join(lines)


def document(tallies: Iterable[Tally], exactly: int) -> dict[str, Any]:
    held = [vars(each) | {"hits": dict(each.hits)} for each in tallies]
    return {
        "date": today(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "exact": exactly,
        "tools": held,
        "faults": len(FAULTS),
        "sane": len(SANE),
        "cases": {name: len(cases) for name, cases in GROUPS.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.check", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="write the result below benchmarks/results")
    asked = parser.parse_args()
    tallies = [tally(f"lorawise {__version__}", ours)]
    if find_spec("peft_doctor") is not None:
        from benchmarks.check.peer import VERSION

        tallies.append(tally(f"peft-doctor {VERSION}", peer))
    else:
        print("peft-doctor is not installed: ours alone (pip install peft-doctor)")
    exactly = exact()
    print(show(tallies, exactly))
    if asked.keep:
        keep("check", document(tallies, exactly))


if __name__ == "__main__":
    main()
