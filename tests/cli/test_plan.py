"""`lorawise plan` as typed: its screen, its JSON, what it writes, what it refuses, and how little it costs."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from tests.facts.test_sources import llama_gguf
from tests.planning.situations import LLAMA_8B, model_folder
from tests.workbench import rows_of, tiny_folder, write_rows

from lorawise.base.files import digest_text
from lorawise.cli.app import run
from lorawise.runfile import load_run_file

Capture = pytest.CaptureFixture[str]
KEYS = {"lora", "train", "parameters", "memory", "fits", "decisions", "concessions"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the guide's 8B model as a config, a tiny model that can be trained, and rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    model_folder(tmp_path / "llama", LLAMA_8B)
    write_rows(tmp_path / "rows.jsonl", rows_of(400))
    return tmp_path


def header_only_8b(folder: Path) -> Path:
    """Llama 3.1 8B's safetensors as a sparse file: its whole header, and 16 GB of nothing."""
    model_folder(folder, LLAMA_8B)
    hidden, inner, kv, vocabulary = 4096, 14336, 1024, 128256
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "lm_head.weight": [vocabulary, hidden]}
    shapes["model.norm.weight"] = [hidden]
    for i in range(32):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}{norm}.weight": [hidden] for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": [hidden, hidden] for name in "qo"}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": [kv, hidden] for name in "kv"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": [inner, hidden] for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = [hidden, inner]
    header, start = {}, 0
    for name, shape in shapes.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + start)
    return folder


def test_the_json_holds_the_fixed_keys_in_one_document(home: Path, capsys: Capture) -> None:
    assert run(["plan", "llama", "rows.jsonl", "--device", "h100", "--task", "domain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) >= KEYS
    assert told["lora"] | {"dropout": 0} == {
        "r": 16,
        "alpha": 32.0,
        "scaling": 2.0,
        "target_modules": "all-linear",
        "dropout": 0,
    }
    assert {"learning_rate", "epochs", "batch_tokens", "max_length"} <= set(told["train"])
    assert set(told["parameters"]) == {"trainable", "total", "percent"}
    assert {"allocated", "reserved", "context", "by_cause"} <= set(told["memory"])
    assert sum(line["bytes"] for line in told["memory"]["by_cause"]) == told["memory"]["allocated"]
    for decision in told["decisions"]:
        assert {"name", "value", "reason", "range", "sources"} <= set(decision)
    assert told["fits"] is True
    assert told["concessions"] == []
    assert told["data"]["rows"] == 380


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_stays_within_the_terminal_and_says_what_matters(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(["plan", "llama", "rows.jsonl", "--device", "rtx-4090", "--price", "0.4"]) == 0
    screen = capsys.readouterr().out
    assert max(map(len, screen.splitlines())) <= width
    assert len(screen.splitlines()) <= 50
    for said in ("20,971,520", "scaling", "alpha 16", "fits", "rtx-4090", "tokens/s", "costs about", "estimated from"):
        assert said in " ".join(screen.split())
    assert "\x1b" not in screen
    assert run(["plan", "llama", "rows.jsonl", "--device", "rtx-4090", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    whole = [each["reason"] for each in told["decisions"]] + [each["because"] for each in told["memory"]["by_cause"]]
    known = {word for text in whole for word in text.split()}
    cut = [line.removesuffix("…").split()[-1] for line in screen.splitlines() if line.endswith("…")]
    assert cut
    assert set(cut) <= known  # after a whole word


def test_what_does_not_fit_exits_one_and_says_what_would(home: Path, capsys: Capture) -> None:
    assert run(["plan", "llama", "--device", "8GiB"]) == 1
    screen = capsys.readouterr().out
    assert "does not fit" in screen
    assert "base.dtype: nf4" in screen
    assert "smallest" in screen
    assert run(["plan", "llama", "--device", "8GiB", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] is False
    assert told["smallest_device"]
    assert [each["name"] for each in told["concessions"]][:2] == ["packing budget", "checkpointing"]
    assert run(["plan", "meta-llama/Llama-3.3-70B-Instruct", "--device", "8GiB"]) == 1
    assert "none of this makes it fit 8GiB" in capsys.readouterr().out


def test_a_gguf_file_is_planned_and_its_run_file_names_it(home: Path, capsys: Capture) -> None:
    llama_gguf(home / "small.gguf", kind=GGMLQuantizationType.Q8_0)
    asked = ["plan", "small.gguf", "rows.jsonl", "--device", "rtx-4090", "-o", "run.yaml", "--json"]
    assert run(asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["base"]["dtype"], told["fits"]) == ("bfloat16", True)
    assert told["data"]["measured_by"] == "bytes"
    written, findings = load_run_file(home / "run.yaml")
    assert (Path(written.model).name, findings) == ("small.gguf", [])


def test_the_run_file_it_writes_is_trained(home: Path, capsys: Capture) -> None:
    tiny_folder(home / "base", max_position_embeddings=2048)
    assert run(["plan", "base", "rows.jsonl", "-o", "run.yaml", "--set", "train.steps=2", "--device", "h100"]) == 0
    assert "lorawise train run.yaml" in capsys.readouterr().err
    assert run(["train", "run.yaml", "-o", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    text = (home / "run.yaml").read_text(encoding="utf-8")
    assert run(["plan", "base", "rows.jsonl", "-o", "run.yaml"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert digest_text((home / "run.yaml").read_text(encoding="utf-8")) == digest_text(text)


@pytest.mark.parametrize("method", [["--method", "full"], []])
def test_no_run_file_is_left_where_none_can_be_written(home: Path, capsys: Capture, method: list[str]) -> None:
    data = ["rows.jsonl"] if method else []
    assert run(["plan", "llama", *data, *method, "--device", "h200", "-o", "run.yaml"]) == 2
    assert ("not trained" if method else "needs data") in capsys.readouterr().err
    assert not (home / "run.yaml").exists()


def test_explain_prints_one_decision_at_length(home: Path, capsys: Capture) -> None:
    assert run(["plan", "llama", "--device", "h100", "--explain", "lora.scaling"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("lora.scaling = 2")
    assert "guide" in text
    assert run(["plan", "llama", "--device", "h100", "--explain", "lora.scalign", "--json"]) == 2
    assert "scaling" in json.loads(capsys.readouterr().out)["error"]["cure"]


def test_the_guides_table_is_printed_for_the_model(home: Path, capsys: Capture) -> None:
    assert run(["plan", "llama", "--device", "h100", "--table"]) == 0
    assert "~72GB" in capsys.readouterr().out
    assert run(["plan", "llama", "--device", "h100", "--table", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 7


def test_a_trace_takes_the_place_of_the_prediction_and_agrees(home: Path, capsys: Capture) -> None:
    tiny_folder(home / "base", max_position_embeddings=2048)
    asked = ["plan", "base", "rows.jsonl", "--device", "h100", "--set", "base.dtype=bfloat16", "--json"]
    assert run(asked) == 0
    predicted = json.loads(capsys.readouterr().out)["memory"]
    assert run([*asked, "--trace"]) == 0
    traced = json.loads(capsys.readouterr().out)["memory"]
    assert traced["versions"].startswith("torch ")
    assert traced["allocated"] == pytest.approx(predicted["allocated"], rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lama"], "lama"),
        (["./nowhere"], "no model"),
        (["nobody/no-such-model"], "config.json is not in this machine's cache"),
        (["missing.yaml"], "there is no run file"),
        (["llama", "missing.jsonl"], "does not exist"),
        (["llama", "--device", "rtx-409"], "rtx-4090"),
        (["llama", "--device", "-3GiB"], "-3GiB"),
        (["llama", "--task", "styel"], "did you mean 'style'"),
        (["llama", "--method", "qloar"], "did you mean 'qlora'"),
        (["llama", "--trainer", "unsloth"], "hf"),
        (["llama", "--price", "-2"], "price"),
        (["llama", "--set", "lora.r=0"], "lora.r"),
        (["llama", "--set", "lora.r=-8"], "lora.r"),
        (["llama", "--set", "lora.r=1e9"], "lora"),
        (["llama", "--set", "lora.rank=8"], "lora.r"),
        (["llama", "--set", "lora.scaling=nan"], "scaling"),
        (["llama", "--set", "lora.target_modules=q_porj"], "q_p"),
        (["llama", "--set", "train.learning_rate=fast"], "learning_rate"),
        (["llama", "--set", "task=poetry"], "task"),
        (["llama", "--set", "nonsense"], "key=value"),
        (["llama", "--divice", "h100"], "--device"),
        (["llama", "rows.jsonl", "--table", "--trace"], "--table with --trace"),
        (["llama", "rows.jsonl", "--table", "--explain", "lora.r"], "--explain"),
        (["rows.jsonl", "llama"], "looks like data"),
        (["llama", "--set", "base.dtype=int8", "--trace", "--device", "h100"], "int8"),
        (["llama", "--method", "qlora", "--set", "base.dtype=float16"], "leave one of the two out"),
        (["llama", "--method", "lora", "--set", "base.dtype=nf4"], "nf4"),
        (["llama", "--set", "lora.target_modules=("], "regular expression"),
        (["llama", "--set", "train.epochs=1", "--set", "train.steps=2"], "one of the two"),
        (["list"], "holds a list"),
        (["number"], "model_type (3)"),
        (["hollow"], "holds no tensor"),
        (["long"], "torn"),
        (["torn"], "torn"),
        (["strange"], "never_seen"),
        (["half"], "hidden_size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_says_what_was_found_and_how_to_cure_it(
    home: Path, capsys: Capture, arguments: list[str], said: str
) -> None:
    (model_folder(home / "torn") / "model.safetensors").write_bytes(b'\x80\x00\x00\x00\x00\x00\x00\x00{"a"')
    (model_folder(home / "hollow") / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (model_folder(home / "long") / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{}")
    (model_folder(home / "list") / "config.json").write_text("[]")
    model_folder(home / "number", LLAMA_8B | {"model_type": 3})
    model_folder(home / "strange", LLAMA_8B | {"model_type": "never_seen", "architectures": ["NeverSeen"]})
    model_folder(home / "half", {key: value for key, value in LLAMA_8B.items() if key != "hidden_size"})
    before = sorted(home.rglob("*"))
    assert run(["plan", *arguments, "--json"]) == 2
    told = capsys.readouterr()
    error = json.loads(told.out)["error"]
    assert said in " ".join(error.values())
    assert error["found"]
    assert error["expected"] or error["cure"]
    assert "Traceback" not in told.err
    assert sorted(home.rglob("*")) == before


def test_every_refusal_of_a_value_says_what_the_field_is_for(home: Path, capsys: Capture) -> None:
    assert run(["plan", "llama", "--set", "lora.r=-4", "--set", "train.epochs=0", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["found"].startswith("2 problems")
    assert "lora.r is rank: how complex a correction it can learn; left out, it is 16" in error["cure"]
    assert "train.epochs is passes over the data" in error["cure"]


def test_a_missing_file_names_what_looks_like_it_or_the_first_few(home: Path, capsys: Capture) -> None:
    for i in range(30):
        write_rows(home / f"other-{i:02}.jsonl", rows_of(2))
    assert run(["plan", "llama", "row.jsonl"]) == 2
    assert "did you mean 'rows.jsonl'?" in capsys.readouterr().err
    assert run(["plan", "llama", "things-i-wrote.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "and 29 more" in said
    assert len(said) < 400


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_is_whole_within_the_terminal(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for model in ("llama", "meta-llama/Llama-3.3-70B-Instruct"):
        assert run(["plan", model, "--table", "--device", "h100"]) == 0
        screen = capsys.readouterr().out
        assert "…" not in screen
        assert max(map(len, screen.splitlines())) <= width


def test_a_price_always_says_something(home: Path, capsys: Capture) -> None:
    """Whole with data; by the million tokens without; and where no speed is known, that none can be told."""
    assert run(["plan", "llama", "rows.jsonl", "--device", "h100", "--price", "3"]) == 0
    assert "costs about" in capsys.readouterr().out
    assert run(["plan", "llama", "--device", "h100", "--price", "3"]) == 0
    screen = " ".join(capsys.readouterr().out.split())
    assert "a million tokens cost about" in screen
    assert "name the data" in screen
    assert run(["plan", "llama", "--device", "64GiB", "--price", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "plan-no-cost" in {finding["code"] for finding in told["findings"]}


def test_rows_that_would_stop_training_are_an_error_level_finding(home: Path, capsys: Capture) -> None:
    (home / "bad.jsonl").write_text((home / "rows.jsonl").read_text() + "{oops\n", encoding="utf-8")
    assert run(["plan", "llama", "bad.jsonl", "--device", "h100", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [f["code"] for f in findings if f["level"] == "error"] == ["data-bad-rows"]
    assert "data-skipped" not in {f["code"] for f in findings}


def test_an_8b_header_is_planned_in_a_second_without_torch(home: Path) -> None:
    """In a fresh interpreter; its own seconds of work and its peak memory, the best of three."""
    header_only_8b(home / "whole")
    code = (
        "import sys\nfrom lorawise.cli.app import run\n"
        "code = run(['plan', 'whole', 'rows.jsonl', '--device', 'rtx-4090'])\n"
        "print('loaded', *({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)))\nsys.exit(code)"
    )
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=home, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert done.stdout.splitlines()[-1] == "loaded"
    assert "8,030,261,248 parameters" in done.stdout
    assert "family's rule" not in done.stdout
    assert min(taken) < 1.0


def test_an_8b_header_is_planned_within_150_megabytes(home: Path) -> None:
    header_only_8b(home / "whole")
    code = (
        "import resource, sys\nfrom lorawise.cli.app import run\n"
        "run(['plan', 'whole', '--device', 'rtx-4090', '--json'])\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(peak // 2**20 if sys.platform == 'darwin' else peak // 1024, file=sys.stderr)"
    )
    # A grandchild: a fork's peak starts at its parent's size on Linux, which here holds torch.
    outer = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {code!r}]).returncode)"
    done = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True, cwd=home, check=True)
    assert int(done.stderr.splitlines()[-1]) < 150
