"""Run files: what is taken, what is refused and how, and that a completed file is the same run."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorawise.base.errors import ConfigError, DataError
from lorawise.data.read import read_rows
from lorawise.runfile import RunFile, load_run_file, make_run_file, not_built, require_built

LEAST = {"model": "user/model", "data": {"train": "user/rows"}}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def minimal(folder: Path, more: str = "") -> Path:
    return write(folder, "model: user/model\ndata: {train: user/rows}\n" + more)


def refusal(folder: Path, text: str, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run_file(write(folder, text), sets)
    return caught.value.found


def test_the_run_file_of_the_design_loads_as_written(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("", encoding="utf-8")
    run, findings = load_run_file(
        write(
            tmp_path,
            """\
model: HuggingFaceTB/SmolLM2-135M-Instruct   # hub id, folder, or a .gguf file
data:
  train: train.jsonl
  validation: 0.05
task: chat
base: {dtype: auto}
lora:
  r: 16
  scaling: 2.0
  target_modules: all-linear
  dropout: 0.0
train:
  epochs: 3
  learning_rate: 2.0e-4
  max_length: 2048
  packing: true
  batch_tokens: 4096
  micro_batch_size: auto
  micro_batch_tokens: auto
  memory: auto
  schedule: cosine
  warmup: 0.03
  seed: 0
""",
        )
    )
    assert findings == []
    assert run.lora_config().alpha == 32
    assert run.data.train[0].path == str(tmp_path / "train.jsonl")
    assert run == load_run_file(minimal(tmp_path), (f"data.train={tmp_path}/train.jsonl", f"model={run.model}"))[0]


def test_every_problem_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    found = refusal(
        tmp_path,
        """\
model: x
data: {train: a.jsonl, trian: 3}
lora:
  lora_alpha: 16
  r: true
learning_rate: 3
train:
  steps: 3
  epochs: 4
  schedule: cosin
  trackers: wandbb
  epochs: 7
base: {dtype: nf5}
""",
    )
    told = [line.strip().removeprefix(f"{tmp_path}/run.yaml:") for line in found.splitlines()[1:]]
    assert told == [
        "2: unknown key data.trian; did you mean 'data.train'?",
        "4: unknown key lora.lora_alpha; here it is 'lora.alpha'",
        "5: lora.r: True is not a whole number from 1",
        "6: unknown key learning_rate; did you mean 'train.learning_rate'?",
        "8: train.steps: train.epochs is written too; write one of the two",
        "10: train.schedule: 'cosin' is not known; did you mean 'cosine'?",
        "11: train.trackers: 'wandbb' is not known; did you mean 'wandb'?",
        "12: train.epochs is written twice, first in line 9",
        "13: base.dtype: 'nf5' is not known; did you mean 'nf4'?",
    ]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("lora: {r: 16, alpha: 16, scaling: 2}", "means scaling=1"),
        ("train: {batch_tokens: 512, batch_size: 4}", "train.batch_tokens is written too"),
        ("train: {batch_tokens: 512, max_length: 1024}", "fits no step"),
        ("train: {warmup: 1.5}", "neither a share below 1"),
        ("train: {learning_rate: .nan}", "not a number above 0"),
        (f"train: {{learning_rate: 1{'0' * 400}}}", "not a number above 0"),
        ("train: {betas: [0.9]}", "not two numbers"),
        ("lora: 16", "not a mapping"),
        ("lora: {target_modules: [], modules_to_save: []}", "nothing would train"),
        ("lora: {rank_pattern: {q_proj: 0}}", "lora.rank_pattern: 0 is not a whole number"),
        ("lora: {r: !!python/object:os.system 3}", "not a plain value"),
        ("task: chatt", "did you mean 'chat'?"),
        ("lora: {scaling: 1.0e+308}", "leave the range of floats"),
        ("lora: {alpha: 1.0e-323}", "leave the range of floats"),
        ("lora: {scaling: 1.0e+39}", "leave the range of floats"),
        ("train: {max_length: 1}", "not a whole number from 2"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(tmp_path: Path, written: str, told: str) -> None:
    found = refusal(tmp_path, f"model: m\ndata: {{train: t}}\n{written}\n")
    assert told in found
    assert "run.yaml:3: " in found


@pytest.mark.parametrize("missing", ["data: {train: t}", "model: m", "model: m\ndata: {}", "{}"])
def test_a_missing_model_or_data_is_named(tmp_path: Path, missing: str) -> None:
    assert "is missing" in refusal(tmp_path, missing + "\n")


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b", "a: [1", "a: &x [*x]", "\x00"])
def test_what_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "run.yaml" in refusal(tmp_path, text)


def test_a_bomb_of_aliases_or_brackets_is_refused_at_once(tmp_path: Path) -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    assert "expands to more" in refusal(tmp_path, laughs)
    assert "nested too deeply" in refusal(tmp_path, "a: " + "[" * 5_000)
    assert "larger than" in refusal(tmp_path, "a: " + "x" * 1_000_001)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run file"):
        load_run_file(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"model: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_run_file(tmp_path / "bytes.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_run_file(tmp_path)


def test_numbers_are_taken_as_people_write_them(tmp_path: Path) -> None:
    run, _ = load_run_file(
        minimal(tmp_path, 'train: {learning_rate: 2e-4, steps: 1e3, clip: null, warmup: "100"}\nlora: {r: 8.0}\n')
    )
    assert (run.train.learning_rate, run.train.steps, run.train.clip, run.train.warmup) == (2e-4, 1000, None, 100)
    assert run.lora.r == 8
    assert run.train.epochs is None


def test_yaml_1_1_words_for_off_mean_none(tmp_path: Path) -> None:
    run, _ = load_run_file(minimal(tmp_path, "train: {early_stopping: off, trackers: none}\n"))
    assert run.train.early_stopping is None
    assert run.train.trackers == ()


def test_a_rank_from_the_call_keeps_a_written_alpha_and_says_what_scaling_became(tmp_path: Path) -> None:
    run, findings = load_run_file(minimal(tmp_path, "lora: {r: 16, alpha: 32}\n"), ("lora.r=32",))
    assert (run.lora.r, run.lora.alpha, run.lora.scaling) == (32, 32, 1)
    assert [finding.code for finding in findings] == ["scaling-changed"]
    assert "falls from 2 to 1" in findings[0].message
    assert "lora.scaling=2" in findings[0].cure


def test_a_rank_from_the_call_keeps_a_written_scaling(tmp_path: Path) -> None:
    run, findings = load_run_file(minimal(tmp_path, "lora: {r: 16, scaling: 2}\n"), ("lora.r=32",))
    assert (run.lora.alpha, run.lora.scaling) == (64, 2)
    assert findings == []


def test_a_rank_over_a_completed_file_keeps_the_scaling(tmp_path: Path) -> None:
    completed = load_run_file(minimal(tmp_path, "lora: {r: 16, alpha: 32}\n"))[0].to_yaml()
    run, findings = load_run_file(write(tmp_path, completed), ("lora.r=32",))
    assert (run.lora.alpha, run.lora.scaling) == (64, 2)
    assert findings == []


@pytest.mark.parametrize(
    ("entry", "check"),
    [
        ("train.steps=10", lambda run: (run.train.steps, run.train.epochs) == (10, None)),
        ("train.batch_size=4", lambda run: (run.train.batch_size, run.train.batch_tokens) == (4, None)),
        ("lora.alpha=16", lambda run: (run.lora.alpha, run.lora.scaling) == (16, 1)),
        ("lora.scaling=4", lambda run: (run.lora.alpha, run.lora.scaling) == (64, 4)),
        ("lora.rank_pattern.q_proj=4", lambda run: run.lora.rank_pattern == {"q_proj": 4}),
        ("lora.target_modules=[q_proj, v_proj]", lambda run: run.lora.target_modules == ("q_proj", "v_proj")),
        ("task=style", lambda run: run.task == "style"),
    ],
)
def test_a_set_reaches_any_field_and_replaces_its_rival(tmp_path: Path, entry: str, check: object) -> None:
    completed = load_run_file(minimal(tmp_path))[0].to_yaml()
    run, _ = load_run_file(write(tmp_path, completed), (entry,))
    assert callable(check)
    assert check(run)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("lora.r", "--set lora.r"),
        ("lora.r=no", "--set lora.r=False: lora.r"),
        ("train.rl=3", "--set train.rl=3: unknown key train.rl"),
        ("model.x=3", "holds no keys"),
        ("lora.r=[1", "not YAML"),
    ],
)
def test_a_set_that_cannot_be_meant_is_named(tmp_path: Path, entry: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_file(minimal(tmp_path), (entry,))
    assert told in caught.value.found


def test_relative_paths_start_at_the_file_and_those_of_the_call_where_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (there / "base").mkdir(parents=True)
    monkeypatch.chdir(here)
    text = "model: base\ndata: {train: [{path: a.jsonl, weight: 2}, user/rows], validation: v.jsonl}\n"
    run, _ = load_run_file(write(there, text))
    assert run.model == str(there / "base")
    assert [(s.path, s.weight) for s in run.data.train] == [(str(there / "a.jsonl"), 2), ("user/rows", 1)]
    assert run.data.validation == str(there / "v.jsonl")
    assert load_run_file(there / "run.yaml", ("data.train=b.jsonl",))[0].data.train[0].path == str(here / "b.jsonl")
    assert make_run_file({"model": "m", "data": {"train": "c.csv"}})[0].data.train[0].path == str(here / "c.csv")


def test_values_can_be_frozen_into_a_run() -> None:
    run, _ = make_run_file(LEAST)
    frozen = run.with_values({"base.dtype": "float32", "train.steps": 7, "lora.r": 4})
    assert (frozen.base.dtype, frozen.train.steps, frozen.train.epochs) == ("float32", 7, None)
    assert (frozen.lora.r, frozen.lora.scaling, frozen.lora.alpha) == (4, 2, 8)
    assert run.base.dtype == "auto"
    with pytest.raises(ValueError, match="not a number"):
        run.with_values({"train.learning_rate": "fast"})


def test_a_run_made_in_python_is_refused_what_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(not_built.NOT_BUILT, ("train.memory", "offload"), "that is not built yet; use frugal")
    run = RunFile.model_validate(LEAST | {"train": {"memory": "offload"}})
    with pytest.raises(ConfigError, match="not built yet"):
        require_built(run)


def test_a_batch_grows_to_hold_the_longest_row_when_nobody_chose_one() -> None:
    assert make_run_file(LEAST | {"train": {"max_length": 9000}})[0].train.batch_tokens == 9000


def test_the_seed_of_a_is_that_of_the_run_unless_it_has_its_own() -> None:
    assert make_run_file(LEAST | {"train": {"seed": 5}})[0].lora_config().seed == 5
    assert make_run_file(LEAST | {"train": {"seed": 5}, "lora": {"seed": 0}})[0].lora_config().seed == 0


def test_a_completed_file_says_every_field_once_and_keeps_comments_short(tmp_path: Path) -> None:
    text = load_run_file(minimal(tmp_path))[0].to_yaml()
    for shown in ("r: 16 ", "alpha: 32 ", "scaling: 2 ", "learning_rate: 0.0002 "):
        assert shown in text
    assert "steps:" not in text.replace("# ", "")
    assert max(len(line) for line in text.splitlines()) <= 120


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    r=st.integers(1, 512),
    alpha=st.floats(1e-3, 1e3),
    rslora=st.booleans(),
    rate=st.floats(1e-7, 1.0),
    length=st.sampled_from([{"steps": 12}, {"epochs": 0.5}]),
    targets=st.one_of(names, st.lists(names, min_size=1, max_size=3)),
    weight=st.floats(0.1, 10),
    warmup=st.one_of(st.integers(0, 1000), st.floats(0, 0.99)),
)
def test_a_completed_file_loads_to_the_same_run(
    r: int, alpha: float, rslora: bool, rate: float, length: dict, targets: object, weight: float, warmup: float
) -> None:
    from tempfile import TemporaryDirectory

    run = RunFile.model_validate(
        {
            "model": "user/model",
            "data": {"train": [{"path": "user/a", "weight": weight}, "user/b"], "validation": 200},
            "lora": {"r": r, "alpha": alpha, "rslora": rslora, "target_modules": targets, "rank_pattern": {"q": 3}},
            "train": {"learning_rate": rate, "warmup": warmup, **length},
        }
    )
    with TemporaryDirectory() as folder:
        again, _ = load_run_file(write(Path(folder), run.to_yaml()))
    assert again == run
    assert again.lora_config() == run.lora_config()


def test_a_template_is_a_known_name_or_a_file_beside_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "chatml").mkdir()
    for written, meant in (("chatml", "chatml"), ("own.jinja", str(tmp_path / "own.jinja")), ("null", None)):
        run, _ = load_run_file(write(tmp_path, f"model: a/b\ndata: {{train: a/c, template: {written}}}\n"))
        assert run.data.template == meant
        assert load_run_file(write(tmp_path, run.to_yaml()))[0] == run


def test_a_date_is_a_day_as_yaml_or_people_write_it(tmp_path: Path) -> None:
    for written in ("2026-11-25", "'2026-11-25'", "auto"):
        run, _ = load_run_file(write(tmp_path, f"model: a/b\ndata: {{train: a/c, date: {written}}}\n"))
        assert run.data.date in ("2026-11-25", "auto")
    assert "is not a day" in refusal(tmp_path, "model: a/b\ndata: {train: a/c, date: today}\n")


@pytest.mark.parametrize("text", ["a\\0b.jsonl", "~nobody-of-that-name/rows.jsonl", "x" * 5000 + ".jsonl"])
@pytest.mark.parametrize("key", ["model", "data.train", "data.validation"])
def test_a_text_that_no_disk_can_hold_is_no_path(tmp_path: Path, key: str, text: str) -> None:
    written = {"model": "user/m", "data.train": "user/d", "data.validation": "user/v"} | {key: text}
    found = refusal(
        tmp_path,
        f'model: "{written["model"]}"\n'
        f'data:\n  train: "{written["data.train"]}"\n  validation: "{written["data.validation"]}"\n',
    )
    assert key in found
    assert "is no path" in found
    assert len(found) < 400


@pytest.mark.parametrize("key", ["model", "data.train"])
def test_an_empty_path_is_not_the_folder_of_the_run_file(tmp_path: Path, key: str) -> None:
    (tmp_path / "rows.jsonl").write_text("{}", encoding="utf-8")
    written = {"model": "user/m", "data.train": "user/d"} | {key: "''"}
    assert f"{key}" in refusal(tmp_path, f"model: {written['model']}\ndata: {{train: {written['data.train']}}}\n")


def test_a_loop_of_links_is_told_as_no_file(tmp_path: Path) -> None:
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    run, _ = load_run_file(write(tmp_path, "model: a/b\ndata: {train: loop.jsonl}\n"))
    with pytest.raises(DataError, match="does not exist"):
        read_rows(run.data.train[0].path)


def test_a_section_whose_lines_are_all_commented_out_means_its_defaults(tmp_path: Path) -> None:
    run, _ = load_run_file(write(tmp_path, "model: a/b\ndata: {train: a/c}\nlora:\n  # r: 8\ntrain:\nbase:\n"))
    assert run == load_run_file(write(tmp_path, "model: a/b\ndata: {train: a/c}\n"))[0]


def test_a_misspelt_key_of_a_source_is_answered_with_the_nearest(tmp_path: Path) -> None:
    found = refusal(tmp_path, "model: a/b\ndata:\n  train:\n    - {path: a/c, wieght: 2}\n")
    assert "run.yaml:4: unknown key data.train.0.wieght; did you mean 'weight'?" in found


def test_a_set_value_cannot_bring_a_second_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than one value"):
        load_run_file(minimal(tmp_path), ["lora.r=8\nmodel: other"])
