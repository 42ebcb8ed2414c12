"""Devices by name and by amount; what cannot be meant is refused with the nearest."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from lorawise.base.errors import ConfigError
from lorawise.facts import DeviceFacts, find_device, machine
from lorawise.facts.device import GIB, MIB, device_names, devices


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("rtx-4090", "rtx-4090"),
        ("RTX 4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("rtx3090", "rtx-3090"),
        ("3060 Ti", "rtx-3060-ti"),
        ("A10G", "a10g"),
        ("Tesla T4", "t4"),
        ("a100", "a100-80"),
        ("A100 40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("a6000", "rtx-a6000"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("m3-max-64", "m3-max-64"),
        ("Apple M3 Max 64GB", "m3-max-64"),
        ("mi300x", "mi300x"),
    ],
)
def test_a_device_is_found_however_people_spell_it(said: str, name: str) -> None:
    assert find_device(said).name == name


@pytest.mark.parametrize(
    ("text", "amount"),
    [("24GiB", 24 * GIB), ("24GB", 24 * 10**9), ("24000MiB", 24000 * MIB), (" 7.5 gib ", 7.5 * GIB), ("1TB", 10**12)],
)
def test_an_amount_is_that_many_bytes(text: str, amount: int) -> None:
    device = find_device(text)
    assert device.memory == device.usable == amount
    assert device.bandwidth is None
    assert device.matmul == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rtx-4091", "did you mean 'rtx-4090'"),
        ("a100-90", "did you mean 'a100-[48]0'"),
        ("m3-max-65", "did you mean 'm3-max-"),
        ("-4GiB", "not the memory of a device"),
        ("0GiB", "not the memory of a device"),
        ("99999TiB", "not the memory of a device"),
        ("1.2.3GiB", "is no number"),
        ("24", "write 24GiB"),
        ("24G", "write 24GiB"),
        ("", "no device is called ''"),
        ("toaster", "give its memory, such as 24GiB"),
    ],
)
def test_what_is_no_device_is_refused_with_a_cure(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find_device(text)


@pytest.mark.parametrize("name", device_names())
def test_every_row_of_the_table_makes_sense(name: str) -> None:
    device = find_device(name)
    assert device.name == name
    assert device.source
    assert 0.7 * device.memory <= device.usable <= device.memory
    assert device.bandwidth is not None
    assert 50e9 < device.bandwidth < 10e12
    assert set(device.matmul) <= device.formats
    assert "float32" in device.formats
    half = device.matmul.get("float16")
    if half:
        assert 1.9 <= half / device.matmul["float32"] <= 35
        assert device.matmul.get("bfloat16", half) == half


def test_no_alias_belongs_to_two_devices() -> None:
    table = devices()
    assert all(table[device.name] is device for device in table.values())


def alone(monkeypatch: pytest.MonkeyPatch, *, path: str = "", nvml: ModuleType | None = None) -> None:
    """A machine without accelerators but those of `path` (an nvidia-smi) or `nvml`."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # None: as if not installed
    monkeypatch.setenv("PATH", path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_without_a_name_it_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    device = find_device(None)
    assert device.kind == "cpu"
    assert device.memory == psutil.virtual_memory().total
    assert 0 < device.usable <= device.memory


class FakeNVMLError(Exception):
    pass


def fake_nvml(name: str | bytes, *, fails: bool = False) -> ModuleType:
    """NVML's Python door as nvidia-ml-py has it, with one device of 40 GiB, 30 of them free."""
    module = ModuleType("pynvml")

    def init() -> None:
        if fails:
            raise FakeNVMLError("driver not loaded")

    module.__dict__.update(
        NVMLError=FakeNVMLError,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: name,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=40 * GIB, free=30 * GIB),
    )
    return module


@pytest.mark.parametrize(("shown", "name"), [("NVIDIA A100-SXM4-40GB", "a100-40"), (b"NVIDIA Z1", "NVIDIA Z1")])
def test_nvml_gives_the_memory_and_the_table_the_rest(
    shown: str | bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone(monkeypatch, nvml=fake_nvml(shown))
    device = find_device(None)
    assert (device.name, device.memory, device.usable) == (name, 40 * GIB, 30 * GIB)
    assert device.bandwidth == (1555e9 if name == "a100-40" else None)


def test_nvml_without_a_driver_is_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, nvml=fake_nvml("", fails=True))
    assert find_device(None).kind == "cpu"


@pytest.mark.parametrize(("hidden", "kind"), [("", "cpu"), ("-1", "cpu"), ("1,0", "cuda"), ("GPU-8f6c", "cuda")])
def test_devices_that_cuda_does_not_show_are_not_there(hidden: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, nvml=fake_nvml("NVIDIA L4"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert find_device(None).kind == kind


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("echo 'NVIDIA GeForce RTX 4090, 24564, 24000'", "rtx-4090"),
        ("echo 'NVIDIA Z1, the second, 24564, 24000'", "NVIDIA Z1, the second"),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9", "cpu"),
        ("echo 'No devices were found'", "cpu"),
        ("echo 'NVIDIA GB10, [N/A], [N/A]'", "cpu"),
    ],
)
def test_nvidia_smi_is_asked_where_nvml_has_no_package(
    script: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    alone(monkeypatch, path=str(tmp_path))
    device = find_device(None)
    assert device.name == name
    if name != "cpu":
        assert (device.memory, device.usable) == (24564 * MIB, 24000 * MIB)
        assert (device.bandwidth is not None) == (name == "rtx-4090")


def test_an_apple_chip_is_found_by_its_name_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    held = SimpleNamespace(total=64 * GIB, available=60 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: held)
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    answer = SimpleNamespace(stdout="Apple M3 Max\n")
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **kwargs: answer)
    device = find_device(None)
    assert (device.name, device.kind, device.usable) == ("m3-max-64", "mps", 48 * GIB)


def test_more_usable_than_there_is_is_refused() -> None:
    with pytest.raises(ConfigError):
        DeviceFacts(name="x", memory=1, usable=2, kind="cuda")


def test_whether_a_processor_multiplies_bfloat16_is_what_torch_says() -> None:
    import torch

    assert machine.multiplies_bfloat16() == torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("flags : fpu sse2 avx2 fma", False),
        ("flags : avx512f avx512bw avx512vl avx512dq avx2", True),
        ("Features : fp asimd evtstrm bf16", True),
        ("Features : fp asimd evtstrm", False),
        ("", False),
    ],
)
def test_it_is_read_from_what_the_kernel_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, fast: bool
) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor : 0\n{flags}\n", encoding="utf-8")
    monkeypatch.setattr(machine, "CPUINFO", told)
    assert machine.multiplies_bfloat16.__wrapped__() == fast
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "nowhere")
    assert not machine.multiplies_bfloat16.__wrapped__()
