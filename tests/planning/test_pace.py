"""Work a token, tokens a second, and what past runs of this machine say of both."""

import json
from pathlib import Path

import pytest
from tests.planning.situations import LLAMA_8B, SMOL_135M, model_folder

from lorawise.facts.device import find_device
from lorawise.facts.model import ModelFacts
from lorawise.facts.read import read_model
from lorawise.planning.calibration import calibrated, past_runs
from lorawise.planning.pace import UTILISATION, Forecast, Pace, Work, expected


@pytest.fixture
def llama(tmp_path: Path) -> ModelFacts:
    return read_model(model_folder(tmp_path / "llama", LLAMA_8B))


def test_a_token_costs_about_four_times_the_parameters_and_six_in_full(llama: ModelFacts) -> None:
    """4 P for LoRA, 6 P in full: about 2/3 of a full step, not the guide's 5 %."""
    lora = Work(model=llama, trainable=13_631_488, length=1)
    full = Work(model=llama, trainable=0, length=1, full=True)
    without_embedding = llama.parameters - 128256 * 4096
    assert lora.flops == pytest.approx(4 * without_embedding, rel=0.01)
    assert full.flops == pytest.approx(6 * without_embedding, rel=0.01)
    assert lora.flops / full.flops == pytest.approx(2 / 3, rel=0.01)


def test_layers_computed_again_cost_half_as_much_again(llama: ModelFacts) -> None:
    works = {
        mode: Work(model=llama, trainable=0, length=1, mode=mode, trained_share=0.0)
        for mode in ("speed", "balanced", "frugal")
    }
    assert works["frugal"].flops == pytest.approx(1.5 * works["speed"].flops, rel=1e-3)
    assert works["balanced"].flops == pytest.approx(1.25 * works["speed"].flops, rel=1e-3)


def test_longer_documents_cost_more_attention_and_untrained_tokens_no_head(llama: ModelFacts) -> None:
    short, long = (Work(model=llama, trainable=0, length=n).flops for n in (100, 100_000))
    assert long > short
    trained, read = (Work(model=llama, trainable=0, length=1, trained_share=s).flops for s in (1.0, 0.0))
    assert trained - read == pytest.approx(4 * 128256 * 4096)


def test_the_interval_is_the_devices_rate_at_the_utilisation_named(llama: ModelFacts) -> None:
    work, device = Work(model=llama, trainable=0, length=500), find_device("a100-80")
    pace = expected(work, device, dtype="bfloat16", micro_tokens=4096)
    assert pace is not None
    low, high = (share * device.matmul["bfloat16"] / work.flops for share in UTILISATION)
    assert (pace.low, pace.high) == pytest.approx((low, high))
    assert pace.low < pace.tokens_per_second < pace.high


def test_few_tokens_at_once_are_bound_by_reading_the_weights(llama: ModelFacts) -> None:
    work, device = Work(model=llama, trainable=0, length=500), find_device("h100")
    few = expected(work, device, dtype="bfloat16", micro_tokens=16)
    many = expected(work, device, dtype="bfloat16", micro_tokens=8192)
    nf4 = expected(work, device, dtype="nf4", micro_tokens=1024)
    plain = expected(work, device, dtype="bfloat16", micro_tokens=1024)
    assert few is not None
    assert many is not None
    assert nf4 is not None
    assert plain is not None
    assert few.high < many.high
    assert nf4.high < plain.high


def test_a_micro_batch_reads_every_expert_that_some_token_is_sent_to() -> None:
    """3 B of 30 B parameters compute a token, but 256 tokens reach all 128 experts: 57 GiB are read, not 6."""
    model, device = read_model("Qwen/Qwen3-30B-A3B"), find_device("h100")
    work = Work(model=model, trainable=0, length=47)
    experts = sum(m.weights for m in model.decoder if m.experts > 1)
    assert work.read(1) == work.met
    assert work.read(2) - work.met == pytest.approx(experts * (8 / 128) * (1 - 8 / 128))
    assert work.read(256) == pytest.approx(sum(m.weights for m in model.decoder), rel=1e-6)
    few, many = (expected(work, device, dtype="bfloat16", micro_tokens=n) for n in (256, 65_536))
    assert few is not None
    assert many is not None
    assert device.bandwidth is not None
    assert 256 / few.high >= 3 * 2 * 29.8e9 / device.bandwidth
    assert few.low < 0.8 * few.high  # at worst nothing is read while products run
    assert "bound by reading the weights" in few.because
    assert "bound" not in many.because


def test_a_device_of_unknown_rate_has_no_pace(llama: ModelFacts) -> None:
    assert (
        expected(Work(model=llama, trainable=0, length=1), find_device("24GiB"), dtype="bfloat16", micro_tokens=1)
        is None
    )


def left(folder: Path, *, device: str = "cpu", tokens: int = 50_000, speed: float = 600.0) -> None:
    folder.mkdir(parents=True)
    facts = {
        "started": {"device": device, "total_parameters": 135_000_000},
        "ended": {"tokens": tokens, "tokens_per_second": speed},
    }
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def test_past_runs_of_this_kind_of_device_calibrate(tmp_path: Path) -> None:
    left(tmp_path / "runs" / "a")
    left(tmp_path / "runs" / "b", speed=800.0)
    left(tmp_path / "runs" / "other", device="cuda:0", speed=9e4)
    left(tmp_path / "runs" / "short", tokens=100)
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "facts.json").write_text('{"started": ', encoding="utf-8")
    runs = past_runs(tmp_path / "runs", device="cpu")
    assert [run.path.name for run in runs] == ["a", "b"]
    work = Work(model=read_model(model_folder(tmp_path / "smol", SMOL_135M)), trainable=0, length=100)
    pace = calibrated(work, runs)
    assert pace is not None
    assert pace.tokens_per_second == pytest.approx(700 * 4 * 135e6 / work.flops)
    assert pace.low <= 600 * 4 * 135e6 / work.flops < 800 * 4 * 135e6 / work.flops <= pace.high
    assert "a, b" in pace.because


def test_without_runs_there_is_no_calibration(tmp_path: Path) -> None:
    assert past_runs(tmp_path / "nothing", device="cpu") == []


def test_a_forecast_is_tokens_over_speed_and_money_over_hours() -> None:
    pace = Pace(tokens_per_second=1000, low=500, high=2000, because="told")
    forecast = Forecast(tokens=3_600_000, steps=100, pace=pace, price=2.0)
    assert forecast.seconds == (3600, 1800, 7200)
    assert forecast.cost == (2.0, 1.0, 4.0)
    assert Forecast(tokens=1, steps=1, pace=pace).cost is None
