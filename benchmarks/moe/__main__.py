"""`python -m benchmarks.moe`: adapters on fused experts, ours beside PEFT's `target_parameters`, step by step.

A random Qwen3-MoE of a few shapes on a CPU in fp32: attention and both projections of every expert adapted, the same
adapter file, the same tokens, AdamW of torch in both. Each arm runs in its own process on one thread, in turn; times
are the processor's, not the clock's, so that other work on the machine moves them little, and ratios are taken within a
round. Kept is what autograd holds between forward and backward, the model's own parameters left out. An arm that does
not train, or whose losses are not the other's, is refused.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.keeping import keep, today, versions

ARMS = ("lorawise", "peft")
SAME_LOSS = 1e-3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Qwen3-MoE: `inner` of one expert, `chosen` experts a token; `rows` × `length` tokens a step."""

    name: str
    hidden: int
    inner: int
    experts: int
    chosen: int
    layers: int
    rows: int
    length: int
    r: int = 8
    steps: int = 4


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="small", hidden=256, inner=96, experts=32, chosen=4, layers=2, rows=2, length=128),
        # Qwen3-30B-A3B with a quarter of its widths and 2 of its 48 layers. The more tokens, the more of a step is the
        # base's own product, which both arms share.
        Shape(name="quarter", hidden=512, inner=192, experts=128, chosen=8, layers=2, rows=1, length=256),
        Shape(name="quarter-long", hidden=512, inner=192, experts=128, chosen=8, layers=2, rows=2, length=512),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.moe", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    for shape in SHAPES.values() if asked.shape == "all" else [SHAPES[asked.shape]]:
        with tempfile.TemporaryDirectory(prefix="lorawise-moe-") as scratch:
            result = run_shape(shape, asked.rounds, Path(scratch))
        show(result)
        keep(f"moe-{result['shape']['name']}-cpu", result)


def run_shape(shape: Shape, rounds: int, scratch: Path) -> dict[str, Any]:
    found = []
    for number in range(rounds):
        done = {}
        for arm in ARMS:
            print(f"{shape.name} round {number + 1}/{rounds}: {arm}", file=sys.stderr)
            done[arm] = measured(shape, arm, scratch)
        away = max(abs(one - other) for one, other in zip(*(done[arm]["losses"] for arm in ARMS), strict=True))
        if away > SAME_LOSS:
            raise SystemExit(f"the arms do not train the same: their losses are {away:g} apart")
        found.append(done)
    return {
        "shape": asdict(shape),
        "rounds": found,
        "machine": {"cores": os.cpu_count(), "threads": 1, "processor": platform.processor() or platform.machine()},
        "versions": versions("lorawise", "torch", "transformers", "peft"),
        "date": today(),
    }


def measured(shape: Shape, arm: str, scratch: Path) -> dict[str, Any]:
    """One arm in a process of its own; ours goes first and leaves the adapter that PEFT starts from."""
    report = scratch / "report.json"
    job = scratch / "job.json"
    job.write_text(
        json.dumps({"shape": asdict(shape), "arm": arm, "adapter": str(scratch / "start"), "report": str(report)})
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.moe.arm", str(job)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise SystemExit(f"{arm} failed:\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}")
    done: dict[str, Any] = json.loads(report.read_text())
    if not min(done["gradient_norms"]) > 0 or not done["losses"][-1] < done["losses"][0]:
        raise SystemExit(f"{arm} did not train: {done['gradient_norms']}, losses {done['losses']}")
    return done


def show(result: dict[str, Any]) -> None:
    shape, rounds = result["shape"], result["rounds"]
    title = f"{shape['name']}: hidden {shape['hidden']}, {shape['experts']} experts of {shape['inner']}, r {shape['r']}"
    table = Table(title=f"{title}, {shape['rows'] * shape['length']} tokens")
    for heading in ("arm", "step", "ours is", "kept", "of theirs", "peak over the model", "last loss"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm in ARMS:
        faster = less = ""
        if arm != "lorawise":
            ratios = [
                statistics.median(d[arm]["seconds"]) / statistics.median(d["lorawise"]["seconds"]) for d in rounds
            ]
            faster = f"{statistics.median(ratios):.2f}× faster"
            less = f"{statistics.median(d['lorawise']['kept'] / d[arm]['kept'] for d in rounds):.2f}×"
        table.add_row(
            arm,
            f"{statistics.median(s for d in rounds for s in d[arm]['seconds']):.3f} s",
            faster,
            f"{statistics.median(d[arm]['kept'] for d in rounds) / 1e6:.0f} MB",
            less,
            f"{statistics.median(d[arm]['peak'] for d in rounds) / 1e6:.0f} MB",
            f"{rounds[-1][arm]['losses'][-1]:.4f}",
        )
    Console().print(table)
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    Console().print(f"fp32, one thread on {result['machine']['processor']}, processor time; {versions}")


if __name__ == "__main__":
    main()
