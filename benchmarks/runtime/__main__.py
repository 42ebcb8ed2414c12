"""`python -m benchmarks.runtime`: swap, scale and stack of resident adapters at the shapes of 135M and 1B, beside PEFT.

Each arm runs in its own process. The median and the worst are of the call alone; `a token` is the processor time of the
forward of one token after it; `new memory` is what the act makes, with the most that a layer makes ready at once.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.keeping import keep, today, versions
from benchmarks.merge.model import SHAPES
from lorawise.report import words

THREADS = 1
ARMS = ("ours", "peft")
ACTS = ("base", "swap", "swap back", "scale", "stack")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.runtime", description=str(__doc__).splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--keep", action="store_true", help="write the result under benchmarks/results")
    asked = parser.parse_args()
    result: dict[str, Any] = {
        "date": today(),
        "machine": {"cores": os.cpu_count(), "threads": THREADS, "platform": platform.platform(), "device": "cpu"},
        "versions": versions("lorawise", "peft", "transformers", "torch"),
        "shapes": {shape: {arm: one(arm, shape) for arm in ARMS} for shape in asked.shapes},
    }
    show(result)
    if asked.keep:
        keep("runtime-cpu", result)


def one(arm: str, shape: str) -> dict[str, Any]:
    print(f"{shape}: {arm}", file=sys.stderr)
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-m", "benchmarks.runtime.arms", arm, shape]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def show(result: dict[str, Any]) -> None:
    for shape, arms in result["shapes"].items():
        adapter = words.size(arms["ours"]["adapter_bytes"])
        table = Table(title=f"{shape}: two adapters resident over bf16; one of r 16 has {adapter}")
        for heading in ("act", "arm", "median", "worst", "new memory", "a token", "against base"):
            table.add_column(heading, justify="left" if heading in ("act", "arm") else "right")
        for act in ACTS:
            for arm, report in arms.items():
                found, base = report[act], report["base"]["forward_seconds"]
                table.add_row(
                    act if arm == ARMS[0] else "",
                    arm,
                    f"{1e3 * found['seconds']:.3f} ms",
                    f"{1e3 * found['worst']:.3f} ms",
                    words.size(found["new_bytes"] + found["prepared_bytes"]),
                    f"{1e3 * found['forward_seconds']:.1f} ms",
                    f"{found['forward_seconds'] / base:.2f}×",
                )
        Console(width=max(100, Console().width)).print(table)
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    print(f"{result['date']}, {THREADS} threads on {platform.machine()}; {versions}")


if __name__ == "__main__":
    main()
