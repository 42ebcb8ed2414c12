"""Adapters as files hold them, without torch: to torch and back to the bit, read when asked, safe to map."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests.store.samples import EMBED, Q, V, assert_identical, sample_weights

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError
from lorawise.base.safetensors_write import write_safetensors
from lorawise.base.tensors import StoredTensor
from lorawise.store import adapter_digest, load_adapter, read_adapter, save_adapter, stored_digest, write_adapter
from lorawise.store.torch_form import from_torch, to_torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_to_file_and_back_is_the_identity(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = sample_weights(LoraConfig(r=3), (Q, V, EMBED), dtype=dtype)
    assert_identical(to_torch(from_torch(weights)), weights)
    save_adapter(tmp_path / "torch", weights, base="b")
    stored = read_adapter(tmp_path / "torch")
    write_adapter(tmp_path / "numpy", stored, base="b")
    assert_identical(load_adapter(tmp_path / "numpy"), weights)
    assert stored_digest(stored) == adapter_digest(weights)


def test_the_digest_is_what_it_was_for_adapters_already_trained() -> None:
    layers = {"a.q": (torch.arange(6.0).reshape(1, 6), torch.ones(2, 1, dtype=torch.bfloat16))}
    weights = from_torch(sample_weights(LoraConfig(r=1, alpha=2), (), layers=layers))
    assert stored_digest(weights) == "215d47464b4eb22570b468e6221843d73afc539d20520cc188ea13af22ec4e6f"


def test_files_alone_need_no_torch(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", sample_weights(LoraConfig(r=2), dtype=torch.bfloat16), base="b")
    code = (
        "import sys; from pathlib import Path\n"
        "from lorawise.store import read_adapter, read_history, write_adapter\n"
        "stored = read_adapter(Path('a')); assert read_history(Path('a'), stored)\n"
        "write_adapter(Path('b'), stored, base='b')\n"
        "loaded = {'torch', 'transformers', 'safetensors'} & set(sys.modules); assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path)
    assert_identical(load_adapter(tmp_path / "b"), load_adapter(tmp_path / "a"))


def test_tensors_are_read_when_asked_and_nan_is_met_there(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", sample_weights(LoraConfig(r=2)), base="b")
    path = tmp_path / "a" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = np.array([np.nan], dtype="<f4").tobytes()
    path.write_bytes(bytes(data))
    stored = read_adapter(tmp_path / "a")
    assert stored.layers[Q][0].bits().shape == (2, 6)
    with pytest.raises(AdapterError, match="NaN"):
        stored.layers[V][1].bits()
    with pytest.raises(AdapterError, match="NaN"):
        write_adapter(tmp_path / "b", stored, base="b")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_file_of_mixed_types_can_be_mapped_by_the_formats_own_reader(tmp_path: Path) -> None:
    wanted = {
        "odd": torch.randn(3).to(torch.bfloat16),
        "byte": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "none": torch.empty(0, 4),
        "wide": torch.randn(2, 3, dtype=torch.float64),
        "é": torch.randn(5),
    }
    names = {torch.bfloat16: "BF16", torch.uint8: "U8", torch.float32: "F32", torch.float64: "F64"}
    tensors = {
        name: StoredTensor(
            dtype=names[t.dtype],
            shape=tuple(t.shape),
            bits=lambda t=t: (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy(),  # type: ignore[misc]
        )
        for name, t in wanted.items()
    }
    write_safetensors(tmp_path / "f.safetensors", tensors, metadata={"format": "pt"})
    with safe_open(str(tmp_path / "f.safetensors"), "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(wanted)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in wanted.items())
