"""Everything that the memory of a training step depends on, in one value; a change of one field is another load.

needed = reserved + context  ≤  usable memory of the device
"""

from dataclasses import dataclass
from functools import cached_property

from lorawise.facts.device import DeviceFacts
from lorawise.facts.model import ModelFacts
from lorawise.lora.config import LoraConfig
from lorawise.planning.memory import Memory, Stack, Workload, predict
from lorawise.planning.memory.model import Mode, Packing
from lorawise.planning.situation import Method, Trainer

MODES: tuple[Mode, ...] = ("speed", "balanced", "frugal")
BUSY = 1024  # tokens that keep an accelerator's multipliers busy; fewer only where nothing else fits


@dataclass(frozen=True, kw_only=True, eq=False)
class Load:
    """`tokens` at once, `length` of the longest row, `slots` adapters side by side, `packing` and `double_quant` of a
    packed base."""

    model: ModelFacts
    config: LoraConfig
    device: DeviceFacts
    method: Method = "lora"
    mode: Mode = "speed"
    tokens: int = 4096
    length: int = 2048
    packed: bool = True
    accumulate: bool = True
    trainer: Trainer = "lorawise"
    slots: int = 1
    packing: Packing = "nf4"
    double_quant: bool = True

    @property
    def workload(self) -> Workload:
        """Packed: one row of `tokens`; else whole rows of `length`, as many as `tokens` allow."""
        rows = 1 if self.packed else max(1, self.tokens // self.length)
        tokens = self.tokens if self.packed else rows * self.length
        return Workload(tokens=tokens, rows=rows, length=self.length, packed=self.packed, accumulate=self.accumulate)

    @cached_property
    def memory(self) -> Memory:
        return predict(
            self.model,
            self.config,
            method=self.method,
            workload=self.workload,
            mode=self.mode,
            trainer=self.trainer,
            slots=self.slots,
            device=self.device,
            stack=Stack(packing=self.packing, double_quant=self.double_quant),
        )

    @property
    def needed(self) -> int:
        """Bytes of the device that are taken at the peak."""
        return self.memory.total

    @property
    def fits(self) -> bool:
        return self.needed <= self.device.usable
