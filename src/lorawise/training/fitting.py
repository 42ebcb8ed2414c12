"""A run's memory as planning predicts it, for the machine it is on: what `auto` becomes, and what to give up.

usable = what is free now + what the opened base holds already       predicted = reserved + context  (planning.memory)
"""

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from lorawise.base.errors import LorawiseError
from lorawise.base.findings import Finding
from lorawise.facts.device import DeviceFacts
from lorawise.facts.read import read_model
from lorawise.models.files import ModelFiles
from lorawise.planning.concessions import concessions
from lorawise.planning.fit import settle
from lorawise.planning.load import MODES, Load
from lorawise.planning.memory.device import context_bytes
from lorawise.planning.memory.model import Mode
from lorawise.runfile import RunFile
from lorawise.runfile.schema import QUANTISED
from lorawise.training.memory import SHARE, free_memory, total_memory

LEFT_FREE = 0.05  # of an accelerator's free memory: fragments, and what other programs take while the run goes on


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """What `auto` became, the load it was predicted from, and a warning where nothing fits."""

    mode: str
    tokens: int
    load: Load
    findings: tuple[Finding, ...] = ()


def fitted(
    run: RunFile, files: ModelFiles, model: PreTrainedModel, *, longest: int, step: int, packed: bool
) -> Fitted | None:
    """The fastest mode and the most tokens at once that are predicted to fit; what `run` says itself is kept.

    None where planning cannot predict: a family it cannot read.
    """
    asked = run.train.memory
    mode: Mode | None = next((known for known in MODES if known == asked), None)
    if asked == "offload":
        mode = "frugal"
    elif mode is None and not model.supports_gradient_checkpointing:
        mode = "speed"
    tokens = run.train.micro_batch_tokens
    try:
        load = load_of(run, files, model, longest=longest, packed=packed)
        settled = settle(load, step=step, mode=mode, tokens=None if tokens == "auto" else int(tokens))
        fits = settled.fits
    except LorawiseError:
        return None
    chosen: str = settled.mode
    if asked == "offload" or (asked == "auto" and mode is None and not fits and model.device.type == "cuda"):
        chosen = "offload"
    return Fitted(
        mode=chosen, tokens=settled.tokens, load=settled, findings=() if fits else (_too_large(settled, chosen),)
    )


def load_of(run: RunFile, files: ModelFiles, model: PreTrainedModel, *, longest: int, packed: bool) -> Load:
    """The run's load on this machine."""
    facts = read_model(files.folder)
    return Load(
        model=facts.replace(dtype=run.base.computes_in),
        config=run.lora_config(),
        device=device_now(model),
        method="qlora" if run.base.dtype in QUANTISED else "lora",
        packing="int8" if run.base.dtype == "int8" else "nf4",
        double_quant=run.base.double_quant,
        length=longest,
        packed=packed,
    )


def device_now(model: PreTrainedModel) -> DeviceFacts:
    """This machine's device with what of it the run may have, the opened base included."""
    device = model.device
    total, free = total_memory(device), free_memory(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        held = torch.cuda.memory_reserved(device)
        usable = int((1 - LEFT_FREE) * free) + held + context_bytes(name)
        return DeviceFacts(name=name, memory=total, usable=min(usable, total), kind="cuda")
    held = sum(tensor.untyped_storage().nbytes() for tensor in (*model.parameters(), *model.buffers()))
    return DeviceFacts(name="this machine", memory=total, usable=min(int(SHARE * free) + held, total), kind="cpu")


def cure_for(load: Load, *, beyond: int = 0) -> str:
    """What to write so that `load` fits, when it takes `beyond` more bytes than predicted; "" when nothing does."""
    usable = min(load.device.usable - beyond, load.needed - 1)
    tight = replace(load, device=replace(load.device, usable=max(usable, 1)))
    made = concessions(tight, tight)
    if not made or not made[-1].fits:
        return ""
    settings = " and ".join(each.setting for each in made)
    return f"{settings}: needs {made[-1].needed / 2**30:.2f} GiB by prediction ({made[-1].costs})"


def _too_large(load: Load, chosen: str) -> Finding:
    largest = load.memory.by_cause[0]
    return Finding(
        code="memory-predicted",
        level="warning",
        message=f"{load.needed / 2**30:.2f} GiB are predicted, {load.device.usable / 2**30:.2f} GiB can be had here: "
        f"{largest.cause} take {largest.bytes / 2**30:.2f}",
        cure=cure_for(load) or f"a smaller model, or a larger device (train.memory: {chosen} already)",
    )
