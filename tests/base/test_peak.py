"""The most memory a process held."""

import subprocess
import sys

import numpy as np

from lorawise.base.peak import peak_memory


def test_what_was_held_and_given_back_stays_counted() -> None:
    before = peak_memory()
    held = np.ones(before // 8 + 8_000_000)
    del held
    assert peak_memory() >= before + 60_000_000


def test_a_child_does_not_begin_at_its_parents_peak() -> None:
    held = np.ones(25_000_000)  # 200 MB
    told = subprocess.run(
        [sys.executable, "-c", "from lorawise.base.peak import peak_memory; print(peak_memory())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert held.nbytes > int(told.stdout)
