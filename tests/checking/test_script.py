"""Scripts are read, never run; what cannot be known is unknown, not guessed."""

from pathlib import Path

import pytest
from tests.checking.corpus.case import notebook

from lorawise import check
from lorawise.checking.notebook import read_notebook
from lorawise.checking.script import UNKNOWN, read_script
from lorawise.checking.script_setting import settings_of

HEAD = "import os\nfrom peft import LoraConfig\n"


def r_of(code: str) -> object:
    (setting,) = settings_of(read_script(HEAD + code, "x.py"))
    return setting.r


@pytest.mark.parametrize(
    ("code", "r"),
    [
        ("LoraConfig(r=4 * 2)", 8),
        ("R = 16\nLoraConfig(r=R)", 16),
        ("R: int = 16\nLoraConfig(r=R // 2)", 8),
        ("K = dict(r=12)\nLoraConfig(**K)", 12),
        ("K = {'r': 12}\nLoraConfig(**K)", 12),
        ("LoraConfig()", 8),
        ("R = 16\nR = 32\nLoraConfig(r=R)", None),
        ("R = 16\nR += 1\nLoraConfig(r=R)", None),
        ("for R in (1, 2):\n    LoraConfig(r=R)", None),
        ("def make(R):\n    return LoraConfig(r=R)", None),
        ("LoraConfig(r=int(os.environ['R']))", None),
        ("LoraConfig(r=16 if os.name else 8)", None),
        ("LoraConfig(r=2 ** 4)", None),
        ("LoraConfig(**load())", None),
        ("R = 16\ndef f():\n    global R\n    R = 2\nLoraConfig(r=R)", None),
    ],
)
def test_a_value_is_known_only_when_it_must_be_so(code: str, r: object) -> None:
    assert r_of(code) == r


def test_another_librarys_class_of_the_same_name_keeps_its_argument_values() -> None:
    script = read_script("from torch import bfloat16 as half\nimport torch as t\nf(t.float16, half, x.y)\n", "x.py")
    (call,) = script.of("f")
    assert [a.value for a in call.positional] == ["float16", UNKNOWN, UNKNOWN]


def test_nothing_in_a_script_is_run(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(
        f"from peft import LoraConfig\nopen({str(tmp_path / 'ran')!r}, 'w')\nLoraConfig(r=8)\n", encoding="utf-8"
    )
    check(path)
    assert not (tmp_path / "ran").exists()


def test_a_notebooks_findings_stand_on_lines_of_its_file(tmp_path: Path) -> None:
    text = notebook(
        "!pip install peft\n%time x",
        "%%bash\nls (",
        "from peft import LoraConfig\nLoraConfig(\n    r=8,\n    lora_alpha=8000)\n",
    )
    path = tmp_path / "a.ipynb"
    path.write_text(text, encoding="utf-8")
    (finding,) = [f for f in check(path).findings if f.code == "LW103"]
    assert "lora_alpha=8000" in text.splitlines()[(finding.line or 0) - 1]
    read = read_notebook(text)
    assert len(read.lines) == len(read.code.splitlines())


def test_one_cell_that_is_not_python_hides_no_other(tmp_path: Path) -> None:
    text = notebook(
        "%%capture\n!pip install \\\n    peft\nimport os",
        "for row in rows:\nthis is no Python",
        "from peft import LoraConfig\nLoraConfig(\n    r=8,\n    lora_alpha=8000)\n",
    )
    path = tmp_path / "a.ipynb"
    path.write_text(text, encoding="utf-8")
    found = {f.code: f.line for f in check(path).findings}
    assert "lora_alpha=8000" in text.splitlines()[(found["LW103"] or 0) - 1]
    assert "for row in rows" in text.splitlines()[(found["LW004"] or 0) - 1]


def test_a_script_without_lora_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import os\nprint(os.name)\n", encoding="utf-8")
    assert not check(tmp_path).findings
    assert [f.code for f in check(tmp_path / "a.py").findings] == ["LW003"]
