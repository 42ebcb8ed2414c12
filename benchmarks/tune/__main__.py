"""`python -m benchmarks.tune`: sixteen settings by halving beside one whole run and the whole grid, seed by seed.

    times one run   time of the study / time of one whole run: same trainer, schedule and rows, evaluation counted
    gap             loss of the study's winner / loss of the grid's winner − 1, on the same validation rows

Wall and processor time are both kept: what ran beside on the machine moves the first and hardly the second. `--peer`
times Optuna with PEFT and transformers' Trainer, a few settings one at a time, and says what sixteen would take.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.keeping import keep, today, versions
from benchmarks.tune.arms import by_halving, one_run, whole_grid
from benchmarks.tune.job import OVER, Job, write_job


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--tokens", type=int, default=256, help="a step, at most")
    parser.add_argument("--validation-rows", type=int, default=16)
    parser.add_argument("--without-grid", action="store_true", help="times alone, not whether the winner is right")
    parser.add_argument("--peer", type=int, default=0, metavar="N", help="settings that the peer tries")
    parser.add_argument("--keep", default="tune-cpu", metavar="NAME", help="of the file of results")
    asked = parser.parse_args()
    job = Job(layers=asked.layers, steps=asked.steps, tokens=asked.tokens, validation_rows=asked.validation_rows)
    result: dict[str, Any] = {"job": asdict(job) | {"over": OVER}, "seeds": []}
    with tempfile.TemporaryDirectory(prefix="lorawise-bench-") as scratch:
        model = write_job(job, Path(scratch))
        for seed in asked.seeds:
            result["seeds"].append(measure(job, model, Path(scratch), seed, grid=not asked.without_grid))
            show(result)
            keep_study(result, asked.keep)
        if asked.peer:
            result["peer"] = peer(job, model, Path(scratch), asked.peer)
            show(result)
            keep_study(result, asked.keep)


def measure(job: Job, model: Path, folder: Path, seed: int, *, grid: bool) -> dict[str, Any]:
    run = job.run(model, folder, seed)
    print(f"seed {seed}: one run", file=sys.stderr)
    alone = one_run(run)
    print(f"seed {seed}: by halving", file=sys.stderr)
    study, winner, loss, rungs = by_halving(run, folder / f"study-{seed}")
    measured = {
        "seed": seed,
        "rungs": rungs,
        "one_run": asdict(alone),
        "study": asdict(study),
        "times_one_run": study.seconds / alone.seconds,
        "times_one_run_processor": study.processor_seconds / alone.processor_seconds,
        "winner": winner,
        "loss": loss,
    }
    if grid:
        print(f"seed {seed}: the whole grid", file=sys.stderr)
        losses = whole_grid(run)
        best = min(losses, key=losses.__getitem__)
        measured |= {"grid": losses, "grid_winner": best, "gap": loss / losses[best] - 1}
    return measured


def peer(job: Job, model: Path, folder: Path, settings: int) -> dict[str, Any]:
    """In its own process, so that nothing of ours is loaded."""
    asked = {
        "model": str(model),
        "rows": str(folder / "train.jsonl"),
        "validation": str(folder / "validation.jsonl"),
        "settings": settings,
        "steps": max(job.steps // 8, 1),
        "tokens": job.tokens,
        "report": str(folder / "peer.json"),
        "threads": torch.get_num_threads(),
    }
    (folder / "peer-job.json").write_text(json.dumps(asked), encoding="utf-8")
    print(f"{settings} settings by Optuna, PEFT and Trainer", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "benchmarks.tune.peer", str(folder / "peer-job.json")], check=True)
    found: dict[str, Any] = json.loads((folder / "peer.json").read_text(encoding="utf-8"))
    each = found["seconds_a_step"] * job.steps + found["seconds_beside_steps"]
    return found | {"extrapolated_seconds_of_16_whole_runs": 16 * each, "extrapolated_seconds_of_one": each}


def show(result: dict[str, Any]) -> None:
    job = result["job"]
    table = Table(
        title=f"16 settings, {job['steps']} steps of {job['tokens']} tokens, {job['layers']} layers of SmolLM2"
    )
    for heading in ("seed", "one run", "study", "times one run", "processor", "loss", "grid's best", "gap"):
        table.add_column(heading, justify="right")
    for each in result["seeds"]:
        grid = each.get("grid")
        table.add_row(
            str(each["seed"]),
            f"{each['one_run']['seconds']:.0f} s",
            f"{each['study']['seconds']:.0f} s",
            f"{each['times_one_run']:.2f}",
            f"{each['times_one_run_processor']:.2f}",
            f"{each['loss']:.4f}",
            f"{grid[each['grid_winner']]:.4f}" if grid else "",
            f"{each['gap']:+.2%}" if grid else "",
        )
    Console(width=100).print(table)
    for each in result["seeds"]:
        told = f"; the grid's: {each['grid_winner']}" if "grid_winner" in each else ""
        Console().print(f"seed {each['seed']}: {each['winner']}{told}", highlight=False)
    if "peer" in result:
        found = result["peer"]
        print(
            f"Optuna, PEFT and Trainer, from {found['settings']} settings of {found['steps']} steps: one run would "
            f"take {found['extrapolated_seconds_of_one']:.0f} s, sixteen "
            f"{found['extrapolated_seconds_of_16_whole_runs']:.0f} s"
        )


def keep_study(result: dict[str, Any], name: str) -> None:
    document = {
        "date": today(),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "versions": versions("lorawise", "torch", "transformers", "optuna", "peft"),
    }
    keep(name, document | result)


if __name__ == "__main__":
    main()
