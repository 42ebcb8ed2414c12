"""What a prediction of memory is asked and answers.

allocated   bytes that tensors hold at the worst instant, each rounded up to 512
counted     the same as `torch.cuda.max_memory_allocated` tells it: with the rests of blocks too small to split off
reserved    what the caching allocator takes from the device for that
context     what CUDA itself takes beside torch; no part of the two above
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorawise.base.errors import ConfigError, nearest

Method = Literal["lora", "qlora", "full"]
Mode = Literal["speed", "balanced", "frugal"]
TrainerName = Literal["lorawise", "hf"]
OptimizerName = Literal["fused", "foreach", "paged-8bit"]
Upcast = Literal["none", "norms", "all"]
Packing = Literal["nf4", "int8"]

METHODS: tuple[Method, ...] = ("lora", "qlora", "full")
MODES: tuple[Mode, ...] = ("speed", "balanced", "frugal")
TRAINERS: tuple[TrainerName, ...] = ("lorawise", "hf")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One micro-batch: `tokens` positions in all, filler counted.

    rows        of a padded batch (a packed one is a single row)
    length      of the longest document
    packed      documents end to end in one row
    accumulate  a step has several micro-batches, so the gradients of the first are there during the second
    filler      padded rows of uneven length, so attention needs a mask; ignored when packed
    """

    tokens: int
    rows: int = 1
    length: int = 0
    packed: bool = True
    accumulate: bool = False
    filler: bool = False

    def __post_init__(self) -> None:
        if not self.length:
            object.__setattr__(self, "length", self.tokens if self.packed else self.tokens // max(self.rows, 1))
        found = [f"{name}={value!r}" for name in ("tokens", "rows", "length") if (value := getattr(self, name)) < 1]
        if found:
            raise ConfigError(", ".join(found), expected="whole numbers from 1")
        if self.packed and self.length > self.tokens:
            raise ConfigError(
                f"a document of {self.length} tokens in a micro-batch of {self.tokens}", expected="room for the longest"
            )

    @property
    def positions(self) -> int:
        """What is computed: the tokens of a packed row, the rectangle of padded ones."""
        return self.tokens if self.packed else self.rows * self.length

    @property
    def documents(self) -> int:
        """Of a packed row, when all are as long as the longest."""
        return -(-self.tokens // self.length)

    @property
    def masked(self) -> bool:
        return self.filler and not self.packed


@dataclass(frozen=True, kw_only=True)
class Stack:
    """How the training stack is set up, beyond what both trainers share.

    optimizer     fused, foreach (a copy of every update beside), paged-8bit; ours has its own, one flat buffer
    packing       of a packed base's linear layers: nf4, or int8 (a byte a weight, an fp32 scale a row)
    double_quant  NF4's own constants quantised again (QLoRA's choice)
    upcast        over a 4-bit base: `all` makes norms, embedding and head fp32, as PEFT's
                  `prepare_model_for_kbit_training`; `norms` the norms alone, which makes the hidden states fp32 too
    autocast      bf16 autocast around the forward pass, as the Trainer's `bf16: true`
    shifted_loss  the loss copies the logits shifted by one, as transformers did until 4.49
    held_outputs  the caller holds the model's outputs, logits among them, until the next step has made new ones
    dropout       of the adapter's input, stock PEFT (a byte and a copy an input value)
    """

    optimizer: OptimizerName = "fused"
    packing: Packing = "nf4"
    double_quant: bool = True
    upcast: Upcast = "none"
    autocast: bool = False
    shifted_loss: bool = False
    held_outputs: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        known = ("fused", "foreach", "paged-8bit")
        if self.optimizer not in known:
            raise ConfigError(f"optimizer '{self.optimizer}' is not known", cure=nearest(self.optimizer, known))
        if self.packing not in ("nf4", "int8"):
            raise ConfigError(f"packing={self.packing!r}", expected="nf4 or int8")
        if self.upcast not in ("none", "norms", "all"):
            raise ConfigError(f"upcast={self.upcast!r}", expected="none, norms or all")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One cause: what holds these bytes at the peak, and why that many."""

    cause: str
    bytes: int
    because: str


@dataclass(frozen=True, kw_only=True)
class Memory:
    """`by_cause` is what is alive at the peak instant, largest first; it sums to `allocated`.

    unsplit   what blocks in use have beyond their tensors, at the allocator's own peak
    instant   what the run is doing when the peak comes
    versions  of what the prediction describes
    """

    allocated: int
    reserved: int
    context: int
    by_cause: tuple[Line, ...]
    unsplit: int = 0
    instant: str = ""
    versions: str = ""

    def __post_init__(self) -> None:
        total = sum(line.bytes for line in self.by_cause)
        if total != self.allocated:
            raise ValueError(f"causes sum to {total}, allocated is {self.allocated}")

    @property
    def counted(self) -> int:
        """What `torch.cuda.max_memory_allocated` would say. It may fall by a little where the load grows: what is left
        of a block depends on what was there before. `allocated` never does."""
        return self.allocated + self.unsplit

    @property
    def total(self) -> int:
        """What has to fit on the device: reserved and context."""
        return self.reserved + self.context

    def to_json(self) -> Mapping[str, Any]:
        return {
            "allocated": self.allocated,
            "counted": self.counted,
            "reserved": self.reserved,
            "context": self.context,
            "instant": self.instant,
            "versions": self.versions,
            "by_cause": [{"cause": x.cause, "bytes": x.bytes, "because": x.because} for x in self.by_cause],
        }
