"""adapter_model.bin is refused unless asked for, and then no code of it runs."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.store.made_adapters import NAMES, draw, saved

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError
from lorawise.store import read_adapter
from lorawise.store.pickled import open_pickled


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path / "a", draw(LoraConfig(r=2), NAMES[:2], torch.bfloat16, 0))
    path = tmp_path / "a" / "adapter_model.safetensors"
    torch.save(load_file(path), tmp_path / "a" / "adapter_model.bin")
    path.unlink()
    return tmp_path / "a"


def test_a_pickle_is_read_only_when_asked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="--from-pickle"):
        read_adapter(folder)
    other = saved(tmp_path / "b", draw(LoraConfig(r=2), NAMES[:2], torch.bfloat16, 0))
    assert open_pickled(folder).digest == other.digest


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-ran",)


@pytest.mark.parametrize("what", [Evil(), {"a": Evil()}, [1], {"x": 3}, {3: torch.zeros(1)}, {"a": torch.zeros(1)}])
def test_nothing_in_a_pickle_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: object) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(what, folder / "adapter_model.bin")
    with pytest.raises(AdapterError):
        open_pickled(folder)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(what if not isinstance(what, dict) else Evil()))
    with pytest.raises(AdapterError):
        open_pickled(folder)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x04.", b"garbage"])
def test_a_torn_pickle_is_an_adapter_error(folder: Path, data: bytes) -> None:
    (folder / "adapter_model.bin").write_bytes(data)
    with pytest.raises(AdapterError):
        open_pickled(folder)
