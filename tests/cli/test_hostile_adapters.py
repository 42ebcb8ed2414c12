"""Adapters are input from strangers: every command over every fault refuses, with a cure, or does no harm.

No traceback, no escape sequence obeyed, nothing written but where it was asked, and nothing half-written there.
"""

import hashlib
import json
import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.store.made_adapters import NAMES, draw, saved

from lorawise import LoraConfig
from lorawise.cli.app import run

Capture = pytest.CaptureFixture[str]
KEY = f"base_model.model.{NAMES[0]}.lora_A.weight"


def config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def config_bytes(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "adapter_config.json").write_bytes(data) and None


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        held = load_file(folder / "adapter_model.safetensors")
        change(held)
        save_file(held, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    return act


def header(change: Callable[[dict[str, Any]], object], *, spare: bytes = b"") -> Callable[[Path], None]:
    """The header of the tensors' file changed as it stands, without the format's own checks."""

    def act(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        raw = path.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        told = json.loads(raw[8 : 8 + length])
        new = change(told)
        text = new if isinstance(new, bytes) else json.dumps(told).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :] + spare)

    return act


def length(claimed: int) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        path.write_bytes(struct.pack("<Q", claimed) + path.read_bytes()[8:])

    return act


def sparse_header(folder: Path) -> None:
    """A header of 2 GB that takes no room on the disk."""
    with (folder / "adapter_model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", 2 * 10**9))
        out.truncate(2 * 10**9 + 100)


def linked(name: str, target: str) -> Callable[[Path], None]:
    """One file of the adapter is a link to a place outside of it, which holds what the adapter held."""

    def act(folder: Path) -> None:
        path = folder / name
        outside = Path(target) if target.startswith("/") else folder.parent / target
        if not target.startswith("/"):
            outside.write_bytes(path.read_bytes() if path.is_file() else b"secret")
        path.unlink(missing_ok=True)
        path.symlink_to(outside)

    return act


def piped(name: str) -> Callable[[Path], None]:
    """A pipe that nobody writes to: reading it would wait for ever."""

    def act(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return act


def a_folder(name: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return act


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-ran",)


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Evil()))


def provenance(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        told = json.loads((KEPT["legal"] / "provenance.json").read_text())
        change(told)
        (folder / "provenance.json").write_text(json.dumps(told))

    return act


KEPT: dict[str, Path] = {}
REFUSED: dict[str, Callable[[Path], None]] = {
    "r of a thousand million": config(r=10**9),
    "r of a thousand million in a pattern": config(rank_pattern={"q_proj": 10**9}),
    "alpha beyond float64": config(lora_alpha=10**400),
    "targets that fill memory": config(target_modules="(?:" * 40 + "a" + "{2})" * 40),
    "a config that is a list": config_bytes(b"[]"),
    "a config that is a number": config_bytes(b"7"),
    "a config that is null": config_bytes(b"null"),
    "a config that is empty": config_bytes(b""),
    "a config that is not UTF-8": config_bytes(b'{"r": 2, "base_model_name_or_path": "\xff\xfe"}'),
    "a config in UTF-16": config_bytes('{"r": 2}'.encode("utf-16")[:-1]),
    "a config with a key twice": config_bytes(b'{"peft_type": "LORA", "r": 2, "r": 4, "lora_alpha": 2}'),
    "a config nested a hundred thousand deep": config_bytes(b'{"r": ' + b"[" * 100_000),
    "a config of 17 MB": config_bytes(b" " * (17 * 2**20)),
    "a config that is a folder": a_folder("adapter_config.json"),
    "a config that is a pipe": piped("adapter_config.json"),
    "a config that is a link to what never ends": linked("adapter_config.json", "/dev/zero"),
    "a config that is a link out": linked("adapter_config.json", "outside.json"),
    "tensors that are a link out": linked("adapter_model.safetensors", "outside.safetensors"),
    "tensors that are a link to what never ends": linked("adapter_model.safetensors", "/dev/zero"),
    "tensors that are a pipe": piped("adapter_model.safetensors"),
    "tensors that are a folder": a_folder("adapter_model.safetensors"),
    "tensors that are a link to a pipe of the system": linked("adapter_model.safetensors", "/dev/stdin"),
    "provenance that is a link out": linked("provenance.json", "/etc/hostname"),
    "a base of half a character": config(base_model_name_or_path="x\ud800y"),
    "a key that climbs": tensors(lambda t: t.update({"base_model.model.../../x.lora_A.weight": torch.zeros(2, 6)})),
    "a key that is a path": tensors(lambda t: t.update({"/etc/x.lora_A.weight": torch.zeros(2, 6)})),
    "a key with an escape": tensors(lambda t: t.update({"base_model.model.\x1b[2J.lora_A.weight": torch.zeros(2, 2)})),
    "a key of half a character": header(lambda h: h.update({"base_model.model.\ud800.lora_A.weight": h[KEY]})),
    "a key that is empty": tensors(lambda t: t.update({"": torch.zeros(2)})),
    "A of another rank": tensors(lambda t: t.update({KEY: torch.zeros(3, 24)})),
    "A without columns": tensors(lambda t: t.update({KEY: torch.zeros(8, 0)})),
    "A of whole numbers": tensors(lambda t: t.update({KEY: torch.zeros(8, 24, dtype=torch.int32)})),
    "a shape larger than its bytes": header(lambda h: h[KEY].update(shape=[8, 10**9])),
    "a shape beyond 64 bits": header(lambda h: h[KEY].update(shape=[2**40, 2**40])),
    "a shape below zero": header(lambda h: h[KEY].update(shape=[-8, -24])),
    "a shape that is no number": header(lambda h: h[KEY].update(shape=[True, 24.0])),
    "a shape of a million axes": header(lambda h: h[KEY].update(shape=[1] * 1_000_000)),
    "offsets outside of the file": header(lambda h: h[KEY].update(data_offsets=[10**12, 10**12 + 8 * 24 * 4])),
    "offsets that run backwards": header(lambda h: h[KEY].update(data_offsets=[800, 32])),
    "tensors that share bytes": header(lambda h: h[KEY].update(data_offsets=[4, 4 + 8 * 24 * 4])),
    "a type nobody knows": header(lambda h: h[KEY].update(dtype="F999")),
    "bytes that no tensor has": header(lambda h: None, spare=b"\0" * 64),
    "a header that is a list": header(lambda h: b"[]"),
    "a header that is not UTF-8": header(lambda h: b'{"\xff": {}}'),
    "a header with a key twice": header(
        lambda h: (json.dumps(h)[:-1] + f", {json.dumps(KEY)}: {json.dumps(h[KEY])}}}").encode()
    ),
    "a header of 2^63 bytes": length(2**63),
    "a header of 99 MB that is not there": length(99_000_000),
    "a header of 2 GB": sparse_header,
    "a NaN": tensors(lambda t: t[KEY].fill_(float("nan"))),
    "an infinity": tensors(lambda t: t[KEY].view(-1)[3:4].fill_(float("-inf"))),
    "no tensors": tensors(lambda t: t.clear()),
    "a pickle that runs": pickled,
    "provenance of other tensors": provenance(lambda p: p["adapter"].update(digest="0" * 64)),
    "provenance with a parent that climbs": provenance(lambda p: p.update(parents=["../../etc"])),
    "provenance with r of a thousand million": provenance(lambda p: p["adapter"]["setting"].update(r=10**9)),
}
HARMLESS: dict[str, Callable[[Path], None]] = {
    "a base with an escape": config(base_model_name_or_path="../../../etc/passwd\n\x1b[31m"),
    "a base of a million letters": config(base_model_name_or_path="x" * 1_000_000),
    "a base that is a table": config(base_model_name_or_path={"a": 1}),
    "code beside the adapter": lambda folder: (folder / "sitecustomize.py").write_text("boom") and None,
    "a card that is a link out": linked("README.md", "secret.md"),
    "a card that is a link to what never ends": linked("README.md", "/dev/zero"),
    "provenance with escapes": provenance(lambda p: p.update(created="\x1b[2J", run={"operation": "\x1b[31m"})),
}

COMMANDS = [
    ["show", "bad"],
    ["show", "bad", "--html", "out/map.html"],
    ["diff", "bad", "good"],
    ["diff", "good", "bad"],
    ["rescale", "bad", "--by", "2", "-o", "out/rescaled"],
    ["resize", "bad", "--rank", "1", "-o", "out/resized"],
    ["resize", "bad", "--energy", "0.9", "--spread", "all", "-o", "out/energy"],
    ["combine", "bad=1", "-o", "out/alone"],
    ["combine", "good=1", "bad=-0.5", "-o", "out/combined"],
    ["combine", "good=1", "bad=1", "--method", "ties", "-o", "out/ties"],
    ["normalize", "bad", "-o", "out/normal"],
    ["normalize", "bad", "--from-pickle", "-o", "out/pickled"],
    ["add", "bad", "--name", "stranger"],
    ["list"],
    ["show", "@stranger"],
    ["tag", "stranger", "other"],
    ["rm", "stranger"],
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAWISE_STORE", str(tmp_path / "out" / "store"))
    (tmp_path / "out").mkdir()
    for name in ("good", "bad"):
        saved(tmp_path / name, draw(LoraConfig(r=8, scaling=2.0), NAMES, torch.float32, 0))
    KEPT["legal"] = tmp_path / "good"
    (tmp_path / "bad" / "provenance.json").unlink()
    return tmp_path


def everything(here: Path) -> dict[str, str]:
    """What lies outside `out`: each path and what it holds."""
    held = {}
    for path in sorted(here.rglob("*")):
        name = str(path.relative_to(here))
        if name.split("/")[0] != "out":
            plain = path.is_file() and not path.is_symlink() and path.stat().st_size < 10**8
            held[name] = hashlib.sha256(path.read_bytes()).hexdigest() if plain else "-"
    return held


def harm(told: str, capsys: Capture) -> None:
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert "Traceback" not in text, told
        assert "\x1b" not in text, told
        assert len(text) < 100_000, told


@pytest.mark.parametrize("fault", [*REFUSED])
def test_what_lies_is_refused_by_every_command_and_leaves_nothing(fault: str, here: Path, capsys: Capture) -> None:
    REFUSED[fault](here / "bad")
    before = everything(here)
    started = time.monotonic()
    for command in COMMANDS:
        code = run(["adapter", *command])
        told = f"{fault}: {' '.join(command)}"
        harm(told, capsys)
        assert code == (0 if command == ["list"] else 2), told
        assert everything(here) == before, told
        assert {path.name for path in (here / "out").iterdir()} <= {"store"}, told
        assert not any((here / "out").glob("store/objects/*")), told
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("fault", [*HARMLESS])
def test_what_is_odd_does_no_harm(fault: str, here: Path, capsys: Capture) -> None:
    HARMLESS[fault](here / "bad")
    before = everything(here)
    for command in COMMANDS:
        code = run(["adapter", *command])
        told = f"{fault}: {' '.join(command)}"
        harm(told, capsys)
        wanted = 2 if "--from-pickle" in command else 0
        if "card" in fault and (command[0] in ("add", "tag", "rm") or "@stranger" in command):
            wanted = 2  # a copy of what the link leads to would be kept: refused
        assert code == wanted, told
        assert everything(here) == before, told
    left = [path for path in (here / "out").rglob("*") if path.is_file()]
    assert not any(b"secret" in path.read_bytes() for path in left)
    assert not any(path.is_symlink() for path in (here / "out").rglob("*"))
    assert "sitecustomize.py" not in {path.name for path in left}
