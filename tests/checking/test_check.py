"""The check as people use it: what is printed, what is chosen, what is ignored, what is mended."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.checking.corpus.case import changed, notebook
from tests.checking.corpus.sane import AXOLOTL, TRL

from lorawise import check
from lorawise.base.errors import ConfigError
from lorawise.checking.fixing import apply_fixes, fixed
from lorawise.checking.rules import Fix
from lorawise.cli.app import run

Capture = pytest.CaptureFixture[str]
BROKEN = TRL.replace("lora_alpha=32", "lora_alpha=3200").replace("eval_strategy", "evaluation_strategy")
BROKEN = BROKEN.replace("dtype=torch", "torch_dtype=torch")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(BROKEN, encoding="utf-8")
    (tmp_path / "axolotl.yml").write_text(AXOLOTL, encoding="utf-8")
    return tmp_path


def codes(*paths: str, **options: object) -> set[str]:
    return {finding.code for finding in check(*paths, **options).findings}  # type: ignore[arg-type]


def test_checking_loads_neither_torch_nor_transformers_and_fetches_nothing(here: Path) -> None:
    code = (
        "import sys, socket\n"
        "def refuse(*a, **k): raise AssertionError('the network')\n"
        "socket.socket.connect = refuse\n"
        "import lorawise\n"
        "assert lorawise.check('.').findings\n"
        "loaded = {'torch', 'transformers', 'peft', 'trl', 'datasets'} & set(sys.modules); assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-600:]


def test_findings_are_grouped_by_file_worst_first_with_lines(here: Path, capsys: Capture) -> None:
    assert run(["check", "axolotl.yml", "train.py"]) == 1
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == "train.py"
    number = next(n for n, text in enumerate(BROKEN.splitlines(), 1) if "lora_alpha" in text)
    assert any(line.split()[:3] == [str(number), "error", "LW103"] for line in lines)
    levels = [line.split()[1] for line in lines if len(line.split()) > 2 and line.split()[2].startswith("LW")]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert max(map(len, lines)) <= 120
    assert "can be fixed with --fix" in shown.err


def test_json_holds_the_promised_keys(here: Path, capsys: Capture) -> None:
    assert run(["check", "train.py", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert {"code", "level", "path", "line", "message", "cure"} == set(document["findings"][0])


def test_sarif_names_its_rules_and_places(here: Path, capsys: Capture) -> None:
    assert run(["check", "train.py", "--format", "sarif"]) == 1
    held = json.loads(capsys.readouterr().out)
    assert held["version"] == "2.1.0"
    (only,) = held["runs"]
    rules = [rule["id"] for rule in only["tool"]["driver"]["rules"]]
    for result in only["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["locations"][0]["physicalLocation"]["region"]["startLine"] > 0


def test_github_gets_one_annotation_a_finding(here: Path, capsys: Capture) -> None:
    assert run(["check", "train.py", "--format", "github"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(check("train.py").findings)
    assert all(line.startswith(("::error file=train.py,line=", "::warning file=", "::notice file=")) for line in lines)


def test_exit_codes(here: Path, capsys: Capture) -> None:
    assert run(["check", "axolotl.yml"]) == 0
    (here / "weak.yml").write_text(AXOLOTL.replace("alpha: 32", "alpha: 8").replace("r: 16", "r: 64"), encoding="utf-8")
    assert run(["check", "weak.yml"]) == 0
    assert run(["check", "weak.yml", "--strict"]) == 1
    assert run(["check"]) == 2
    assert run(["check", "axolotl.yml", "--select", "XX9"]) == 2
    assert run(["check", "--explain", "LW105"]) == 0
    assert "5e-4" in capsys.readouterr().out
    assert run(["check", "--explain", "LW999"]) == 2
    assert run(["check", "gone.yml"]) == 1


def test_rules_are_selected_and_ignored_by_code_and_beginning(here: Path) -> None:
    assert codes("train.py", select=["LW1"]) == {"LW103"}
    assert codes("train.py", ignore=["LW1", "LW401"]) == {"LW402"}


def test_a_projects_section_chooses_rules_levels_and_files(here: Path) -> None:
    (here / "pyproject.toml").write_text(
        '[tool.lorawise.check]\nignore = ["LW402"]\nlevels = {LW103 = "note", LW4 = "warning"}\nstrict = true\n'
        'exclude = ["old/*"]\n',
        encoding="utf-8",
    )
    (here / "old").mkdir()
    (here / "old" / "train.py").write_text(BROKEN, encoding="utf-8")
    report = check("train.py", "old/train.py")
    assert {(f.code, f.level) for f in report.findings} == {("LW103", "note"), ("LW401", "warning")}
    assert report.failed
    (here / "lorawise-check.toml").write_text("selekt = []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="selekt"):
        check("train.py")


def test_comments_silence_a_line_the_next_or_the_file(here: Path) -> None:
    line = "    lora_alpha=3200,"
    beside = BROKEN.replace(line, line + "  # lorawise: ignore[LW103]")
    above = BROKEN.replace(line, "    # lorawise: ignore[LW1]\n" + line)
    for text in (beside, above, BROKEN + "# lorawise: ignore-file[LW103]\n"):
        (here / "train.py").write_text(text, encoding="utf-8")
        report = check("train.py")
        assert {f.code for f in report.findings} == {"LW401", "LW402"}
        assert report.silenced == 1
    (here / "train.py").write_text(BROKEN.replace(line, line + "  # lorawise: ignore[LW101]"), encoding="utf-8")
    assert "LW103" in codes("train.py")


def test_fix_renames_shows_the_diff_and_touches_nothing_else(here: Path, capsys: Capture) -> None:
    assert run(["check", "train.py", "--fix"]) == 1
    shown = capsys.readouterr().out
    assert '-    evaluation_strategy="steps",' in shown
    assert '+    eval_strategy="steps",' in shown
    assert (here / "train.py").read_text(encoding="utf-8") == TRL.replace("lora_alpha=32", "lora_alpha=3200")


def test_checking_without_fix_changes_nothing(here: Path) -> None:
    before = (here / "train.py").stat().st_mtime_ns, sorted(path.name for path in here.iterdir())
    check(".")
    assert before == ((here / "train.py").stat().st_mtime_ns, sorted(path.name for path in here.iterdir()))


def test_a_fix_through_a_link_mends_the_file_and_keeps_link_and_permissions(tmp_path: Path) -> None:
    old = "from transformers import TrainingArguments\nargs = TrainingArguments('o', evaluation_strategy='steps')\n"
    real, link = tmp_path / "real.py", tmp_path / "link.py"
    real.write_text(old, encoding="utf-8")
    real.chmod(0o750)
    link.symlink_to(real)
    apply_fixes(check(link).fixes)
    assert link.is_symlink()
    assert "('o', eval_strategy=" in real.read_text(encoding="utf-8")
    assert real.stat().st_mode & 0o777 == 0o750


def test_a_fix_keeps_the_line_ends_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_bytes(b'from trl import SFTConfig\r\nSFTConfig(evaluation_strategy="no")\r\n')
    apply_fixes(check(path).fixes)
    assert path.read_bytes() == b'from trl import SFTConfig\r\nSFTConfig(eval_strategy="no")\r\n'


def test_a_fix_in_a_notebook_renames_the_argument_and_nothing_else(tmp_path: Path) -> None:
    wrong = notebook(
        "!pip install trl", "# evaluation_strategy: é\n" + changed(TRL, ("eval_strategy", "evaluation_strategy"))
    )
    path = tmp_path / "train.ipynb"
    path.write_text(wrong, encoding="utf-8")
    diff = apply_fixes(check(path).fixes)
    assert path.read_text(encoding="utf-8") == wrong.replace("evaluation_strategy=", "eval_strategy=")
    assert '+    "    eval_strategy=' in diff
    assert not check(path).fixes


def test_a_fix_that_no_longer_fits_is_left_alone() -> None:
    fix = Fix(line=1, column=2, old="abc", new="x")
    assert fixed("é abc", [Fix(line=1, column=3, old="abc", new="x")]) == "é x"
    assert fixed("  abd\n", [fix]) == "  abd\n"
    assert fixed("", [fix]) == ""


def test_text_from_files_cannot_move_the_cursor(here: Path, capsys: Capture) -> None:
    (here / "evil.yaml").write_text(
        AXOLOTL.replace("lora_target_linear: true", 'lora_target_modules: ["q_\\e[31mproj"]')
    )
    run(["check", "evil.yaml"])
    assert "\x1b" not in capsys.readouterr().out


def test_an_adapter_on_fused_experts_is_judged_expert_by_expert(tmp_path: Path) -> None:
    """On disk the experts' ranks lie one after the other, which is no rank of 4 · 3 on a 24 wide layer."""
    import torch

    from lorawise.lora.config import LoraConfig
    from lorawise.lora.weights import AdapterWeights
    from lorawise.store import save_adapter

    draw = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.experts"
    shapes = {f"{name}.gate_up_proj": (4, 48, 32), f"{name}.down_proj": (4, 32, 24)}
    layers = {
        key: (torch.randn(count, 3, width, generator=draw), torch.randn(count, out, 3, generator=draw))
        for key, (count, out, width) in shapes.items()
    }
    weights = AdapterWeights(config=LoraConfig(r=3), layers=layers, kinds=dict.fromkeys(layers, "experts"))
    save_adapter(tmp_path / "adapter", weights, base="somebody/mixture")
    report = check(tmp_path / "adapter")
    assert {finding.code for finding in report.findings} & {"LW202", "LW608", "LW609", "LW604"} == set()
    layers[f"{name}.down_proj"][1].zero_()
    layers[f"{name}.gate_up_proj"][1].zero_()
    save_adapter(tmp_path / "zero", weights, base="somebody/mixture")
    assert "LW601" in {finding.code for finding in check(tmp_path / "zero").findings}
