"""A whole run over a base in few bits: what preflight tells, what its adapter says, how it is opened again."""

from pathlib import Path

import pytest
import torch
from tests.workbench import tiny_folder, tiny_run

from lorawise.merging.merge import merge
from lorawise.models.files import resolve_model
from lorawise.models.load import load
from lorawise.models.open import open_model
from lorawise.models.originals import Originals
from lorawise.models.quantised import packed_layers
from lorawise.report.events import Preflight
from lorawise.training.run import train

IDS = torch.tensor([[5, 17, 200, 3, 44, 91, 8, 130]])
CHECK = "the quantised base still answers"


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "opt"])
@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_with_its_originals_in_place_a_packed_base_is_the_plain_one(tmp_path: Path, family: str, dtype: str) -> None:
    files = resolve_model(tiny_folder(tmp_path, family))
    packed, plain = open_model(files, dtype=dtype), open_model(files, dtype="float32")
    before = packed(IDS).logits
    originals = Originals(packed, files)
    assert originals.unknown == []
    with originals.in_place():
        torch.testing.assert_close(packed(IDS).logits, plain(IDS).logits, rtol=1e-5, atol=1e-5)
    assert packed(IDS).logits.equal(before), "and packed again afterwards"
    assert (before - plain(IDS).logits).abs().max() > 1e-3


def detail(report: Preflight) -> str:
    return next(check.detail for check in report.checks if check.name == CHECK)


@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_a_run_says_what_quantising_cost_and_its_adapter_is_opened_over_the_same_base(tmp_path, dtype) -> None:
    run = tiny_run(tmp_path, base__dtype=dtype)
    result = train(run, out=tmp_path / "out")
    assert result.preflight is not None
    whole = train(tiny_run(tmp_path, model=Path(run.model)), out=tmp_path / "whole")
    told = detail(result.preflight)
    assert told.startswith(f"loss {result.base_validation_loss:.4f}, {whole.base_validation_loss:.4f} in full (")
    assert result.validation_loss < result.base_validation_loss

    loaded = load(run.model, {"mine": tmp_path / "out" / "adapter"})
    assert len(packed_layers(loaded.model)) == 14
    assert [finding.code for finding in loaded.findings] == ["base-form"]
    assert dtype in loaded.findings[0].message
    assert not packed_layers(load(run.model, {"mine": tmp_path / "out" / "adapter"}, dtype="float32").model)
    two = {"mine": tmp_path / "out" / "adapter", "other": tmp_path / "whole" / "adapter"}
    mixed = load(run.model, two)
    assert not packed_layers(mixed.model)
    assert mixed.findings[0].level == "warning"

    merged = merge(run.model, tmp_path / "out" / "adapter", tmp_path / "merged")
    assert "other-form" in {finding.code for finding in merged.findings}


def test_a_plain_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    report = train(tiny_run(tmp_path), out=tmp_path / "out", dry_run=True).preflight
    assert report is not None
    assert CHECK not in {check.name for check in report.checks}


def test_the_run_that_plan_writes_for_qlora_trains(tmp_path: Path) -> None:
    import lorawise
    from lorawise.runfile import load_run_file

    base = tiny_folder(tmp_path / "base", hidden_size=64, intermediate_size=128)
    run = tiny_run(tmp_path, model=base)
    planned = lorawise.plan(base, run.data.train[0].path, method="qlora", device="24GiB")
    (tmp_path / "planned.yaml").write_text(planned.run.to_yaml(), encoding="utf-8")
    again, _ = load_run_file(tmp_path / "planned.yaml", ["train.steps=2", "base.compute_dtype=float32"])
    assert again.base.dtype == "nf4"
    assert train(again, out=tmp_path / "out").steps == 2
