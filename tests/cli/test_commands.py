"""train, eval and chat for real, on a tiny model."""

import io
import json
from pathlib import Path

import pytest
from tests.workbench import labelled_rows, rows_of, tiny_folder, write_rows

from lorawise.cli.app import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, rows, a run file and the run it leaves."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_folder(folder / "base")
    write_rows(folder / "train.jsonl", rows_of(24))
    write_rows(folder / "test.jsonl", rows_of(6, first=100))
    (folder / "run.yaml").write_text(
        "model: base\ndata: {train: train.jsonl, validation: 4}\nlora: {r: 4}\n"
        "train: {steps: 4, learning_rate: 1e-2, batch_size: 4, max_length: 128, eval_generate: 2}\n",
        encoding="utf-8",
    )
    assert run(["train", str(folder / "run.yaml"), "-o", str(folder / "out"), "--json"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAWISE_CACHE", str(tmp_path / "cache"))


def test_a_run_leaves_what_the_design_says(home: Path) -> None:
    left = {path.name for path in (home / "out").iterdir()}
    assert {"run.yaml", "adapter", "checkpoints", "metrics.jsonl", "report.html"} <= left
    assert "scaling: 2 " in (home / "out" / "run.yaml").read_text(encoding="utf-8")


def test_an_existing_folder_needs_resume_or_another_name(home: Path, capsys: Capture) -> None:
    arguments = ["train", str(home / "run.yaml"), "-o", str(home / "out")]
    assert run(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert run([*arguments, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4


def test_a_dry_run_leaves_nothing(home: Path, capsys: Capture) -> None:
    assert run(["train", str(home / "run.yaml"), "-o", str(home / "dry"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["preflight"]["checks"]
    assert not (home / "dry").exists()


def test_eval_tells_base_and_adapter_on_the_same_rows(home: Path, capsys: Capture) -> None:
    arguments = ["eval", str(home / "base"), str(home / "test.jsonl"), "--adapter", str(home / "out" / "adapter")]
    assert run([*arguments, "--answers", "2", "--json"]) == 0
    base, adapter = json.loads(capsys.readouterr().out)["rows"]
    assert (base["name"], adapter["name"]) == ("base", "adapter")
    assert adapter["loss"] < base["loss"]
    assert base["tokens"] == adapter["tokens"]
    assert len(adapter["examples"]) == 2
    assert set(base) >= {"name", "loss", "perplexity", "exact_match", "examples"}
    assert run([*arguments, "--answers", "0"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["loss", "perplexity", "loss", "against", "base"]
    assert [line.split()[0] for line in table[1:3]] == ["base", "adapter"]


def test_eval_judges_a_stack_a_combination_and_a_merge_against_their_parents(home: Path, capsys: Capture) -> None:
    adapter, other = home / "out" / "adapter", home / "other"
    assert run(["adapter", "rescale", str(adapter), "--by", "0.5", "-o", str(other)]) == 0
    both, merged = home / "both", home / "merged"
    assert run(["adapter", "combine", f"{adapter}=0.7", f"{other}=0.3", "-o", str(both)]) == 0
    assert run(["merge", str(home / "base"), f"{adapter}=0.7", f"{other}=0.3", "-o", str(merged)]) == 0
    capsys.readouterr()
    named = [
        part for name, at in (("a", adapter), ("b", other), ("both", both)) for part in ("--adapter", f"{name}={at}")
    ]
    arguments = ["eval", str(home / "base"), str(home / "test.jsonl"), *named, "--stack", "a=0.7 b=0.3"]
    arguments += ["--merged", f"merged={merged}", "--answers", "3"]
    assert run([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in told["rows"]}
    assert [*rows] == ["base", "a", "b", "both", "0.7·a+0.3·b", "merged"]
    for name in ("0.7·a+0.3·b", "merged"):  # the same model, reached three ways
        assert rows[name]["loss"] == pytest.approx(rows["both"]["loss"], rel=1e-4)
    pairs = {(pair["name"], pair["against"]): pair for pair in told["pairs"]}
    parents = {name: [other for one, other in pairs if one == name] for name in rows}
    assert parents["a"] == ["base"]
    for name in ("both", "0.7·a+0.3·b", "merged"):
        assert parents[name] == ["base", "a", "b"]
    told_gap = pairs["merged", "a"]["loss"]
    assert told_gap["difference"] == pytest.approx(rows["merged"]["loss"] - rows["a"]["loss"], abs=1e-9)
    assert told_gap["low"] <= told_gap["difference"] <= told_gap["high"]
    assert run(arguments) == 0
    table = capsys.readouterr().out
    assert "against its parents" in table
    assert table.splitlines()[-2].startswith("6 rows, paired")
    assert "paired bootstrap" in table


def test_eval_refuses_what_would_not_pair(home: Path, tmp_path: Path, capsys: Capture) -> None:
    tiny_folder(
        tmp_path / "other", template="{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    )
    start = ["eval", str(home / "base"), str(home / "test.jsonl"), "--answers", "0", "--json"]
    for more, says in (
        (["--merged", f"x={tmp_path / 'other'}"], "reads the rows as other tokens"),
        (["--merged", f"base={home / 'base'}"], "stands for two"),
        (["--stack", "a=0.5"], "no adapter is called 'a'"),
        (["--stack", "a"], "NAME=WEIGHT"),
        (["--stack", " "], "names no adapter"),
        (["--adapter", "x", "--adapter", "y"], "NAME=DIR"),
    ):
        capsys.readouterr()
        assert run([*start, *more]) == 2
        assert says in " ".join(json.loads(capsys.readouterr().out)["error"].values())


def test_eval_of_a_base_alone_has_one_row(home: Path, capsys: Capture) -> None:
    assert run(["eval", str(home / "base"), str(home / "test.jsonl"), "--answers", "0", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["exact_match"] is None


def test_chat_answers_switches_and_compares(home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "/compare\npaint red\n/compare\n/scale 0.5\n/base\n/scale 2\n/scale mine 1\n/use mine\n/stack mine=0.5\n"
        "/ues mine\n/new\n/compare\n/compare paint blue\n/quit\nlost\n"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    adapter = f"mine={home / 'out' / 'adapter'}"
    assert run(["chat", str(home / "base"), "--adapter", adapter, "--max-tokens", "3"]) == 0
    shown = capsys.readouterr()
    assert ["base", "mine"] in [line.split() for line in shown.out.splitlines()]
    for told in ("(mine at 0.5 of its scaling)", "(the base alone answers)", "(mine answers)"):
        assert told in shown.out
    assert ["base", "mine", "0.5·mine"] in [line.split() for line in shown.out.splitlines()]
    assert "nothing was asked yet" in shown.err
    assert "no single adapter is in use" in shown.err
    assert "did you mean '/use'?" in shown.err


def test_chat_under_json_ends_with_the_conversation(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("paint red\n"))
    assert run(["chat", str(home / "base"), "--max-tokens", "3", "--json"]) == 0
    (turn,) = json.loads(capsys.readouterr().out)["turns"]
    assert (turn["voice"], turn["user"]) == ("base", "paint red")


@pytest.mark.parametrize("how", ["bytes that are no text", "closed"])
def test_chat_survives_a_stdin_that_is_no_text_or_closed(
    how: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"hi \xff\xfe\n"), encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr("sys.stdin", None if how == "closed" else stdin)
    assert run(["chat", str(home / "base"), "--max-tokens", "3", "--json"]) == 0
    turns = json.loads(capsys.readouterr().out)["turns"]
    assert [turn["user"] for turn in turns] == ([] if how == "closed" else ["hi ??"])


def test_eval_of_a_classifier_takes_one_class_and_refuses_rows_without(home: Path, capsys: Capture) -> None:
    write_rows(home / "classes.jsonl", labelled_rows(24))
    write_rows(home / "one.jsonl", labelled_rows(24)[::3])
    base, out = home / "base", home / "classifier"
    sets = [part for each in ("train.steps=2", "train.max_length=96") for part in ("--set", each)]
    assert run(["train", "--model", str(base), "--data", str(home / "classes.jsonl"), "-o", str(out), *sets]) == 0
    adapter = ["--adapter", str(out / "adapter"), "--json"]
    capsys.readouterr()
    assert run(["eval", str(base), str(home / "one.jsonl"), *adapter]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    assert run(["eval", str(base), str(home / "train.jsonl"), *adapter]) == 2
    assert "carries no label" in json.loads(capsys.readouterr().out)["error"]["found"]


def test_eval_cures_name_the_options_of_the_command_and_not_the_keys_of_a_run_file(
    home: Path, tmp_path: Path, capsys: Capture
) -> None:
    long = {"messages": [{"role": "user", "content": "y" * 200}, {"role": "assistant", "content": "no"}]}
    rows = write_rows(tmp_path / "long.jsonl", [long, *rows_of(3)])
    arguments = ["eval", str(home / "base"), str(rows), "--max-length", "90", "--answers", "1"]
    assert run(arguments) == 2
    told = capsys.readouterr().err
    assert "skip them with --on-bad skip" in told
    assert "raise --max-length" in told
    assert "data." not in told
    assert "train." not in told
    assert run([*arguments, "--on-bad", "skip", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in out["findings"]] == ["no-trained-tokens"]
    assert out["rows"][0]["examples"][0]["reference"] == "red!"


def test_eval_tells_what_it_cut(home: Path, tmp_path: Path, capsys: Capture) -> None:
    turns = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "on " * 60}]
    rows = write_rows(tmp_path / "long.jsonl", [{"messages": turns}])
    assert run(["eval", str(home / "base"), str(rows), "--max-length", "90", "--answers", "0"]) == 0
    told = capsys.readouterr().err
    assert "1 of 1 rows are longer than 90 tokens" in told
    assert "raise --max-length" in told


def test_eval_refuses_a_word_for_bad_rows_that_it_does_not_know(home: Path, capsys: Capture) -> None:
    assert run(["eval", str(home / "base"), str(home / "test.jsonl"), "--on-bad", "skp"]) == 2
    assert "did you mean 'skip'?" in capsys.readouterr().err
