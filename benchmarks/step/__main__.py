"""`python -m benchmarks.step [CASE ...]`: every case this device can run, ours beside PEFT, each arm by itself.

What is kept beside the seconds: tokens a second (real tokens, no filler), peak memory allocated and reserved, losses,
gradient norms above zero, versions, device, and the limit: the step's operations over the matrix rate that this
device was measured to have, in the same type, a moment before.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks.keeping import keep, today, versions
from benchmarks.step.case import Case, cases
from lorawise.facts.read import read_model
from lorawise.facts.targets import trainable
from lorawise.lora.config import LoraConfig
from lorawise.planning.pace import Work

SIDE = {"cuda": 8192, "cpu": 2048}  # of the square product whose rate is the limit


def main() -> None:
    known = cases()
    parser = argparse.ArgumentParser(prog="benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(known))
    parser.add_argument("--keep", action="store_true", help="leave the result under benchmarks/results")
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for case in [known[name] for name in asked.cases] or [c for c in known.values() if c.needs in ("any", device)]:
        result = measured(case, device)
        show(result)
        if asked.keep:
            keep(f"step-{case.name}-{device}", result)


def measured(case: Case, device: str) -> dict[str, Any]:
    arms = [f"lorawise {mode}" for mode in case.memory] + ([] if case.dtype == "nf4" else ["peft", "peft again"])
    rate = matrix_rate(device, torch.bfloat16 if case.dtype == "nf4" else getattr(torch, case.dtype))
    model = read_model(case.model)
    config = LoraConfig(r=case.r, alpha=case.alpha, target_modules=case.target_modules)
    work = Work(model=model, trainable=trainable(model, config), length=case.tokens / len(case.lengths))
    share = case.layers / model.num_layers if case.layers else 1.0
    flops = work.flops * share * case.tokens
    done = {}
    for arm in arms:
        print(f"{case.name}: {arm}", file=sys.stderr)
        done[arm] = alone(case.name, arm)
        done[arm]["share_of_limit"] = flops / rate / done[arm]["seconds"]
    return {
        "case": vars(case),
        "arms": done,
        "flops": flops,
        "matrix_rate": rate,
        "limit_tokens_per_second": case.tokens * rate / flops,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": versions("lorawise", "torch", "transformers", "peft"),
        "date": today(),
    }


def alone(case: str, arm: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.step.arm", case, arm], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(f"{case}, {arm} failed:\n{run.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large square product: the best of several, as a limit should be."""
    side = SIDE[device]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def show(result: dict[str, Any]) -> None:
    print(f"{result['case']['title']}\n{result['device']}, {result['threads']} threads")
    print(f"{'':<22}{'tokens/s':>10}{'of limit':>10}{'memory':>10}{'loss':>9}")
    for arm, found in result["arms"].items():
        memory = found["allocated"] or found["resident"]
        print(
            f"{arm:<22}{found['tokens_per_second']:>10,.0f}{found['share_of_limit']:>10.1%}"
            f"{memory / 1e9:>7.2f} GB{found['losses'][-1]:>9.4f}"
        )
    print(f"{'the limit':<22}{result['limit_tokens_per_second']:>10,.0f}{1:>10.0%}")


if __name__ == "__main__":
    main()
