"""Every seeded fault is caught by its rule and raises no other error; no sane setting raises one."""

import re
from pathlib import Path

import pytest
from tests.checking.corpus.case import Case
from tests.checking.corpus.faults import FAULTS
from tests.checking.corpus.sane import SANE
from tests.checking.corpus.table import outcome_of

from lorawise import check
from lorawise.checking.reading import subjects
from lorawise.checking.rules import RULES, Rule

GUIDE = (Path(__file__).parent / "corpus" / "guide_script.txt").read_text(encoding="utf-8")


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(FAULTS) >= 60
    assert len(SANE) >= 25
    assert len({case.name for case in (*FAULTS, *SANE)}) == len(FAULTS) + len(SANE)


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: f"{case.expects} {case.name}")
def test_a_fault_is_caught_by_its_rule_and_by_no_other_error(case: Case, tmp_path: Path) -> None:
    outcome = outcome_of(case, tmp_path)
    assert outcome.caught, outcome.findings
    assert not outcome.false_alarms


@pytest.mark.parametrize("case", SANE, ids=lambda case: case.name)
def test_a_sane_setting_raises_no_error(case: Case, tmp_path: Path) -> None:
    outcome = outcome_of(case, tmp_path)
    assert not outcome.false_alarms
    assert not [finding for finding in outcome.findings if finding.code.startswith("LW0")]


def test_the_guides_own_script_has_the_faults_it_has_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "guide.py"
    path.write_text(GUIDE, encoding="utf-8")
    found = {(finding.code, finding.line) for finding in check(path).findings}
    assert found == {
        ("LW401", _line("evaluation_strategy=")),
        ("LW402", _line("torch_dtype=")),
        ("LW403", _line("fp16=True")),
        ("LW314", _line("trainer = Trainer(")),
        ("LW315", _line("trainer = Trainer(")),
        ("LW316", _line("eval_dataset=")),
        ("LW301", _line("tokenizer.pad_token =")),
        ("LW304", _line("return tokenizer(")),
    }


def _line(start: str) -> int:
    return next(n for n, text in enumerate(GUIDE.splitlines(), 1) if text.strip().startswith(start))


def test_every_rule_has_a_failing_example() -> None:
    seeded = {case.expects for case in FAULTS}
    elsewhere = {"LW003", "LW004", "LW302", "LW303"}  # test_hostile.py, test_rows.py
    assert seeded | elsewhere == set(RULES)
    assert all(re.fullmatch(r"LW[0-6]\d\d", code) for code in RULES)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Codes of the rules that looked at something of another case and had nothing to say of it."""
    found: set[str] = set()
    for case in (*SANE, *FAULTS):
        folder = tmp_path_factory.mktemp("case")
        base = folder / case.base if case.base else None
        for path in case.write(folder):
            for subject in subjects(path, base=base):
                found |= {code for code in RULES if code != case.expects and _is_silent(RULES[code], subject)}
    return frozenset(found)


def _is_silent(rule: Rule, subject: object) -> bool:
    return type(subject) is rule.subject and not list(rule.check(subject))


@pytest.mark.parametrize("code", sorted(RULES))
def test_a_rule_has_a_passing_example_which_it_looks_at_in_silence(code: str, silent: frozenset[str]) -> None:
    assert code in silent
