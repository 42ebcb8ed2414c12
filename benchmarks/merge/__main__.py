"""`python -m benchmarks.merge`: our merge on disk beside PEFT's, on a model of 1.2B random bf16 parameters in shards.

Each arm runs in its own process, in turn, in rounds. Peak memory is the process's largest resident size. The error of
every adapted weight is ‖W' − (W + s·B·A)‖ / ‖s·B·A‖ in float64.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.keeping import keep, today, versions
from benchmarks.merge.model import PREFIX, SHAPES, Shape, write_adapter, write_model
from lorawise.base.safetensors import SafetensorsFile
from lorawise.report import words

THREADS = 1  # of both, on one core: on a machine that others use too, threads that wait for one another tell nothing
SAMPLED = 4  # every so many layers, whose errors are measured
ARMS = ("ours", "peft")
ALLOWED = 1.15  # of the largest shard, beside the interpreter


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.merge", description=str(__doc__).splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="1B")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="write the result under benchmarks/results")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorawise-bench-") as scratch:
        result = measured(SHAPES[asked.shape], asked.repeats, Path(scratch))
    show(result)
    if asked.keep:
        keep("merge-cpu", result)


def measured(shape: Shape, repeats: int, scratch: Path) -> dict[str, Any]:
    base, adapter = scratch / "base", scratch / "adapter"
    print(f"writing a model of the shape {shape.name}", file=sys.stderr)
    largest = write_model(base, shape)
    write_adapter(adapter, shape)
    rounds: list[dict[str, Any]] = []
    errors: dict[str, dict[str, float]] = {}
    for number in range(repeats):
        done = {}
        for arm in ARMS if number % 2 == 0 else ARMS[::-1]:
            print(f"round {number + 1}/{repeats}: {arm}", file=sys.stderr)
            done[arm] = one(arm, base, adapter, scratch / "out", shape)
            if number == 0:
                errors[arm] = errors_of(base, adapter, scratch / "out", shape)
            remove(scratch / "out")
        rounds.append(done)
    return {
        "shape": shape.name,
        "parameters": sum(
            tensor.size for path in base.glob("*.safetensors") for tensor in SafetensorsFile.open(path).tensors.values()
        ),
        "shards": len(list(base.glob("*.safetensors"))),
        "largest_shard": largest,
        "interpreter_memory": one("interpreter", base, adapter, scratch / "out", shape)["peak_memory"],
        "rounds": rounds,
        "errors": errors,
        "machine": {"cores": os.cpu_count(), "threads": THREADS, "platform": platform.platform(), "device": "cpu"},
        "versions": versions("lorawise", "peft", "transformers", "torch", "numpy"),
        "date": today(),
    }


def one(arm: str, base: Path, adapter: Path, out: Path, shape: Shape) -> dict[str, Any]:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(THREADS),
        "OPENBLAS_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "benchmarks.merge.arms", arm, str(base), str(adapter), str(out), str(shape.shard)]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report | {"wall_seconds": wall}


def errors_of(base: Path, adapter: Path, out: Path, shape: Shape) -> dict[str, float]:
    """Module → the relative error of what was added, in every SAMPLED-th layer."""
    held = SafetensorsFile.open(adapter / "adapter_model.safetensors")
    before, after = (
        {name: file for path in folder.glob("*.safetensors") for file in [SafetensorsFile.open(path)] for name in file}
        for folder in (base, out)
    )
    errors = {}
    for module, _, _ in shape.linears():
        if int(module.split(".")[2]) % SAMPLED:
            continue
        a, b = (held.read(f"{PREFIX}{module}.lora_{half}.weight").astype(np.float64) for half in "AB")
        delta = 2.0 * (b @ a)
        key = f"{module}.weight"
        got = after[key].read(key).astype(np.float64) - before[key].read(key)
        errors[module] = float(np.linalg.norm(got - delta) / np.linalg.norm(delta))
    return errors


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def show(result: dict[str, Any]) -> None:
    rounds, interpreter, largest = result["rounds"], result["interpreter_memory"], result["largest_shard"]
    table = Table(title=f"{result['parameters']:,} parameters in {result['shards']} shards, bf16")
    headings = (
        "arm",
        "wall",
        "ours is",
        "in the call",
        "processor",
        "ours is",
        "peak",
        "less interpreter",
        "error",
        "worst",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm in ARMS:
        median = {key: statistics.median(done[arm][key] for done in rounds) for key in rounds[0][arm]}
        ratios = [done[arm]["wall_seconds"] / done["ours"]["wall_seconds"] for done in rounds]
        found = list(result["errors"][arm].values())
        table.add_row(
            arm,
            f"{median['wall_seconds']:.1f} s",
            "" if arm == "ours" else " ".join(f"{ratio:.2f}×" for ratio in ratios),
            f"{median['seconds']:.1f} s",
            f"{median['cpu_seconds']:.1f} s",
            ""
            if arm == "ours"
            else " ".join(f"{d[arm]['cpu_seconds'] / d['ours']['cpu_seconds']:.2f}×" for d in rounds),
            words.size(median["peak_memory"]),
            words.size(median["peak_memory"] - interpreter),
            f"{statistics.mean(found):.3%}",
            f"{max(found):.3%}",
        )
    Console(width=max(120, Console().width)).print(table)
    closer = sum(result["errors"]["ours"][name] <= error for name, error in result["errors"]["peft"].items())
    print(f"ours is as near to float64 or nearer in {closer} of {len(result['errors']['peft'])} weights")
    print(
        f"largest shard {words.size(largest)}, with 15 % {words.size(ALLOWED * largest)}; interpreter and imports "
        f"{words.size(interpreter)}"
    )
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    print(f"{result['date']}, {THREADS} threads on {platform.machine()}; {versions}")


if __name__ == "__main__":
    main()
