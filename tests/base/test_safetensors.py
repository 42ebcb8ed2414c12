"""safetensors read without torch equal the safetensors package's; files that lie are refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lorawise.base.errors import TensorFileError
from lorawise.base.safetensors import SafetensorsFile
from lorawise.base.tensors import round_bf16, widen_bf16

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_reads_as_it_was_written(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = (torch.randn(3, 5) * 4).to(dtype)
    save_file({"a": tensor, "empty": torch.empty(0, 4)}, tmp_path / "f.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile.open(tmp_path / "f.safetensors")
    read = file.read("a")
    wanted = tensor.float() if dtype == torch.bfloat16 else tensor
    assert read.dtype == wanted.numpy().dtype
    assert np.array_equal(read, wanted.numpy())
    assert file.read("empty").shape == (0, 4)
    assert file.metadata == {"format": "pt"}
    assert file.tensors["a"].size == 15


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_rounding_to_bf16_is_torchs(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    wanted = torch.from_numpy(array.copy()).to(torch.bfloat16)
    assert np.array_equal(widen_bf16(round_bf16(array)), wanted.float().numpy(), equal_nan=True)


def _write(path: Path, header: object, data: bytes = b"") -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        ([], b"", "not a JSON object"),
        ({"a": 3}, b"", "not a dtype"),
        ({"a": {**F32, "shape": [2**40]}}, bytes(8), "says otherwise"),
        ({"a": {**F32, "shape": [-2]}}, bytes(8), "shape"),
        ({"a": {**F32, "data_offsets": [-8, 0]}}, bytes(8), "says otherwise|bytes"),
        ({"a": {**F32, "dtype": "pickle"}}, bytes(8), "does not know"),
        ({"a": F32}, bytes(4), "bytes"),
        ({"a": F32}, bytes(12), "bytes"),
        ({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12), "overlap"),
        ({"a": F32, "b": {**F32, "data_offsets": [16, 24]}}, bytes(24), "belong to no tensor"),
        ({"a": {**F32, "data_offsets": [8, 16]}}, bytes(16), "belong to no tensor"),
    ],
)
def test_a_header_that_lies_is_refused(header: object, data: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(TensorFileError, match=why):
        SafetensorsFile.open(_write(tmp_path / "f.safetensors", header, data))


def test_a_name_said_twice_is_refused(tmp_path: Path) -> None:
    """Readers differ on which of the two they believe."""
    entry = json.dumps(F32)
    raw = f'{{"a": {entry}, "a": {entry}}}'.encode()
    (tmp_path / "f.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    with pytest.raises(TensorFileError, match="twice"):
        SafetensorsFile.open(tmp_path / "f.safetensors")


def test_a_shape_of_a_million_axes_is_told_in_a_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "f.safetensors", {"a" * 10**6: {**F32, "shape": [2] * 10**6}}, bytes(8))
    with pytest.raises(TensorFileError) as caught:
        SafetensorsFile.open(path)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("raw", [b"", b"\1", (2**62).to_bytes(8, "little"), (4).to_bytes(8, "little") + b"nope"])
def test_a_file_that_is_none_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.safetensors").write_bytes(raw)
    with pytest.raises(TensorFileError, match="torn"):
        SafetensorsFile.open(tmp_path / "f.safetensors")


def test_nothing_of_torch_is_needed() -> None:
    code = "import sys, lorawise.base.safetensors; assert not {'torch', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
