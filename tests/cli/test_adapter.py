"""`lorawise adapter`: each command as typed, its document, its refusals, and that it loads no torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.store.made_adapters import NAMES, dense_of, draw, error, saved

from lorawise import LoraConfig
from lorawise.cli.app import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAWISE_STORE", str(tmp_path / "store"))
    saved(tmp_path / "legal", draw(LoraConfig(r=8, scaling=2.0), NAMES, torch.float32, 0))
    saved(tmp_path / "brief", draw(LoraConfig(r=4, alpha=8, rslora=True), NAMES[:2], torch.bfloat16, 1))
    return tmp_path


def document(capsys: Capture, *arguments: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["adapter", *arguments, "--json"]) == code
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_show_tells_every_layer(here: Path, capsys: Capture) -> None:
    told = document(capsys, "show", "legal", "--html", "map.html")
    assert [layer["name"] for layer in told["layers"]] == list(NAMES)
    assert (told["path"], told["r"], told["scaling"], told["error"]) == ("legal", 8, 2.0, 0.0)
    assert (here / "map.html").is_file()
    assert run(["adapter", "show", "legal"]) == 0
    shown = capsys.readouterr().out
    assert "r 8, alpha 16, scaling 2 = alpha / r" in shown
    assert all(name in shown for name in NAMES)


@pytest.mark.parametrize(
    ("arguments", "bound"),
    [
        (["rescale", "legal", "--by", "0.5"], 1e-12),
        (["rescale", "legal", "--scaling", "1"], 1e-12),
        (["resize", "legal", "--rank", "2"], 1.0),
        (["resize", "legal", "--energy", "0.95", "--dtype", "bfloat16"], 0.3),
        (["resize", "legal", "--budget", "900"], 1.0),
        (["combine", "legal=0.7", "brief=-0.3"], 1e-6),
        (["combine", "legal=1", "brief=1", "--method", "svd", "--rank", "12"], 1e-6),
        (["combine", "legal=1", "brief=1", "--method", "dare", "--seed", "3"], 2.0),
        (["normalize", "brief"], 1e-6),
    ],
)
def test_what_changes_an_adapter_writes_one_with_its_parents(
    here: Path, capsys: Capture, arguments: list[str], bound: float
) -> None:
    told = document(capsys, *arguments, "-o", "out")
    assert told["path"] == "out"
    assert 0 <= told["error"] < bound
    history = json.loads((here / "out" / "provenance.json").read_text())
    assert history["parents"] == told["parents"]
    assert history["run"]["operation"] == arguments[0]
    assert run(["adapter", *arguments, "-o", "again"]) == 0
    assert "against the exact update" in capsys.readouterr().out
    assert error(dense_of(here / "again"), dense_of(here / "out")) == 0
    refused = document(capsys, *arguments, "-o", "out", code=2)
    assert "exists" in refused["error"]["found"]


def test_diff_tells_how_far_apart(here: Path, capsys: Capture) -> None:
    told = document(capsys, "diff", "legal", "brief")
    assert told["error"] > 0
    assert len(told["layers"]) == len(NAMES)
    assert run(["adapter", "diff", "legal", "legal"]) == 0
    assert "cosine +1.000" in capsys.readouterr().out


def test_the_store_from_adding_to_forgetting(here: Path, capsys: Capture) -> None:
    digest = document(capsys, "add", "legal", "--name", "law")["digest"]
    assert document(capsys, "tag", "law", "rights")["names"] == ["law", "rights"]
    assert document(capsys, "list")["adapters"][0]["names"] == ["law", "rights"]
    assert document(capsys, "show", "@rights")["digest"] == digest
    assert document(capsys, "combine", "@law=0.5", "brief=1", "-o", "out")["parents"][0] == digest
    refused = document(capsys, "add", "brief", "--name", "law", code=2)
    assert "--move" in refused["error"]["cure"]
    assert document(capsys, "rm", "law")["removed"] is False
    assert document(capsys, "rm", "rights")["removed"] is True
    assert document(capsys, "list")["adapters"] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "nowhere"], "adapter_config.json is missing"),
        (["show", "@nobody"], "knows no 'nobody'"),
        (["rescale", "legal", "-o", "x"], "--scaling and --by"),
        (["rescale", "legal", "--by", "-1", "-o", "x"], "cannot rescale by -1"),
        (["rescale", "legal", "--by", "0", "-o", "x"], "cannot rescale by 0"),
        (["rescale", "legal", "--by", "nan", "-o", "x"], "cannot rescale by nan"),
        (["resize", "legal", "-o", "x"], "neither rank, energy nor budget"),
        (["resize", "legal", "--rank", "64", "-o", "x"], "rank 64 is more"),
        (["resize", "legal", "--rank", "2", "--spread", "evenly", "-o", "x"], "unknown spread"),
        (["resize", "legal", "--rank", "2", "--dtype", "fp8", "-o", "x"], "unknown dtype"),
        (["combine", "legal", "-o", "x"], "legal=0.7"),
        (["combine", "legal=x", "-o", "x"], "legal=0.7"),
        (["combine", "legal=nan", "-o", "x"], "weight is nan"),
        (["combine", "legal=1", "--method", "tyes", "-o", "x"], "unknown method"),
        (["combine", "legal=1", "brief=1", "--method", "linear", "-o", "x"], "has ranks"),
        (["combine", "legal=1", "--rank", "3", "-o", "x"], "--rank with the method"),
        (["diff", "legal", "nowhere"], "is missing"),
        (["add", "legal", "--name", "../x"], "cannot be a name"),
        (["tag", "a", "b"], "knows no 'a'"),
    ],
)
def test_a_wrong_call_writes_nothing_and_says_why(here: Path, capsys: Capture, arguments: list[str], says: str) -> None:
    told = document(capsys, *arguments, code=2)["error"]
    assert says in " ".join(told.values())
    assert not (here / "x").exists()
    assert not (here / "store" / "objects").exists()


HOSTILE: list[tuple[str, Any]] = [
    ("r", 10**9),
    ("r", 8.5),
    ("lora_alpha", 1e308),
    ("rank_pattern", {"(a+)+$": 2}),
    ("target_modules", "(?:a{1000}){1000}"),
    ("base_model_name_or_path", "../../../etc/passwd\n\x1b[31m"),
    ("base_model_name_or_path", {"a": 1}),
]


@pytest.mark.parametrize(("field", "value"), HOSTILE)
@pytest.mark.parametrize("command", [["show"], ["resize", "--rank", "2", "-o", "out"], ["normalize", "-o", "out"]])
def test_a_hostile_config_is_refused_or_harmless(
    here: Path, capsys: Capture, command: list[str], field: str, value: object
) -> None:
    path = here / "legal" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    (here / "legal" / "provenance.json").unlink()
    before = {p.relative_to(here) for p in here.rglob("*")}
    code = run(["adapter", command[0], "legal", *command[1:]])
    shown = capsys.readouterr()
    assert code in (0, 2)
    assert "Traceback" not in shown.err
    assert "\x1b" not in shown.out
    escaped = {p for p in {p.relative_to(here) for p in here.rglob("*")} - before if p.parts[0] != "out"}
    assert not escaped


def test_work_on_files_loads_no_torch(here: Path) -> None:
    code = (
        "import sys\n"
        "from lorawise.cli.app import run\n"
        "for line in sys.argv[1:]:\n"
        "    assert run(['adapter', *line.split(), '--json']) == 0, line\n"
        "loaded = {'torch', 'transformers', 'safetensors', 'peft'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    lines = [
        "show legal --html m.html",
        "diff legal brief",
        "rescale legal --by 2 -o 1",
        "resize legal --rank 2 -o 2",
        "combine legal=1 brief=1 --method ties -o 3",
        "normalize brief -o 4",
        "add legal --name x",
        "list",
        "tag x y",
        "rm x",
    ]
    subprocess.run([sys.executable, "-c", code, *lines], check=True, cwd=here, capture_output=True)


def test_a_pickle_is_made_safe_when_asked(here: Path, capsys: Capture) -> None:
    from safetensors.torch import load_file

    path = here / "legal" / "adapter_model.safetensors"
    torch.save(load_file(path), here / "legal" / "adapter_model.bin")
    path.unlink()
    assert "--from-pickle" in document(capsys, "show", "legal", code=2)["error"]["cure"]
    assert document(capsys, "normalize", "legal", "--from-pickle", "-o", "safe")["error"] < 1e-6


@pytest.mark.parametrize("width", ["80", "120"])
def test_help_is_there_for_every_command(width: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    for command in ("show", "diff", "rescale", "resize", "combine", "normalize", "add", "list", "tag", "rm"):
        assert run(["adapter", command, "--help"]) == 0
        assert f"lorawise adapter {command}" in capsys.readouterr().out


def test_a_base_of_other_shapes_or_names_gives_no_figures(here: Path, capsys: Capture) -> None:
    from safetensors.torch import save_file

    layers = document(capsys, "show", "legal")["layers"]
    right = {f"{layer['name']}.weight": torch.ones(layer["shape"]) for layer in layers}
    wide = {name: torch.ones(weight.shape[0], weight.shape[1] + 1) for name, weight in right.items()}
    foreign = {f"other.{name}": weight for name, weight in right.items()}
    for folder, tensors in (("right", right), ("wide", wide), ("foreign", foreign)):
        (here / folder).mkdir()
        save_file(tensors, here / folder / "model.safetensors")
    for layer in document(capsys, "show", "legal", "--base", "right")["layers"]:
        out, into = layer["shape"]
        assert layer["of_base"] == pytest.approx(layer["norm"] / (out * into) ** 0.5)
    assert "the adapter is for" in document(capsys, "show", "legal", "--base", "wide", code=2)["error"]["found"]
    assert (
        "none of the adapter's modules"
        in document(capsys, "show", "legal", "--base", "foreign", code=2)["error"]["found"]
    )


def test_what_cancels_is_nothing_and_has_no_error(here: Path, capsys: Capture) -> None:
    assert document(capsys, "combine", "legal=0.7", "legal=-0.7", "-o", "none")["error"] == 0.0
    assert (
        document(capsys, "combine", "legal=0.7", "brief=-0.7", "--method", "svd", "--rank", "1", "-o", "some")["error"]
        > 0.1
    )
