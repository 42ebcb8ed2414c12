"""The guide's four mistakes and what else the user's values do not agree with: each found, else quiet."""

from pathlib import Path

import pytest
from tests.planning.situations import LLAMA_8B, SMOL_135M, rows, situation

from lorawise.base.findings import Finding
from lorawise.planning.contradictions import RULES, contradictions
from lorawise.planning.dataset import DataFacts
from lorawise.planning.settled import decide_all as decide


def found(folder: Path, *sets: str, task: str = "chat", data: DataFacts | None = None) -> dict[str, Finding]:
    s = situation(folder, *sets, task=task, data=data)
    return {finding.code.removeprefix("plan-"): finding for finding in contradictions(s, decide(s))}


@pytest.mark.parametrize("task", ["style", "chat", "domain", "language", "multitask"])
def test_the_plans_own_advice_contradicts_nothing(tmp_path: Path, task: str) -> None:
    assert not found(tmp_path, task=task)
    assert not found(tmp_path, task=task, data=rows(2_000))


@pytest.mark.parametrize(
    ("sets", "code"),
    [
        (("lora.r=64",), "high-rank"),  # mistake 3
        (("lora.scaling=4", "train.learning_rate=5e-4"), "unstable"),  # mistake 2, its very numbers
        (("lora.r=32", "lora.target_modules=qv"), "few-modules"),  # mistake 4, its very numbers
        (("lora.r=2048",), "rank-beyond-width"),  # keys are 1,024 wide
        (("lora.scaling=16",), "outside-range"),
        (("train.learning_rate=1e-6",), "outside-range"),
        (("train.epochs=20",), "outside-range"),
        (("train.max_length=200000", "train.batch_tokens=200000"), "too-long"),
    ],
)
def test_a_value_that_speaks_against_the_sources_is_a_finding_with_a_cure(
    tmp_path: Path, sets: tuple[str, ...], code: str
) -> None:
    findings = found(tmp_path, *sets)
    assert code in findings
    assert findings[code].cure
    assert findings[code].level == "warning"


def test_a_rank_for_experts_that_are_not_adapted_is_told(tmp_path: Path) -> None:
    assert "has no fused experts" in found(tmp_path / "dense", "lora.expert_r=4")["no-experts"].message
    mixtral = LLAMA_8B | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}

    def of_experts(name: str, *sets: str) -> dict[str, Finding]:
        s = situation(tmp_path / name, *sets, config=mixtral)
        return {finding.code.removeprefix("plan-"): finding for finding in contradictions(s, decide(s))}

    assert "all-linear" in of_experts("attention", "lora.expert_r=4")["no-experts"].cure
    assert "no-experts" not in of_experts("adapted", "lora.expert_r=4", "lora.target_modules=all-linear")
    wide = of_experts("wide", "lora.expert_r=9999", "lora.target_modules=[experts]")["rank-beyond-width"]
    assert wide.cure.startswith("lora.expert_r: ")


def test_the_guides_half_of_each_mistake_alone_is_quiet(tmp_path: Path) -> None:
    assert "unstable" not in found(tmp_path, "lora.scaling=4", task="domain")
    assert "few-modules" not in found(tmp_path, "lora.r=8", "lora.target_modules=qv")
    assert not found(tmp_path, "lora.r=32")


@pytest.mark.parametrize("task", ["new-language", "new-behaviour"])
def test_where_lora_is_not_enough_it_says_so(tmp_path: Path, task: str) -> None:
    told = found(tmp_path, task=task)
    assert told["lora-not-enough"].level == "note"
    assert "full" in told["lora-not-enough"].cure
    assert "high-rank" not in told
    assert found(tmp_path, "lora.r=16", task=task)["lora-not-enough"].level == "warning"


def test_data_beyond_the_adapters_capacity_is_told(tmp_path: Path) -> None:
    s = situation(tmp_path, data=rows(10_000_000), config=SMOL_135M)
    assert "plan-capacity" in {finding.code for finding in contradictions(s, decide(s))}
    assert "high-rank" not in found(tmp_path, "lora.r=64", data=rows(10_000_000))


def test_what_the_data_loses_or_lacks_is_told(tmp_path: Path) -> None:
    assert "rows-cut" in found(tmp_path, "train.max_length=128", data=rows(2_000))
    assert "small-step" in found(tmp_path, "train.batch_tokens=2048", data=rows(2_000, tokens=3_000))
    assert "short-run" in found(tmp_path, data=rows(8))
    assert "duplicates" in found(tmp_path, data=rows(2_000, duplicates=500))
    assert found(tmp_path, task="classification", data=rows(2_000))["no-labels"].level == "error"


def test_every_rule_is_documented_or_named_plainly() -> None:
    assert len(RULES) == len({rule.__name__ for rule in RULES}) >= 10


def test_an_adapters_settings_have_no_part_in_full_fine_tuning(tmp_path: Path) -> None:
    s = situation(tmp_path, "lora.r=512", "lora.scaling=9", "lora.target_modules=qv", method="full")
    assert [finding.code for finding in contradictions(s, decide(s))] == ["plan-no-adapter"]
    plain = situation(tmp_path, method="full")
    assert not contradictions(plain, decide(plain))
