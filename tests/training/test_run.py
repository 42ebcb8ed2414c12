import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import FAMILIES
from tests.workbench import labelled_rows, rows_of, tiny_folder, tiny_run, write_rows

import lorawise
from lorawise.base.errors import DataError
from lorawise.base.findings import Finding
from lorawise.data.read import read_rows
from lorawise.lora.injection import attach
from lorawise.models.files import resolve_model
from lorawise.models.open import open_model
from lorawise.report.events import Evaluated, Event, Noted, PreflightDone, RunEnded, RunStarted, Saved, StepDone
from lorawise.runfile import load_run_file
from lorawise.store import load_adapter, read_provenance
from lorawise.training.evaluate import accuracy_and_f1
from lorawise.training.measure import measure
from lorawise.training.run import train


class Listener:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None: ...

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model") / "base")


def trained(tmp_path, **values) -> tuple[Path, Listener]:
    listener = Listener()
    train(tiny_run(tmp_path, **values), out=tmp_path / "run", readers=[listener])
    return tmp_path / "run", listener


def test_the_stream_is_in_order_and_the_folder_holds_what_the_design_says(tmp_path, base):
    run, listener = trained(tmp_path, model=base, train__eval_generate=3)
    kinds = [type(event) for event in listener.events if not isinstance(event, Noted)]
    assert kinds[:3] == [RunStarted, PreflightDone, Evaluated]
    assert kinds[-1] is RunEnded
    assert [event.step for event in listener.of(StepDone)] == list(range(1, 9))
    assert [event.step for event in listener.of(Saved)] == [2, 4, 6, 8]
    assert [(e.step, e.name) for e in listener.of(Evaluated)] == [(0, "base"), (4, "validation"), (8, "validation")]
    assert all(len(event.samples) == 3 for event in listener.of(Evaluated))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000006", "step-000008"]
    for name in ("run.yaml", "metrics.jsonl", "report.html", "adapter/adapter_config.json", "adapter/README.md"):
        assert (run / name).is_file(), name
    ended = listener.of(RunEnded)[0]
    assert ended.validation_loss < ended.base_validation_loss


def test_run_yaml_says_what_auto_became_and_runs_again_to_the_same_adapter(tmp_path, base):
    run, _ = trained(tmp_path, model=base, base__dtype="auto")
    completed, findings = load_run_file(run / "run.yaml")
    assert not findings
    assert completed.base.dtype == "float32"
    assert isinstance(completed.train.micro_batch_tokens, int)
    assert completed.train.memory == "speed"
    train(completed, out=tmp_path / "again")
    one, other = (folder / "adapter" / "adapter_model.safetensors" for folder in (run, tmp_path / "again"))
    assert one.read_bytes() == other.read_bytes()


def test_the_adapter_kept_is_the_best_and_patience_ends_the_run(tmp_path, base):
    values = {"train__learning_rate": 0.3, "train__schedule": "constant", "train__steps": 40, "train__eval_every": 1}
    run, listener = trained(tmp_path, model=base, train__early_stopping=3, train__clip=None, **values)
    ended = listener.of(RunEnded)[0]
    scored = {event.step: event.loss for event in listener.of(Evaluated) if event.name == "validation"}
    assert ended.reason == "stopped early"
    assert ended.step == ended.best_step + 3 < 40
    assert scored[ended.best_step] == min(scored.values()) == ended.validation_loss
    weights = load_adapter(run / "adapter")
    history = read_provenance(run / "adapter", weights)
    assert history.run["step"] == ended.best_step
    assert history.run["validation_loss"] == ended.validation_loss


def test_the_adapter_on_disk_scores_what_the_run_said(tmp_path, base):
    from lorawise.data.batches import eval_batches
    from lorawise.training.evaluate import score
    from lorawise.training.inputs import read_inputs
    from lorawise.training.objective import NextToken
    from lorawise.training.setup import _batch_options

    run, listener = trained(tmp_path, model=base)
    completed, _ = load_run_file(run / "run.yaml")
    files = resolve_model(completed.model)
    inputs = read_inputs(completed, files)
    model = open_model(files, dtype="float32")
    attach(model, {"it": load_adapter(run / "adapter")})
    batches = eval_batches(inputs.validation, _batch_options(completed, inputs, packed=False))
    scores = score(model, batches, NextToken())
    assert scores.losses[0] == pytest.approx(listener.of(RunEnded)[0].validation_loss, abs=1e-5)
    each = [row.trained_tokens for row in inputs.validation]
    assert (scores.row_losses[0] * each).sum() / sum(each) == pytest.approx(scores.losses[0])


def test_without_validation_the_last_adapter_is_kept(tmp_path, base):
    run, listener = trained(tmp_path, model=base, data__validation=None)
    assert not listener.of(Evaluated)
    assert read_provenance(run / "adapter", load_adapter(run / "adapter")).run["step"] == 8


def test_what_needs_validation_says_so_when_there_is_none(tmp_path, base):
    asked = {"early_stopping": 2, "eval_generate": 4}
    settings = {f"train__{name}": value for name, value in asked.items()}
    run = tiny_run(tmp_path, model=base, data__validation=None, **settings)
    [found] = [each for each in train(run, out=tmp_path / "run").findings if each.code == "no-validation"]
    assert "train.early_stopping: 2 and train.eval_generate: 4" in found.message


@pytest.mark.parametrize(("labels_as", "steps"), [("head", 60), ("text", 200)])
def test_classification_is_learned_and_scored(labels_as, steps, tmp_path, base):
    run, listener = trained(
        tmp_path,
        model=base,
        rows=labelled_rows(36),
        task="classification",
        data__labels_as=labels_as,
        train__steps=steps,
        train__learning_rate=1e-2,
        train__eval_every=steps,
        train__save_every=steps,
    )
    last = listener.of(Evaluated)[-1]
    assert last.accuracy >= 0.9
    assert last.f1 >= 0.85
    weights = load_adapter(run / "adapter")
    assert weights.task == ("SEQ_CLS" if labels_as == "head" else "CAUSAL_LM")
    assert bool(weights.full) == (labels_as == "head")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_bases_learn(dtype, tmp_path):
    model = tiny_folder(tmp_path / "base", dtype=getattr(torch, dtype))
    _, listener = trained(tmp_path, model=model, base__dtype=dtype, train__steps=20, train__save_every=20)
    losses = [event.loss for event in listener.of(StepDone)]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_packed_or_says_why_not(family, tmp_path):
    _, listener = trained(tmp_path, family=family, train__save_every=8, train__eval_every=8)
    codes = {event.finding.code for event in listener.of(Noted)}
    losses = [event.loss for event in listener.of(StepDone)]
    assert losses[-1] < losses[0]
    assert ("no-packing" in codes) == (family in ("falcon",))


def test_a_head_and_biases_trained_in_full_move(tmp_path, base):
    run, _ = trained(tmp_path, family="gpt2", lora__bias="all", lora__modules_to_save=["ln_f"])
    weights = load_adapter(run / "adapter")
    assert any(name.endswith("ln_f.weight") for name in weights.full)


def test_exact_match_counts_answers_that_are_equal(tmp_path, base):
    run, _ = trained(
        tmp_path, model=base, train__steps=150, train__learning_rate=1e-2, train__eval_every=150, train__save_every=150
    )
    loaded = lorawise.load(base, {"it": run / "adapter"}, dtype="float32")
    alone, adapted = measure(loaded, read_rows(tmp_path / "rows.jsonl"), answers=24, max_length=96)
    assert alone.exact_match == 0
    assert len(adapted.examples) == 24
    assert adapted.exact_match == sum(sample.match for sample in adapted.examples) / 24 > 0.5


def test_labels_asked_of_rows_without_any_are_refused(tmp_path, base):
    with pytest.raises(DataError, match="carry no label"):
        train(tiny_run(tmp_path, model=base, rows=rows_of(8), task="classification"), out=tmp_path / "run")


def test_metrics_hold_one_line_a_step_and_one_an_evaluation(tmp_path, base):
    run, _ = trained(tmp_path, model=base)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines].count("step") == 8
    assert [line["kind"] for line in lines].count("evaluation") == 3


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 3)), min_size=1))
def test_f1_and_accuracy_are_shares_and_perfect_answers_score_one(pairs):
    truth, predicted = zip(*pairs, strict=True)
    accuracy, f1 = accuracy_and_f1(truth, predicted)
    assert 0 <= accuracy <= 1
    assert 0 <= f1 <= 1
    assert accuracy_and_f1(truth, truth) == (1.0, 1.0)


def test_macro_f1_is_the_mean_over_classes():
    accuracy, f1 = accuracy_and_f1([0, 0, 1, 1], [0, 1, 1, 1])
    assert accuracy == 0.75
    assert f1 == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_a_template_named_in_the_run_file_is_the_one_trained_with(tmp_path, base):
    """And whoever opens the adapter with another one is told."""
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    run, listener = trained(tmp_path, model=base, data__template=str(tmp_path / "own.jinja"))
    shown = "".join(piece.text for piece in listener.of(PreflightDone)[0].report.row)
    assert shown.startswith("[user] ")
    adapter = {"own": run / "adapter"}
    (found,) = lorawise.load(base, adapter).findings
    assert found.code == "other-template"
    assert str(tmp_path / "own.jinja") in found.cure
    assert not lorawise.load(base, adapter, template=str(tmp_path / "own.jinja")).findings


def test_a_base_without_template_is_given_one_by_name(tmp_path):
    base = tiny_folder(tmp_path / "base", template=None)
    _, listener = trained(tmp_path, model=base, data__template="chatml")
    shown = "".join(piece.text for piece in listener.of(PreflightDone)[0].report.row)
    assert shown.startswith("<|im_start|>user\n")


def test_what_loading_the_run_file_found_reaches_the_report_and_the_result(tmp_path, base):
    found = Finding(code="scaling-changed", level="warning", message="scaling falls <from 2 to 1>")
    listener = Listener()
    result = train(tiny_run(tmp_path, model=base), out=tmp_path / "run", findings=[found], readers=[listener])
    assert found in result.findings
    assert found in [event.finding for event in listener.of(Noted)]
    assert "scaling falls &lt;from 2 to 1&gt;" in (tmp_path / "run" / "report.html").read_text()
    assert "data-few-validation" in [each.code for each in result.findings]


def test_a_classification_head_counts_its_labels_as_what_was_trained(tmp_path, base):
    _, listener = trained(
        tmp_path, model=base, rows=labelled_rows(24), train__epochs=2, train__warmup=0, data__validation=4
    )
    assert listener.of(PreflightDone)[0].report.trained_tokens == 20
    assert listener.of(RunEnded)[0].trained_tokens == 40


def test_the_tokens_of_an_epoch_count_a_row_as_often_as_its_source_is_weighted(tmp_path, base):
    once, twice = (write_rows(tmp_path / f"{name}.jsonl", rows_of(8, first=at)) for name, at in (("a", 0), ("b", 8)))
    sources = [str(once), {"path": str(twice), "weight": 2}]
    _, listener = trained(tmp_path, model=base, data__train=sources, data__validation=None)
    [started] = listener.of(RunStarted)
    [seen] = listener.of(PreflightDone)
    assert seen.report.tokens * 1.3 < started.tokens_per_epoch < seen.report.tokens * 2
    assert seen.report.trained_tokens * 1.3 < started.trained_tokens_per_epoch < seen.report.trained_tokens * 2
