"""A whole run over fused experts: what preflight says of them, what moves, resume, recomputed layers, the card."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.laws.test_law_07_a_resumed_run_equals_one_never_stopped import SignalAt, assert_equal_runs
from tests.tiny_experts import EXPERT_FAMILIES, tiny_mixture
from tests.workbench import VOCABULARY, byte_tokenizer, tiny_run
from torch import Tensor

from lorawise.base.errors import Interrupted, PreflightError
from lorawise.models.files import resolve_model
from lorawise.runfile import RunFile
from lorawise.store import load_adapter
from lorawise.training.coverage import RoutingTally
from lorawise.training.inputs import read_inputs
from lorawise.training.run import train
from lorawise.training.setup import Prepared, prepare


def mixture_run(tmp_path: Path, family: str, *, experts: dict[str, Any] | None = None, **values: Any) -> RunFile:
    base = tmp_path / f"base-{family}"
    tiny_mixture(family, std=0.1, vocab_size=VOCABULARY, **(experts or {})).save_pretrained(base)
    byte_tokenizer(base)
    return tiny_run(tmp_path, model=base, **values)


def ready(run: RunFile) -> Prepared:
    files = resolve_model(run.model)
    return prepare(run, files, read_inputs(run, files))


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_a_run_over_experts_learns_and_says_what_it_reached(family: str, tmp_path: Path) -> None:
    result = train(mixture_run(tmp_path, family, train__learning_rate=0.03), out=tmp_path / "run")
    assert result.validation_loss is not None
    assert result.base_validation_loss is not None
    assert result.validation_loss < result.base_validation_loss - 0.05
    assert result.preflight is not None
    coverage = result.preflight.coverage
    assert coverage is not None
    facts = json.loads((tmp_path / "run" / "facts.json").read_text())
    assert facts["preflight"]["coverage"]["meant"] == coverage.meant == facts["started"]["trainable_parameters"]
    assert 0 < coverage.moved <= coverage.meant
    details = {check.name: check.detail for check in result.preflight.checks}
    assert f"{coverage.moved:,} of {coverage.meant:,} parameters" in details["every adapted layer gets a gradient"]
    for layer in coverage.experts:
        assert sum(layer.tokens) >= 2 * result.preflight.longest
    saved = load_adapter(tmp_path / "run" / "adapter")
    assert "experts" in saved.kinds.values()
    assert "layers moved" in (tmp_path / "run" / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(("family", "memory"), [("qwen3_moe", "speed"), ("gpt_oss", "frugal")])
def test_a_stopped_run_over_experts_goes_on_to_the_bit(family: str, memory: str, tmp_path: Path) -> None:
    run = mixture_run(tmp_path, family, train__memory=memory, train__micro_batch_tokens=128)
    train(run, out=tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(run, out=tmp_path / "stopped", readers=[SignalAt(3)])
    train(run, out=tmp_path / "stopped", resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
def test_recomputed_layers_bring_the_same_gradients_and_count_each_token_once(family: str, tmp_path: Path) -> None:
    found: dict[str, tuple[dict[str, Tensor], Any]] = {}
    for memory in ("speed", "frugal"):
        prepared = ready(mixture_run(tmp_path, family, train__memory=memory))
        tally = RoutingTally(prepared.adapters)
        with tally.counting():
            prepared.trainer.accumulate(0, prepared.trainer.plan.step(0))
        gradients = {trained.name: g.clone() for trained, g in prepared.trainer.optimizer.gradients()}
        found[memory] = gradients, tally.layers()
    (plain, counted), (again, recounted) = found["speed"], found["frugal"]
    assert counted == recounted
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    tokens = sum(micro.tokens for micro in prepared.trainer.plan.step(0))
    assert all(sum(layer.tokens) == 2 * tokens for layer in counted)


def test_experts_that_no_token_reaches_are_told_and_stay_zero_while_the_others_move(tmp_path: Path) -> None:
    run = mixture_run(tmp_path, "qwen3_moe", experts={"num_experts": 64}, train__steps=2, train__warmup=0)
    prepared = ready(run)
    tally = RoutingTally(prepared.adapters)
    with tally.counting():
        prepared.trainer.step(0)
    for layer in tally.layers():
        bank = prepared.adapters.layers[f"{layer.module}.gate_up_proj"]
        moved = bank.lora_B.detach()[0].ne(0).flatten(1).any(1)
        reached = torch.tensor(layer.tokens) > 0
        assert not moved[~reached].any()  # law 12: a token must have been there
        if layer.module.startswith("model.layers.0."):  # the last layer's unlabelled tokens bring no gradient
            assert torch.equal(moved, reached)
    result = train(run, out=tmp_path / "run")
    assert result.preflight is not None
    assert result.preflight.passed
    check = next(check for check in result.preflight.checks if check.name == "experts are reached")
    assert "; no token for: " in check.detail
    assert " in model.layers.0.mlp.experts, " in check.detail
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "of 128 in 2 layers moved; the others got no gradient in training, and answer as the base" in card


def test_experts_that_get_no_gradient_at_all_are_refused_before_the_first_step(tmp_path: Path) -> None:
    run = mixture_run(tmp_path, "mixtral")
    base = Path(run.model)
    model = tiny_mixture("mixtral", std=0.1, vocab_size=VOCABULARY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("down_proj"):
                parameter.zero_()
    model.save_pretrained(base)
    run = run.with_values({"lora.target_modules": ["gate_up_proj"]})
    with pytest.raises(PreflightError, match=r"mlp\.experts\.gate_up_proj"):
        train(run, out=tmp_path / "run")
