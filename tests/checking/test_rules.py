"""The contract of every rule in the registry, and of the manual made from them."""

import dataclasses
import inspect
from pathlib import Path

import pytest
from peft import LoraConfig
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from lorawise.base.errors import ConfigError
from lorawise.checking.manual import manual, page
from lorawise.checking.rules import RULES
from lorawise.checking.rules.arguments import REMOVED, REMOVED_IN_5, TO_CONFIG
from lorawise.checking.rules.ranks import one_slip
from lorawise.checking.script_setting import LORA_ARGUMENTS, LORA_DEFAULTS, TRAINING_DEFAULTS

ROOT = Path(__file__).parents[2]
CODES = sorted(RULES)


@pytest.mark.parametrize("code", CODES)
def test_a_rule_is_a_generator_whose_docstring_is_its_page(code: str) -> None:
    rule = RULES[code]
    assert inspect.isgeneratorfunction(rule.check)
    title, _, rest = rule.manual.partition("\n")
    assert title.endswith((".", ":"))
    assert "Cure:" in rest
    assert "Source:" in rest or code in ("LW003", "LW004")
    assert page(code).startswith(f"{code} ")


def test_an_unknown_code_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="LW105"):
        page("LW1055")


def test_the_page_of_all_rules_is_current() -> None:
    held = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    assert held.strip() == manual().strip(), "run: python -m lorawise.checking.manual > docs/rules.md"


def _fields(kind: type) -> dict[str, object]:
    return {f.name: f.default for f in dataclasses.fields(kind)}


def test_names_said_to_be_gone_are_refused_by_the_installed_libraries_and_new_ones_taken() -> None:
    takes = _fields(TrainingArguments)
    for old, new in (REMOVED | REMOVED_IN_5).items():
        assert old not in takes, old
        assert not new or new in takes, new
    assert "max_seq_length" not in _fields(SFTConfig)
    assert "max_length" in _fields(SFTConfig)
    for trainer in (Trainer, SFTTrainer):
        takes_now = inspect.signature(trainer.__init__).parameters
        assert "tokenizer" not in takes_now
        assert "processing_class" in takes_now
    assert not set(TO_CONFIG) & set(inspect.signature(SFTTrainer.__init__).parameters)


def test_defaults_are_those_of_the_installed_libraries() -> None:
    lora = _fields(LoraConfig)
    assert {"r": lora["r"], "alpha": lora["lora_alpha"]} == LORA_DEFAULTS["peft"]
    assert set(LORA_ARGUMENTS) <= set(lora)
    for name, kind in (("TrainingArguments", TrainingArguments), ("SFTConfig", SFTConfig)):
        fields = _fields(kind)
        own = TRAINING_DEFAULTS[name]
        assert own["learning_rate"] == fields["learning_rate"]
        assert own["rows_at_once"] == fields["per_device_train_batch_size"]


@pytest.mark.parametrize(("written", "slip"), [("q_porj", True), ("qproj", True), ("q_projj", True), ("x_proj", True)])
def test_a_slip_is_one_letter_from_the_name(written: str, slip: bool) -> None:
    assert one_slip(written, "q_proj") is slip


@pytest.mark.parametrize("other", ["q_proj", "in_proj", "proj", "time_emb_proj", "qpr_oj", "", "q_pr"])
def test_what_is_more_than_a_letter_away_is_no_slip(other: str) -> None:
    assert not one_slip(other, "q_proj")
