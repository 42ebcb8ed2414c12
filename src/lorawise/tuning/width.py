"""How many settings a study trains side by side: as many as pay (`planning.knee`), and no more than memory holds.

What a bank takes beside the base is predicted for the widest pack that the axes can make: the longest rank at every
matrix that some setting adapts, in every slot. On CUDA all of what is free may be taken, elsewhere a share of it.
"""

from collections.abc import Sequence
from typing import Any

from lorawise.base.errors import ConfigError, ModelError
from lorawise.facts.model import ModelFacts
from lorawise.facts.read import read_model
from lorawise.lora.config import LoraConfig
from lorawise.planning.knee import knee
from lorawise.planning.memory import Workload, predict
from lorawise.planning.memory.bank import MARGIN, padded
from lorawise.planning.memory.model import Mode
from lorawise.planning.memory.static import CONSTANTS, WEIGHTS
from lorawise.runfile.schema import QUANTISED
from lorawise.training.memory import SHARE, bytes_per_token, free_memory, modes
from lorawise.training.setup import Prepared
from lorawise.tuning.space import Axis, Grid, run_of

SHAPING = ("lora.r", "lora.target_modules", "lora.layers")  # the axes that a bank's memory depends on
CUDA_SHARE = 0.95
MODES: dict[int, Mode] = {0: "speed", 1: "frugal", 2: "balanced"}  # by every how many layers one is computed again


def slots_of(prepared: Prepared, axes: Sequence[Axis]) -> int:
    """A power of two, from the tokens of a micro-batch and what is free on the device now."""
    device = prepared.model.device
    share = CUDA_SHARE if device.type == "cuda" else SHARE
    slots = knee(_tokens(prepared), device.type)
    while slots > 1 and bank_bytes(prepared, axes, slots) > share * free_memory(device):
        slots //= 2
    return slots


def bank_bytes(prepared: Prepared, axes: Sequence[Axis], slots: int) -> int:
    """What the widest pack of the axes takes beside the base, at the worst instant of a step."""
    run, lengths = prepared.run, prepared.inputs.train.lengths
    quantised = run.base.dtype in QUANTISED
    try:
        facts = read_model(prepared.files.folder)
        if not quantised:
            facts = facts.replace(dtype=run.base.dtype)
        step = predict(
            facts,
            widest(facts, prepared, axes),
            method="qlora" if quantised else "lora",
            workload=Workload(tokens=_tokens(prepared), length=int(lengths.max())),
            mode=MODES[modes[run.train.memory].every],
            slots=slots,
        )
    except (ConfigError, ModelError):  # a family that planning does not know: its activations alone
        return slots * bytes_per_token(prepared.model) * _tokens(prepared)
    base = sum(line.bytes for line in step.by_cause if line.cause in (WEIGHTS, CONSTANTS))
    return round(MARGIN * (step.allocated - base))


def widest(facts: ModelFacts, prepared: Prepared, axes: Sequence[Axis]) -> LoraConfig:
    """One setting whose slots take what the widest pack takes."""
    settings: list[dict[str, Any]] = [{}]
    for axis in axes:
        if axis.key in SHAPING:
            values = axis.values if isinstance(axis, Grid) else (int(axis.high),)
            settings = [{**setting, axis.key: value} for setting in settings for value in values]
    return padded(facts, [run_of(prepared.run, setting).lora_config() for setting in settings])


def _tokens(prepared: Prepared) -> int:
    tokens = prepared.run.train.micro_batch_tokens
    assert isinstance(tokens, int), "settled by `prepare`"
    return tokens
