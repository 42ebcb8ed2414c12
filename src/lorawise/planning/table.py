"""The guide's VRAM table for any model: presets × ranks × methods, predicted; and the guide's own figures beside it.

The guide gives one number a row and names neither length, batch, precision nor checkpointing. Here they are named: one
row of `length` tokens at once, a bfloat16 base. `docs/memory.md` says where the figures differ.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lorawise.facts.device import DeviceFacts
from lorawise.facts.model import ModelFacts
from lorawise.facts.targets import module_names, trainable
from lorawise.lora.config import LoraConfig
from lorawise.planning.adapter_deciders import expert_rank_for
from lorawise.planning.load import Load
from lorawise.planning.memory.model import Mode
from lorawise.planning.situation import Method

ROWS: tuple[tuple[int, str, str], ...] = (  # r, preset, the guide's figure for Llama 3.1 8B
    (8, "qv", "~17GB"),
    (8, "attention", "~18GB"),
    (16, "attention", "~20GB"),
    (16, "all-linear", "~23GB"),
    (32, "attention", "~22GB"),
    (64, "all-linear", "~30GB"),
)
FULL = "~72GB"
GUIDE_MODEL = (32, 4096, 14336)  # layers, hidden, intermediate of Llama 3.1 8B
COLUMNS: tuple[tuple[Method, Mode], ...] = (
    ("lora", "speed"),
    ("lora", "frugal"),
    ("qlora", "speed"),
    ("qlora", "frugal"),
)


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """`needed` is reserved and context, in the order of COLUMNS; `guide` empty for another model than the guide's."""

    name: str
    trainable: int
    needed: tuple[int, ...]
    guide: str


def vram_table(model: ModelFacts, device: DeviceFacts, *, length: int) -> Iterator[TableRow]:
    """One row a setting of the guide, then full fine-tuning (its two columns are the two ways to keep activations)."""
    shape = (model.num_layers, model.hidden_size, model.intermediate_size)
    told = shape == GUIDE_MODEL
    model = model.replace(dtype="bfloat16")
    for r, preset, guide in ROWS:
        if module_names(model).fused and preset == "all-linear":
            continue
        config = LoraConfig(r=r, target_modules=preset, expert_r=expert_rank_for(model, r) if model.experts else None)
        loads = (_load(model, device, config, method, mode, length) for method, mode in COLUMNS)
        yield TableRow(
            name=f"r={r} {preset}",
            trainable=trainable(model, config),
            needed=tuple(load.needed for load in loads),
            guide=guide if told else "",
        )
    config = LoraConfig(r=8, target_modules="attention")
    full = tuple(_load(model, device, config, "full", mode, length).needed for mode in ("speed", "frugal"))
    yield TableRow(name="full fine-tuning", trainable=model.parameters, needed=full, guide=FULL if told else "")


def _load(model: ModelFacts, device: DeviceFacts, config: LoraConfig, method: Method, mode: Mode, length: int) -> Load:
    return Load(
        model=model,
        config=config,
        device=device,
        method=method,
        mode=mode,
        tokens=length,
        length=length,
        accumulate=True,
        trainer="hf" if method == "full" else "lorawise",
    )
