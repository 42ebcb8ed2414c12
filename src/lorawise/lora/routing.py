"""Which adapters a forward pass uses: one small object that every adapted layer of a model shares.

Switching replaces one attribute here, so it costs the same for seven layers and for seven thousand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lorawise.base.files import digest_text
from lorawise.lora.config import LoraConfig
from lorawise.lora.weights import Task

Mode = Literal["bank", "mix"]


@dataclass(frozen=True, kw_only=True)
class Route:
    """`bank`: slot i takes the i-th share of the rows. `mix`: all rows take Σ weight · slot (none: the base alone)."""

    mode: Mode
    mix: tuple[tuple[int, float], ...] = ()


BANK = Route(mode="bank")
BASE = Route(mode="mix")


def single(slot: int) -> Route:
    return Route(mode="mix", mix=((slot, 1.0),))


@dataclass(kw_only=True, eq=False)
class Routing:
    """Mutable, shared by reference. Slots are numbered in the order of `names`.

    factors   live multiplier of each slot's scaling (1.0 until `set_scale`)
    draw      (step, micro) of the dropout masks; None until the first `Adapters.draw`
    merged    what was merged into the base weights, or None
    untied    model configs whose `tie_word_embeddings` the merge had to switch off
    thawed    base parameters that required a gradient before injection
    """

    names: list[str] = field(default_factory=list)
    configs: list[LoraConfig] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    route: Route = BANK
    draw: tuple[int, int] | None = None
    merged: Mapping[str, float] | None = None
    untied: list[Any] = field(default_factory=list)
    thawed: frozenset[str] = frozenset()
    task: Task = "CAUSAL_LM"

    @property
    def n(self) -> int:
        return len(self.names)

    def mix(self) -> tuple[tuple[int, float], ...]:
        """The slots that every row goes through, with their weights; none while a bank of several routes."""
        if self.route.mode == "bank":
            return ((0, 1.0),) if self.n == 1 else ()
        return self.route.mix

    def sole(self) -> int | None:
        """The slot that serves every row at full weight, if there is exactly one."""
        mix = self.mix()
        return mix[0][0] if len(mix) == 1 and mix[0][1] == 1.0 else None

    def dropout_seed(self, slot: int, layer: str) -> int:
        """Of (seed, setting, layer, step, micro) and nothing else: neither n nor the global generator."""
        config = self.configs[slot]
        step, micro = self.draw or (0, 0)
        digest = digest_text(str(config.seed), repr(config), layer, str(step), str(micro))
        return int(digest[:15], 16)
