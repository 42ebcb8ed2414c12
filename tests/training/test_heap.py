"""Memory that is freed stays with the process, so a step does not fault its pages in again."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from lorawise.training.heap import keep_freed_memory
assert keep_freed_memory()
def step():
    kept = [torch.ones(size) for size in (1_500_000, 5_000_000, 10_000_000, 300_000) for _ in range(3)]
    [torch.ones(each.shape) for each in kept]
for _ in range(5):
    step()
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_pages_are_used_again() -> None:
    kept = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True).stdout
    given_back = subprocess.run(
        [sys.executable, "-c", STEPS.replace("assert keep_freed_memory()", "")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(kept) < int(given_back) / 10


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorawise.training import heap

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not heap.keep_freed_memory()
