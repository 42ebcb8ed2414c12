"""What this machine has: the first accelerator that NVML, nvidia-smi or macOS shows, and the processor's memory.

NVML is asked through the package nvidia-ml-py where it is installed, else through the driver's own nvidia-smi.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MIB, GIB = 2**20, 2**30
CPUINFO = Path("/proc/cpuinfo")
# Instructions with which oneDNN multiplies bfloat16 rather than emulating it; any of the sets will do.
_BFLOAT16 = (
    frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"}),
    frozenset({"avx_ne_convert", "avx_vnni_int8"}),
    frozenset({"bf16", "asimd"}),
)
PATIENCE = 10.0  # seconds for nvidia-smi; it takes one or two where the driver has to wake up


@dataclass(frozen=True, kw_only=True)
class Present:
    """A device of this machine: what it calls itself, its bytes, those free now, and who said so."""

    name: str
    memory: int
    free: int
    source: str


def accelerator() -> Present | None:
    """The first accelerator that programs of this process may use; None when there is none."""
    index = _first_visible()
    if index is not None:
        for ask in (_by_nvml, _by_nvidia_smi):
            if found := ask(index):
                return found
    return next(_apple(), None)


def memory() -> Present:
    """The processor's memory, and what of it is available."""
    import psutil

    found = psutil.virtual_memory()
    return Present(name="cpu", memory=found.total, free=min(found.available, found.total), source="this machine")


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16; False where it cannot be told, since float32 takes more memory."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    line = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    flags = frozenset(line.partition(":")[2].lower().split())
    return any(wanted <= flags for wanted in _BFLOAT16)


def _first_visible() -> int | None:
    """The index of the first device that CUDA_VISIBLE_DEVICES leaves; None when it hides all. Names count as first."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return 0
    first = said.partition(",")[0].strip()
    if first in ("", "-1", "NoDevFiles"):
        return None
    return int(first) if first.isdecimal() else 0


def _by_nvml(index: int) -> Present | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name, held = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
    shown = name.decode() if isinstance(name, bytes) else str(name)
    return Present(name=shown, memory=int(held.total), free=int(held.free), source="NVML")


def _by_nvidia_smi(index: int) -> Present | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits", f"--id={index}"]
    try:
        run = subprocess.run([program, *query], capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    parts = [part.strip() for part in run.stdout.strip().partition("\n")[0].rsplit(",", 2)]
    if run.returncode or len(parts) != 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        return None
    return Present(name=parts[0], memory=int(parts[1]) * MIB, free=int(parts[2]) * MIB, source="nvidia-smi")


def _apple() -> Iterator[Present]:
    """An Apple chip, as 'Apple M3 Max 64GB': its GPU shares the one memory."""
    if sys.platform != "darwin" or platform.machine() != "arm64":
        return
    try:
        run = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    held = memory()
    chip = run.stdout.strip() or "Apple"
    yield Present(name=f"{chip} {round(held.memory / GIB)}GB", memory=held.memory, free=held.free, source="macOS")
