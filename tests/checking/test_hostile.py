"""Files made to hurt: each ends in a finding, in bounded time and memory; nothing is run, followed or fetched."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.checking.corpus.case import adapter, pairs, rows
from tests.checking.corpus.sane import AXOLOTL, TRL

from lorawise import check

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
BACKTRACKS = "(?:.|..|...)+(?:.|..|...)+(?:.|..|...)+(?<!j)$"


def codes(*paths: Path) -> list[str]:
    return [finding.code for finding in check(*paths).findings]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("bomb.yaml", BOMB + "lora_r: 8\n", "LW002"),
        ("deep.yaml", "[" * 50_000, "LW002"),
        ("deep_block.yaml", "".join(" " * i + "a:\n" for i in range(300)), "LW002"),
        ("dashes.yaml", "- " * 20_000 + "x", "LW002"),
        ("tag.yaml", "lora_r: !!python/object/apply:os.system ['touch ran']\n", "LW003"),
        ("binary.yaml", b"\x00\x01\x02\xff" * 100, "LW001"),
        ("latin.yaml", "base_model: caf\xe9\n".encode("latin-1"), "LW001"),
        ("line.yaml", "a: " + "x" * 300_000, "LW001"),
        ("list.yaml", "- 1\n- 2\n", "LW003"),
        ("other.yaml", "services: {web: {image: nginx}}\n", "LW003"),
        ("parens.py", "(" * 50_000, "LW002"),
        ("minus.py", "-" * 100_000 + "1", "LW002"),
        ("calls.py", "f" + "()" * 50_000, "LW002"),
        ("null.py", "import peft\x00\n", "LW001"),
        ("cookie.py", "# -*- coding: klingon -*-\nimport peft\n", None),
        ("power.py", "from peft import LoraConfig\nLoraConfig(r=9**9**9**9, lora_alpha=1 << 10**9)\n", None),
        ("string.py", "from peft import LoraConfig\nLoraConfig(r=8, lora_alpha='x' * 10**12)\n", None),
        ("deep.ipynb", "[" * 100_000, "LW002"),
        ("numbers.yaml", AXOLOTL.replace("lora_r: 16", "lora_r: 1e400"), None),
        ("huge.yaml", AXOLOTL.replace("lora_r: 16", "lora_r: " + "9" * 5000), None),
        ("negative.yaml", AXOLOTL.replace("lora_r: 16", "lora_r: -4"), None),
        ("words.yaml", AXOLOTL.replace("lora_r: 16", "lora_r: {a: [1]}"), None),
        ("deep.jsonl", '{"messages": ' + "[" * 5000, "LW313"),
        ("empty.py", "", "LW003"),
        ("empty.yaml", "", "LW003"),
    ],
)
def test_a_hostile_file_ends_in_a_finding_or_in_none_and_soon(
    name: str, content: str | bytes, code: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    found = codes(path)
    assert time.process_time() - started < 3
    assert code is None or code in found
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("encoding", "cookie"), [("utf-16", ""), ("utf-8-sig", ""), ("latin-1", "# -*- coding: latin-1 -*-\n# \xe9\n")]
)
def test_other_encodings_are_read_where_they_say_what_they_are(encoding: str, cookie: str, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_bytes((cookie + TRL.replace("lora_alpha=32", "lora_alpha=3200").replace("\n", "\r\n")).encode(encoding))
    assert "LW103" in codes(path)


@pytest.mark.parametrize("name", ["a.yaml", "a.py", "a.jsonl", "a.ipynb", "adapter_config.json", "trainer_state.json"])
def test_a_line_of_a_gigabyte_takes_little_memory_and_time(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with path.open("wb") as handle:
        handle.write(b"base_model: ")
        handle.truncate(2**30)
    code = (
        "import resource, sys, time, lorawise\n"
        "from lorawise import check\n"
        "check('/dev/null')\n"
        "started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"found = check({str(path)!r}).findings\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert found and found[0].level == 'error', found\n"
        "assert grown < 300_000, grown\n"
        "assert time.process_time() - started < 20\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-600:]
    assert resource.getpagesize()


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "train.py").write_text(TRL.replace("lora_alpha=32", "lora_alpha=3200"), encoding="utf-8")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.py").symlink_to(outside / "train.py")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "nowhere.py").symlink_to(tmp_path / "gone")
    assert codes(inside) == ["LW003"]  # it holds no file


def test_pipes_and_missing_paths_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert codes(tmp_path / "pipe.yaml", tmp_path / "pipe.jsonl", tmp_path / "gone.yaml") == ["LW001"] * 3
    (tmp_path / "empty").mkdir()
    assert codes(tmp_path / "empty") == ["LW003"]


def test_patterns_that_backtrack_are_stopped(tmp_path: Path) -> None:
    files = adapter(rank_pattern={BACKTRACKS: 4}, alpha_pattern={BACKTRACKS: 4})
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    codes(tmp_path)
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    "fields",
    [
        [],
        "x",
        {"r": "x"},
        {"r": {}, "target_modules": 4},
        {"rank_pattern": [1]},
        {"r": 1e308},
        {"r": float("nan"), "lora_alpha": float("inf")},
        {"r": 10**400, "lora_alpha": 8},
        {"r": -8, "lora_alpha": 8, "use_rslora": True},
        {"lora_alpha": 8, "rank_pattern": {"q_proj": float("nan")}, "alpha_pattern": {"q_proj": float("inf")}},
    ],
)
def test_an_adapter_config_of_nonsense_is_told(fields: object, tmp_path: Path) -> None:
    files = adapter()
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    held = files["adapter/adapter_model.safetensors"]
    (tmp_path / "adapter_model.safetensors").write_bytes(held if isinstance(held, bytes) else b"")
    assert {"LW002", "LW608"} & set(codes(tmp_path))


def test_weights_whose_product_overflows_are_noise(tmp_path: Path) -> None:
    for name, content in adapter(pairs(change=lambda _, tensor: tensor * 1e30)).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "LW602" in codes(tmp_path)


def test_weights_without_their_config_are_told_and_with_it_are_an_adapter(tmp_path: Path) -> None:
    tensors = tmp_path / "adapter_model.safetensors"
    held = adapter()["adapter/adapter_model.safetensors"]
    tensors.write_bytes(held if isinstance(held, bytes) else b"")
    assert codes(tmp_path) == codes(tensors) == ["LW001"]
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "LW608" in codes(tensors)


def test_a_script_nested_too_deeply_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "deep.py").write_text("import peft\nx = " + "+".join(["1"] * 20_000), encoding="utf-8")
    (finding,) = check(tmp_path / "deep.py").findings
    assert finding.message == "nested too deeply to be read"


def test_an_adapter_config_says_which_number_is_none(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": "8"}', encoding="utf-8")
    told = [finding.message for finding in check(tmp_path).findings if finding.code == "LW608"]
    assert told == ["r is no number and lora_alpha is missing in adapter_config.json"]


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}', encoding="utf-8")
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert "LW607" in codes(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_only_a_part_of_many_rows_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorawise.checking.rows_seen.MAX_ROWS", 20)
    (tmp_path / "rows.jsonl").write_text(rows(40), encoding="utf-8")
    assert codes(tmp_path) == ["LW004"]


def test_a_thousand_files_take_under_five_seconds(tmp_path: Path) -> None:
    for i in range(500):
        (tmp_path / f"train{i}.py").write_text(TRL, encoding="utf-8")
        (tmp_path / f"axolotl{i}.yaml").write_text(AXOLOTL, encoding="utf-8")
    check(tmp_path / "train0.py", tmp_path / "axolotl0.yaml")
    started = time.process_time()
    report = check(tmp_path)
    assert time.process_time() - started < 5
    assert report.files == 1000
