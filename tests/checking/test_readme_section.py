"""What the README shows of `lorawise check` is what it prints."""

import re
import shlex
from pathlib import Path

import pytest

from lorawise.cli.app import run

ROOT = Path(__file__).parents[2]
GUIDE = Path(__file__).parent / "corpus" / "guide_script.txt"


def test_the_transcript_is_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("guide.py").write_text(GUIDE.read_text(encoding="utf-8"), encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (block,) = [block for block in blocks if block.startswith("$ lorawise check")]
    command, _, shown = block.partition("\n")
    assert run(shlex.split(command)[2:]) == 1
    assert capsys.readouterr().out.strip() == shown.strip()


def test_the_other_commands_the_readme_names_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "guide.py"
    path.write_text(GUIDE.read_text(encoding="utf-8"), encoding="utf-8")
    assert run(["check", "--explain", "LW301"]) == 0
    assert run(["check", "--convert", "mlx-lm", str(path)]) == 0
    assert "scale: 2" in capsys.readouterr().out
