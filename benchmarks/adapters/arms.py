"""One arm in its own process: `python -m benchmarks.adapters.arms ARM JOB.json`.

Two times are taken. In memory: from tensors in memory to tensors in memory, the median of up to five. Folder to folder:
open the adapters, do it, write the result; for ours with the error it tells, for PEFT over a base of that one layer;
left out where the work alone takes longer than LONG.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lorawise.base.peak import peak_memory

LONG = 10.0  # seconds
Factors = tuple[Any, Any, float]  # A (r, in), B (out, r), scaling


def main(arm: str, job_file: str) -> None:
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    start = {"ours": ours, "peft": peft, "dense": dense}[arm.split()[0]]
    work, whole = start(arm.split()[1], job)
    seconds, result = timed(work)
    folder_seconds = None
    if job["folders"] and arm.split()[0] != "dense" and seconds < LONG:
        started = time.perf_counter()
        whole()
        folder_seconds = time.perf_counter() - started
    report = {
        "seconds": seconds,
        "folder_seconds": folder_seconds,
        "peak_memory": peak_memory(),
    }
    A, B, scaling = result
    np.savez(job["result"], A=np.asarray(A), B=np.asarray(B), scaling=scaling)
    Path(job["report"]).write_text(json.dumps(report), encoding="utf-8")


def timed(work: Callable[[], Factors]) -> tuple[float, Factors]:
    """The median of up to five runs, or of as many as fit in four seconds; the last result."""
    taken: list[float] = []
    while not taken or (len(taken) < 5 and sum(taken) < 4):
        started = time.perf_counter()
        result = work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken), result


def ours(method: str, job: dict[str, Any]) -> tuple[Callable[[], Factors], Callable[[], object]]:
    from lorawise.base.tensors import StoredTensor
    from lorawise.lora.weights import StoredAdapter
    from lorawise.store.algebra.combine import Options, Part, combine, exact_sum
    from lorawise.store.algebra.factors import Factors as Held
    from lorawise.store.algebra.resize import Goal, Spectra, ranks_for, resize
    from lorawise.store.algebra.result import Source, write_child

    def opened() -> list[Source]:
        return [Source.open(Path(job["folder"]) / name) for name in job["weights"]]

    def in_memory(adapter: StoredAdapter) -> StoredAdapter:
        layers = {m: tuple(StoredTensor.of(t.values(), t.dtype) for t in pair) for m, pair in adapter.layers.items()}
        return StoredAdapter(config=adapter.config, layers=layers)  # type: ignore[arg-type]

    def child_of(adapters: list[StoredAdapter]) -> StoredAdapter:
        if method == "resize":
            return resize(adapters[0], ranks_for(Spectra.of(adapters[0]), Goal(rank=job["rank"])), "F32")
        parts = [Part(name=n, adapter=a, weight=w) for a, (n, w) in zip(adapters, job["weights"].items(), strict=True)]
        return combine(parts, method, Options(rank=job["rank"]), "F32")

    held = [in_memory(source.adapter) for source in opened()]

    def work() -> Factors:
        child = child_of(held)
        a, b = child.layers["layer"]
        return a.values(), b.values(), child.config.scaling_of("layer")

    def whole() -> object:
        sources = opened()
        child = child_of([source.adapter for source in sources])
        parts = [
            Part(name=n, adapter=s.adapter, weight=1.0 if method == "resize" else w)
            for s, (n, w) in zip(sources, job["weights"].items(), strict=True)
        ]
        wanted: Callable[[str], Held] = exact_sum(parts)
        return write_child(Path(job["out"]), child, sources, wanted, operation=method, options={})

    return work, whole


def peft(method: str, job: dict[str, Any]) -> tuple[Callable[[], Factors], Callable[[], object]]:
    import torch
    from peft import PeftModel, convert_to_lora, save_as_lora
    from torch import nn

    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(job["width"], job["width"], bias=False)

    def opened() -> PeftModel:
        first, *others = job["weights"]
        model = PeftModel.from_pretrained(Base(), str(Path(job["folder"]) / first), adapter_name=first)
        for name in others:
            model.load_adapter(str(Path(job["folder"]) / name), adapter_name=name)
        return model

    def act(model: PeftModel) -> Factors:
        layer = model.base_model.model.layer
        if method == "convert":
            config, state = convert_to_lora(model, rank=job["rank"], adapter_name="a")
            A, B = (next(value for key, value in state.items() if f"lora_{half}" in key) for half in "AB")
            return A, B, config.lora_alpha / config.r
        if "sum" in layer.scaling:
            model.delete_adapter("sum")
        names, weights = list(job["weights"]), list(job["weights"].values())
        model.add_weighted_adapter(names, weights, "sum", combination_type=method, svd_rank=job["rank"])
        return layer.lora_A["sum"].weight.detach(), layer.lora_B["sum"].weight.detach(), layer.scaling["sum"]

    model = opened()

    def whole() -> None:
        fresh = opened()
        if method == "convert":
            save_as_lora(job["out"], fresh, rank=job["rank"], adapter_name="a")
            return
        act(fresh)
        fresh.save_pretrained(job["out"], selected_adapters=["sum"])

    with torch.no_grad():
        return (lambda: act(model)), whole


def dense(_: str, job: dict[str, Any]) -> tuple[Callable[[], Factors], Callable[[], object]]:
    """The textbook's way: ΔW in full, `torch.linalg.svd` in float32, the largest kept."""
    import torch

    from benchmarks.adapters.cases import exact

    delta = torch.from_numpy(exact(Path(job["folder"]), list(job["weights"]))).float()

    def work() -> Factors:
        u, s, vt = torch.linalg.svd(delta, full_matrices=False)
        return vt[: job["rank"]].numpy(), (u[:, : job["rank"]] * s[: job["rank"]]).numpy(), 1.0

    return work, lambda: None


if __name__ == "__main__":
    main(*sys.argv[1:])
