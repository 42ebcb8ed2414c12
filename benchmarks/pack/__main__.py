"""`python -m benchmarks.pack`: the time of one step against the number of settings side by side, and where it bends.

    step(n)   n adapters over one base, each on the same `tokens`: forward, backward, clip, AdamW
    gain(n)   n · step(1) / step(n): one after the other over side by side
    knee      the fewest settings whose time a setting is within 5 % of the best: more of them buy nothing

Beside it one eager step of PEFT on the same tokens. Base of random weights in bf16, r 16 on all linear layers. Every n
is timed in turn, round after round, so a machine whose speed drifts moves all of them. On an accelerator:

    python -m benchmarks.pack --device cuda --shapes 1b 4b 8b
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.keeping import keep, today, versions
from benchmarks.pack.shapes import ACCELERATOR, CPU, SHAPES, Shape
from lorawise import LoraConfig
from lorawise.data.batches import MicroBatch
from lorawise.lora import inject
from lorawise.lora.injection import eject
from lorawise.models.batch import ModelBatch, to_model_batch
from lorawise.models.forward import causal_loss
from lorawise.models.packing import packing_support
from lorawise.planning.knee import knee
from lorawise.training.heap import keep_freed_memory
from lorawise.training.loop import trained_parameters
from lorawise.training.optimizer import BankAdamW, SlotSettings

COUNTS = (1, 2, 4, 8, 16)
WITHIN = 1.05  # of the best time a setting


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.pack", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=None)
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed a round and n, after one that warms up")
    asked = parser.parse_args()
    if asked.device == "cpu":
        keep_freed_memory()
    results = []
    for name in asked.shapes or (CPU if asked.device == "cpu" else ACCELERATOR):
        results.append(measure(SHAPES[name], asked.device, asked.counts, asked.rounds, asked.steps))
        show(results[-1])
    keep_all(results, asked.device)


def measure(shape: Shape, device: str, counts: list[int], rounds: int, steps: int) -> dict[str, Any]:
    model = shape.model(device)
    if packing_support(model) != "packed":
        raise SystemExit(f"{shape.name} cannot be packed")
    batch = rows_of(shape, device)
    times: dict[str, list[float]] = {str(n): [] for n in counts}
    for number in range(rounds):
        for n in counts:
            print(f"{shape.name} round {number + 1}/{rounds}: n = {n}", file=sys.stderr)
            times[str(n)] += timed(bank_step(model, batch, n), steps, device)
            eject(model)
    peer = times_of_peft(shape, batch, device, rounds * steps)
    medians = {n: statistics.median(each) for n, each in times.items()}
    a_setting = {int(n): seconds / int(n) for n, seconds in medians.items()}
    return {
        "shape": shape.name,
        "tokens": shape.tokens,
        "document": shape.document,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "seconds": times,
        "median_seconds": medians,
        "knee": min(n for n, each in a_setting.items() if each <= WITHIN * min(a_setting.values())),
        "planned": knee(shape.tokens, device),
        "peft_seconds": peer,
    }


def rows_of(shape: Shape, device: str) -> ModelBatch:
    lengths = (shape.document,) * (shape.tokens // shape.document)
    draw = np.random.default_rng(0)
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    micro = MicroBatch(
        ids=draw.integers(3, shape.vocabulary, (1, shape.tokens)),
        trained=(draw.random((1, shape.tokens)) < 0.75) & (positions > 0),
        position_ids=positions,
        lengths=lengths,
        layout="packed",
        rows=tuple(range(len(lengths))),
    )
    return to_model_batch(micro, torch.device(device))


def bank_step(model: PreTrainedModel, batch: ModelBatch, n: int) -> Callable[[], None]:
    """One whole step of n settings that differ in scaling, rate and seed."""
    adapters = inject(model, [LoraConfig(r=16, scaling=1.0 + i / 8, seed=i) for i in range(n)])
    settings = [SlotSettings(learning_rate=1e-4 * (1 + i)) for i in range(n)]
    optimizer = BankAdamW(trained_parameters(adapters), settings, scaled=False)

    def step() -> None:
        adapters.bank()
        model.train()
        sums = causal_loss(model, batch, n=n).sums
        (sums / len(batch.targets)).sum().backward()
        if not all(optimizer.step([1.0] * n).moved):
            raise SystemExit("a slot did not move: nothing was trained")

    return step


def times_of_peft(shape: Shape, batch: ModelBatch, device: str, steps: int) -> list[float]:
    """One adapter, eager, the documents as rows of a batch; the guide's loop without its logging."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    adapted = get_peft_model(
        shape.model(device), PeftConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    ).train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    ids = batch.ids.view(-1, shape.document)

    def step() -> None:
        adapted(input_ids=ids, labels=ids).loss.backward()
        if not torch.nn.utils.clip_grad_norm_(trained, 1.0) > 0:
            raise SystemExit("PEFT's gradient is zero: nothing was trained")
        optimizer.step()
        optimizer.zero_grad()

    print(f"{shape.name}: one eager step of PEFT", file=sys.stderr)
    return timed(step, steps, device)


def timed(step: Callable[[], None], steps: int, device: str) -> list[float]:
    """Seconds of each of `steps`, after one that warms up."""
    times = []
    for _ in range(steps + 1):
        _wait(device)
        began = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - began)
    return times[1:]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def show(result: dict[str, Any]) -> None:
    medians = {int(n): seconds for n, seconds in result["median_seconds"].items()}
    peer = statistics.median(result["peft_seconds"])
    table = Table(title=f"{result['shape']}: {result['tokens']} tokens a setting and step, {result['layers']} layers")
    for heading in ("settings", "step", "a setting", "gain", "of one PEFT step"):
        table.add_column(heading, justify="right")
    for n, seconds in medians.items():
        gain = n * medians[1] / seconds if 1 in medians else float("nan")
        marks = f"{n} ◂ knee" if n == result["knee"] else str(n)
        table.add_row(
            marks, f"{seconds * 1e3:.1f} ms", f"{seconds / n * 1e3:.1f} ms", f"{gain:.2f}×", f"{seconds / peer:.2f}×"
        )
    Console().print(table)
    Console().print(f"knee at {result['knee']}; a study takes at most {result['planned']} at this step\n")


def keep_all(results: list[dict[str, Any]], device: str) -> None:
    document = {
        "date": today(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "versions": versions("lorawise", "torch", "transformers", "peft"),
        "results": results,
    }
    keep(f"pack-{device}", document)


if __name__ == "__main__":
    main()
