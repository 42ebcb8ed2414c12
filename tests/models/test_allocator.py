"""A process that keeps its freed memory does not take the same pages from the kernel a second time."""

import subprocess
import sys

import pytest

PROBE = """
import resource, torch
from lorawise.models.allocator import keep_freed_memory
torch.set_num_threads(1)
if {keep} and not keep_freed_memory():
    print("no glibc")
    raise SystemExit
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.empty(2**24, dtype=torch.int32).fill_(1) for _ in range(2)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults_of_the_second_time(*, keep: bool) -> int:
    ran = subprocess.run([sys.executable, "-c", PROBE.format(keep=keep)], capture_output=True, text=True, check=True)
    if "no glibc" in ran.stdout:
        pytest.skip("the allocator is not glibc's")
    return int(ran.stdout)


def test_freed_memory_is_there_the_second_time() -> None:
    assert faults_of_the_second_time(keep=True) * 20 < faults_of_the_second_time(keep=False)
