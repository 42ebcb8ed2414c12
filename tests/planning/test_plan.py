"""`lorawise.plan` as a whole: from a config to a run file; tokenizers found; explanations; the guide's table."""

from pathlib import Path

import pytest
from tests.planning.situations import LLAMA_8B, SMOL_135M, model_folder
from tests.workbench import byte_tokenizer, labelled_rows, rows_of, write_rows

import lorawise
from lorawise.base.errors import ConfigError
from lorawise.facts.device import find_device
from lorawise.facts.read import read_model
from lorawise.facts.targets import trainable
from lorawise.lora.config import LoraConfig
from lorawise.planning.document import document
from lorawise.planning.explain import PAGES
from lorawise.planning.table import COLUMNS, vram_table
from lorawise.planning.tokenizer import tokenizer_folder
from lorawise.runfile import load_run_file
from lorawise.runfile.not_built import is_built


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    byte_tokenizer(tmp_path / "base")
    return model_folder(tmp_path / "base", LLAMA_8B)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", rows_of(400))


def test_the_guides_example_has_its_parameters(base: Path) -> None:
    """13,631,488 trainable of the guide's Llama 3.1 8B example, 8,043,892,736 in all (the guide's total is off)."""
    plan = lorawise.plan(base, device="h100", sets=("lora.r=16", "lora.alpha=32", "lora.target_modules=attention"))
    assert (plan.trainable, plan.total) == (13_631_488, 8_043_892_736)
    assert f"{100 * plan.trainable / plan.total:.4f}" == "0.1695"
    assert plan.config.scaling == 2.0
    assert 50e6 < plan.adapter_bytes < 55e6  # "~50MB"


def test_the_run_file_holds_the_decisions_and_loads_again(base: Path, data: Path, tmp_path: Path) -> None:
    plan = lorawise.plan(base, data, task="domain", device="h100", sets=("train.seed=7",))
    path = tmp_path / "run.yaml"
    path.write_text(plan.run.to_yaml(), encoding="utf-8")
    run, findings = load_run_file(path)
    assert not findings
    assert (run.task, run.lora.r, run.lora.scaling, run.lora.alpha) == ("domain", 16, 2.0, 32.0)
    assert run.train.learning_rate == plan.settled.real("train.learning_rate")
    assert run.train.memory == plan.load.mode
    assert run.train.micro_batch_tokens == plan.load.tokens
    assert (run.train.seed, run.train.max_length) == (7, plan.settled.whole("train.max_length"))
    again = lorawise.plan(path, device="h100")
    assert again.config == plan.config
    assert all(decision.asked for decision in again.decisions if decision.name != "base.dtype")


def test_a_run_files_own_values_stand(base: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: {base}\ndata: {data}\nlora: {{r: 4, alpha: 16}}\ntask: style\n", encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8").replace(f"data: {data}", f"data: {{train: {data}}}"))
    plan = lorawise.plan(path, device="h100")
    assert (plan.task.name, plan.config.r, plan.config.scaling) == ("style", 4, 4.0)
    assert "plan-outside-range" in {finding.code for finding in plan.findings}
    fallen = lorawise.plan(path, device="h100", sets=("lora.r=16",))
    assert fallen.config.scaling == 1.0
    assert "scaling-changed" in {finding.code for finding in fallen.findings}


def test_labels_make_it_a_classification(base: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "labels.jsonl", labelled_rows(200))
    plan = lorawise.plan(base, path, device="h100")
    assert (plan.task.name, plan.config.r) == ("classification", 4)
    data = plan.data
    assert data is not None
    assert plan.trainable == trainable(read_model(base), LoraConfig(r=4)) + data.labels * 4096
    assert plan.config.modules_to_save == ("score",)
    assert plan.run.lora.modules_to_save == ()  # the run adds its head itself
    causes = {line.cause: line.bytes for line in plan.memory.by_cause}
    assert causes.get("logits and loss", 0) < 2**20
    told = lorawise.plan(base, path, device="h100", sets=("data.labels_as=text",))
    assert told.config.modules_to_save == ()


def test_methods_are_compared(base: Path) -> None:
    plan = lorawise.plan(base, device="h100")
    assert plan.methods["qlora"] < plan.methods["lora"] < plan.methods["full"]
    assert document(plan)["methods"] == dict(plan.methods)


def test_qlora_is_planned_with_the_same_scaling_and_says_where_it_cannot_be_trained(base: Path, data: Path) -> None:
    plain, quantised = (lorawise.plan(base, data, device="h100", method=method) for method in ("lora", "qlora"))
    assert plain.config == quantised.config
    assert quantised.settled.text("base.dtype") == "nf4"
    told = "plan-not-built" in {finding.code for finding in quantised.findings}
    assert told != is_built("base.dtype", "nf4")
    assert quantised.run.base.dtype == "nf4"


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_memory_is_of_the_type_that_is_computed_in_not_of_the_stored_one(tmp_path: Path, method: str) -> None:
    stored = [model_folder(tmp_path / name, LLAMA_8B | {"torch_dtype": name}) for name in ("bfloat16", "float32")]
    plans = [lorawise.plan(folder, device="h200", method=method) for folder in stored]
    assert plans[0].memory == plans[1].memory
    wide = lorawise.plan(stored[0], device="h200", sets=("base.dtype=float32",)).memory
    weights = {line.cause: line.bytes for line in wide.by_cause}["base weights"]
    assert weights == pytest.approx(4 * 8_030_261_248, rel=1e-4)


def test_how_a_packed_base_is_held_and_computed_is_the_users(base: Path) -> None:
    def weights(*sets: str) -> dict[str, int]:
        fixed = ("train.memory=speed", "train.micro_batch_tokens=2048")
        plan = lorawise.plan(base, device="h100", method="qlora", sets=(*fixed, *sets))
        return {line.cause: line.bytes for line in plan.memory.by_cause}

    usual, eight = weights(), weights("base.dtype=int8")
    assert 1.5 < eight["base weights"] / usual["base weights"] < 2
    assert weights("base.double_quant=false")["quantisation constants"] > 3 * usual["quantisation constants"]
    assert weights("base.compute_dtype=float32")["feed-forward"] > 1.9 * usual["feed-forward"]


def test_offloading_is_kept_and_predicted_as_frugal(base: Path, data: Path) -> None:
    asked, frugal = (
        lorawise.plan(base, data, device="h100", sets=(f"train.memory={m}",)) for m in ("offload", "frugal")
    )
    assert asked.memory == frugal.memory
    assert asked.settled["train.memory"].asked
    assert (asked.run.train.memory, frugal.run.train.memory) == ("offload", "frugal")


def test_full_fine_tuning_is_planned_and_its_run_file_refused(base: Path, data: Path) -> None:
    plan = lorawise.plan(base, data, device="h200", method="full")
    assert plan.trainable == plan.total == 8_030_261_248
    with pytest.raises(ConfigError, match="not trained"):
        _ = plan.run


def test_a_run_file_needs_data(base: Path) -> None:
    with pytest.raises(ConfigError, match="needs data"):
        _ = lorawise.plan(base, device="h100").run


def test_a_price_makes_the_hours_money(base: Path, data: Path) -> None:
    forecast = lorawise.plan(base, data, device="h100", price=3.0).forecast
    assert forecast is not None
    assert forecast.cost is not None
    assert forecast.cost[0] == pytest.approx(forecast.seconds[0] / 3600 * 3)


def test_a_device_given_as_an_amount_is_not_said_to_compute_in_a_type(base: Path) -> None:
    reasons = {d: lorawise.plan(base, device=d).explain("dtype", 1000) for d in ("24GiB", "rtx-4090")}
    assert "name the card" in reasons["24GiB"]
    assert "rtx-4090 computes in it" in reasons["rtx-4090"]


@pytest.mark.parametrize("width", [60, 80])
def test_an_explanation_keeps_to_the_width_and_loses_no_word(base: Path, data: Path, width: int) -> None:
    plan = lorawise.plan(base, data, device="h100")
    for decision in plan.decisions:
        text = plan.explain(decision.name, width)
        assert max(map(len, text.splitlines())) <= width, decision.name
        assert text.split() == plan.explain(decision.name, 1000).split()
    rows = [line for line in plan.explain("lora.r", width).splitlines() if line.startswith("128 and more  ")]
    assert len(rows) == 1  # a row of a table stays one


def test_every_decision_can_be_explained(base: Path, data: Path) -> None:
    plan = lorawise.plan(base, data, device="h100")
    for decision in plan.decisions:
        text = plan.explain(decision.name, 1000)
        assert text.startswith(decision.name)
        assert decision.reason[:30] in text
        assert len(text) > 300
    assert "Strength here" in plan.explain("lr")
    assert "2e-4/scaling" in plan.explain("lora.scaling", 1000)
    assert set(PAGES) <= {decision.name for decision in plan.decisions}
    with pytest.raises(ConfigError, match="did you mean 'scaling'"):
        plan.explain("scalign")


def test_the_guides_table_has_its_rows_and_its_figures_only_for_its_model(base: Path, tmp_path: Path) -> None:
    rows = {row.name: row for row in vram_table(read_model(base), find_device("h100"), length=2048)}
    assert {name: row.guide for name, row in rows.items()} == {
        "r=8 qv": "~17GB",
        "r=8 attention": "~18GB",
        "r=16 attention": "~20GB",
        "r=16 all-linear": "~23GB",
        "r=32 attention": "~22GB",
        "r=64 all-linear": "~30GB",
        "full fine-tuning": "~72GB",
    }
    assert rows["r=16 attention"].trainable == 13_631_488
    for row in list(rows.values())[:-1]:
        speed, frugal, four_bit, _ = row.needed
        assert len(row.needed) == len(COLUMNS)
        assert frugal < speed
        assert four_bit < speed
        assert speed < 0.5 * rows["full fine-tuning"].needed[0]  # "less than half the VRAM of full fine-tuning"
    small = vram_table(read_model(model_folder(tmp_path / "s", SMOL_135M)), find_device("h100"), length=2048)
    assert not any(row.guide for row in small)


def test_rank_hardly_costs_memory_beside_the_number_of_modules(base: Path) -> None:
    """The guide has 7 GB more from r 16 to r 64 on seven modules."""
    rows = {row.name: row.needed[0] for row in vram_table(read_model(base), find_device("h100"), length=2048)}
    assert rows["r=64 all-linear"] - rows["r=16 all-linear"] < 3 * 2**30
    assert rows["r=32 attention"] - rows["r=16 attention"] < 2**30


def test_the_tokenizer_is_found_in_the_folder_or_the_hubs_cache(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tokenizer_folder(str(base)) == base
    assert tokenizer_folder(str(model_folder(tmp_path / "bare"))) is None
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert tokenizer_folder("some/model") is None
    snapshot = tmp_path / "home" / "hub" / "models--some--model" / "snapshots" / "abc"
    byte_tokenizer(snapshot)
    assert tokenizer_folder("some/model") == snapshot


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"task": "chta"}, "did you mean 'chat'"),
        ({"method": "qlra"}, "did you mean 'qlora'"),
        ({"trainer": "trl"}, "choose one of"),
        ({"price": -1.0}, "price"),
        ({"price": float("nan")}, "price"),
        ({"device": "rtx-4091"}, "rtx-409"),
        ({"sets": ("lora.r=-3",)}, "lora.r"),
        ({"sets": ("lora.r=1000000",)}, "65536|whole number"),
        ({"sets": ("train.learning_rate=-1",)}, "learning_rate"),
        ({"sets": ("lora.scalign=2",)}, "lora.scaling"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_cure(base: Path, arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        lorawise.plan(base, **arguments)  # type: ignore[arg-type]
