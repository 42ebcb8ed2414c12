"""`python -m benchmarks.layer`: is one slot of our bank as fast as a plain LoRA layer?

Forward and backward of single layers at the widths of SmolLM2-135M and Llama-3.2-1B, in bf16 and fp32. The arms take
turns within each round, each first as often as the others, and the ratios are medians over rounds of ours to theirs, so
a machine whose speed drifts moves both sides. What is measured is the processor time of the process, which waiting for
other work does not lengthen. Before the clock starts, every arm's output and gradients are held against the plain
layer's in fp64.
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.keeping import keep, today, versions
from benchmarks.layer.arms import ARMS, R, plain, trained

WIDTHS = {  # model → layer → (in, out)
    "SmolLM2-135M": {"q": (576, 576), "k": (576, 192), "gate": (576, 1536), "down": (1536, 576)},
    "1B": {"q": (2048, 2048), "k": (2048, 512), "gate": (2048, 8192), "down": (8192, 2048)},
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
IN_A_ROW = 3_000_000  # weights multiplied in one timing, at least
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-4}  # relative error against fp64


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.layer", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--keep", action="store_true", help="write the result under benchmarks/results/")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    cases = [
        run_case(model, layer, dtype, asked.tokens, asked.rounds)
        for model in asked.models
        for layer in WIDTHS[model]
        for dtype in DTYPES
    ]
    result = {
        "cases": cases,
        "tokens": asked.tokens,
        "r": R,
        "rounds": asked.rounds,
        "machine": {"cores": os.cpu_count(), "threads": asked.threads, "cpu": torch.backends.cpu.get_cpu_capability()},
        "versions": versions("lorawise", "torch", "peft"),
        "date": today(),
    }
    show(result)
    if asked.keep:
        keep(f"layer-{asked.tokens}-tokens-cpu", result)


def run_case(model: str, layer: str, dtype: str, tokens: int, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    wide, out = WIDTHS[model][layer]
    A, B = (torch.randn(shape, generator=generator) * 0.02 for shape in ((R, wide), (out, R)))
    weight = torch.randn(out, wide, generator=generator) / wide**0.5
    x, dy = (torch.randn(1, tokens, width, generator=generator).to(DTYPES[dtype]) for width in (wide, out))
    arms = {name: make(_linear(weight, DTYPES[dtype]), A, B) for name, make in ARMS.items()}
    truth = _once(plain(_linear(weight, torch.float64), A, B).double(), x.double(), dy.double())
    for name, module in arms.items():
        if name != "base":
            _require_equal(name, _once(module, x, dy), truth, TOLERANCE[dtype])
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 3):
        for name, module in _rotated(arms, number):
            taken = _timed(module, x, dy)
            if number >= 3:  # the first ones warm caches and the allocator up
                seconds[name].append(taken)
    mine = seconds["lorawise"]
    return {
        "model": model,
        "layer": layer,
        "in": wide,
        "out": out,
        "dtype": dtype,
        "milliseconds": {name: 1e3 * statistics.median(each) for name, each in seconds.items()},
        "ours_over": {
            name: statistics.median(a / b for a, b in zip(mine, each, strict=True))
            for name, each in seconds.items()
            if name != "lorawise"
        },
        "kept_for_backward": {name: _kept(module, x) for name, module in arms.items()},
    }


def _linear(weight: Tensor, dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    layer.weight.data.copy_(weight)
    return layer.requires_grad_(False)


def _once(module: nn.Module, x: Tensor, dy: Tensor) -> Mapping[str, Tensor]:
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = module(x)
    y.backward(dy)
    assert x.grad is not None
    return {"y": y.detach(), "dx": x.grad, **trained(module)}


def _require_equal(name: str, found: Mapping[str, Tensor], truth: Mapping[str, Tensor], tolerance: float) -> None:
    for what, right in truth.items():
        error = float((found[what].double() - right).norm() / right.norm())
        if not error < tolerance:
            raise SystemExit(f"{name}: {what} is off by {error:.2g}: nothing to compare")


def _rotated(arms: Mapping[str, nn.Module], number: int) -> list[tuple[str, nn.Module]]:
    listed = list(arms.items())
    at = number % len(listed)
    return listed[at:] + listed[:at]


def _timed(module: nn.Module, x: Tensor, dy: Tensor) -> float:
    """Processor seconds of one forward and backward, over several in a row where one is too short to time."""
    x = x.detach().requires_grad_()
    repeats = max(1, IN_A_ROW // (x.shape[-1] * dy.shape[-1]))
    started = time.process_time()
    for _ in range(repeats):
        x.grad = None
        module.zero_grad(set_to_none=True)
        module(x).backward(dy)
    return (time.process_time() - started) / repeats


def _kept(module: nn.Module, x: Tensor) -> int:
    """Bytes that a forward keeps for its backward beside its input and the parameters."""
    x = x.detach().requires_grad_()
    known = {x.data_ptr(), *(parameter.data_ptr() for parameter in module.parameters())}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = module(x)
    del kept
    return sum(sizes.values())


def show(result: Mapping[str, Any]) -> None:
    others = [name for name in ARMS if name != "lorawise"]
    table = Table(title=f"forward and backward of {result['tokens']} tokens, r {result['r']}, ms (ours over it)")
    for heading in ("layer", "dtype", "lorawise", *others, "kept: ours", "plain", "peft"):
        table.add_column(heading, justify="left" if heading in ("layer", "dtype") else "right")
    for case in result["cases"]:
        times, kept = case["milliseconds"], case["kept_for_backward"]
        table.add_row(
            f"{case['model']} {case['layer']} {case['in']}→{case['out']}",
            case["dtype"],
            f"{times['lorawise']:.2f}",
            *(f"{times[name]:.2f} ({case['ours_over'][name]:.2f}×)" for name in others),
            *(f"{kept[name] / 2**10:,.0f} KiB" for name in ("lorawise", "plain", "peft")),
        )
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
