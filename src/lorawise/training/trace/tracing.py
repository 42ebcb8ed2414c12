"""`trace`: a real model and a real training step on tensors with nothing behind them, and what they would hold.

    config ─ fake model ─ (4-bit) ─ adapters ─ forward ─ loss ─ backward ─ optimizer ─▶ ledger ─▶ Memory

It runs what a run runs, so it needs no formula and knows any architecture that transformers has; it is what the
closed form in `planning.memory` is held against. An 8B step takes 3 to 5 s and no memory to speak of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig

from lorawise.base.errors import ConfigError, ModelError
from lorawise.lora.config import LoraConfig
from lorawise.models.quiet import quiet_transformers
from lorawise.planning.memory.allocator import replayed
from lorawise.planning.memory.device import context_bytes, cublas_workspace
from lorawise.planning.memory.model import Line, Memory, Method, Mode, Stack, TrainerName, Workload
from lorawise.training.trace import fakes
from lorawise.training.trace.ledger import Instant, Ledger
from lorawise.training.trace.ours import OurStep
from lorawise.training.trace.parts import BASE
from lorawise.training.trace.stock import StockStep, upcast

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

BECAUSE = {
    BASE: "every tensor of the frozen base as it is stored, buffers too",
    "adapters": "A and B in fp32 (full fine-tuning: nothing beside the base)",
    "optimizer": "gradients that are kept, and the moments",
    "attention": "made by the attention of the layers that are kept or computed again",
    "mlp": "made by the feed-forward of those layers",
    "norms": "made by the norms of those layers, fp32 copies of their inputs among them",
    "embedding": "made by the embedding",
    "logits and loss": "logits, their fp32 copy and what the loss makes of them",
    "backward": "gradients of activations, residual sums, and what the loss takes chunk by chunk",
    "kernel workspace": "what a kernel takes for the time of one operation",
    "cuBLAS workspace": "taken once by each thread that multiplies",
}


@dataclass(frozen=True, kw_only=True)
class Traced:
    """`phases`: the peak of each phase; `memory` is that of the highest."""

    memory: Memory
    phases: Mapping[str, Instant]
    final: int


def trace(
    model: PreTrainedConfig | Mapping[str, Any] | str | Path,
    config: LoraConfig | None,
    *,
    method: Method = "lora",
    workload: Workload,
    mode: Mode = "speed",
    trainer: TrainerName = "lorawise",
    stack: Stack | None = None,
    slots: int = 1,
    beside: Sequence[LoraConfig] = (),
    dtype: str = "bfloat16",
    device: str = "cuda",
) -> Traced:
    """Bytes of one optimizer step, on CUDA's kernels.

    model    a transformers config, its dictionary, or a folder or file that holds one; no weights are read
    config   None for full fine-tuning alone
    slots    adapters of `config` side by side, and one of each of `beside` in the same bank
    stack    how the stock trainer is set up; of ours only `double_quant` matters
    Raises `ConfigError` for what cannot be meant, `ModelError` for what transformers cannot build.
    """
    stack = stack or Stack()
    _check(config, method, trainer, slots, dtype)
    settings = _config_of(model)
    settings.use_cache = False
    mode_of_fakes = fakes.fake_mode()
    ledger = Ledger(truth=not workload.masked, workspaces=fakes.workspaces())
    with mode_of_fakes, ledger, fakes.cuda_kernels(), ledger.during(BASE, phase="base loaded"):
        base = fakes.fake_model(settings, _DTYPES[dtype])
        if method == "qlora":
            fakes.quantise(base, double_quant=stack.double_quant, compute_dtype=_DTYPES[dtype])
            upcast(base, stack.upcast)
        ledger.settle()
    step: OurStep | StockStep
    if trainer == "lorawise":
        assert config is not None
        step = OurStep(model=base, configs=[config] * slots + list(beside), workload=workload, mode=mode)
        step.prepare()
    else:
        step = StockStep(
            model=base, config=None if method == "full" else config, workload=workload, mode=mode, stack=stack
        )
    with mode_of_fakes, ledger, fakes.cuda_kernels():
        ledger.hold(cublas_workspace(device), "cuBLAS workspace")
        step.run(ledger)
    return Traced(memory=_memory(ledger, device), phases=dict(ledger.peaks), final=ledger.live)


def _memory(ledger: Ledger, device: str) -> Memory:
    peak = ledger.peak
    lines = [Line(cause=label, bytes=size, because=BECAUSE.get(label, label)) for label, size in peak.by_label.items()]
    replay = replayed(ledger.events)
    return Memory(
        allocated=peak.bytes,
        unsplit=max(0, replay.counted - peak.bytes),
        reserved=replay.reserved,
        context=context_bytes(device),
        by_cause=tuple(sorted(lines, key=lambda line: -line.bytes)),
        instant=peak.phase,
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
    )


def _check(config: LoraConfig | None, method: Method, trainer: TrainerName, slots: int, dtype: str) -> None:
    if method == "full" and trainer == "lorawise":
        raise ConfigError(
            "full fine-tuning is not something lorawise's trainer does", cure="trace it with trainer='hf'"
        )
    if method != "full" and config is None:
        raise ConfigError(f"method {method} without a LoraConfig", cure="pass one")
    if trainer == "hf" and config is not None and (config.modules_to_save or config.bias != "none"):
        raise ConfigError(
            "the stock stack is traced without modules_to_save and trained biases",
            cure="trace ours, or take the prediction in closed form, which has them",
        )
    if slots < 1 or (slots > 1 and trainer == "hf"):
        raise ConfigError(f"slots={slots}", expected="from 1, and 1 for the stock trainer")
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype '{dtype}'", expected=", ".join(_DTYPES))


def _config_of(model: PreTrainedConfig | Mapping[str, Any] | str | Path) -> PreTrainedConfig:
    """A copy of its own: what a trace sets in it is not the caller's business."""
    if isinstance(model, PreTrainedConfig):
        return type(model).from_dict(model.to_dict())
    try:
        with quiet_transformers():
            if isinstance(model, Mapping):
                settings = dict(model)
                return AutoConfig.for_model(settings.pop("model_type"), **settings)
            loaded: PreTrainedConfig = AutoConfig.from_pretrained(model, trust_remote_code=False)
            return loaded
    except (ValueError, KeyError, OSError) as problem:
        raise ModelError(
            f"no model can be built from {model if not isinstance(model, Mapping) else 'this config'}: {problem}",
            expected="a config.json of an architecture that the installed transformers has",
        ) from problem
