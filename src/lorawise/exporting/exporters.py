"""What an exporter is: from an adapter on disk to a folder that one engine reads.

    exporter(source, folder, options) → Exported

It refuses what the engine cannot compute before a byte is written, writes the folder whole or not at all, and measures
‖ΔW_engine − ΔW‖ / ‖ΔW‖ on what the files hold, read as the engine reads them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorawise.base.findings import Finding
from lorawise.base.registry import Registry
from lorawise.merging.arithmetic import Loss
from lorawise.merging.writing import MergedLayer, Progress
from lorawise.store.algebra.result import Source


@dataclass(frozen=True, kw_only=True)
class Options:
    """dtype    `auto` or a name that the engine's form knows
    fold     mlx: whether scalings may be folded into B
    model    the base model, where the form depends on it; empty: the one that the adapter names
    merged   gguf: the whole model with the adapter in it, not the adapter
    progress   told the bytes written and those to write, where a whole model is written
    """

    dtype: str = "auto"
    fold: bool = False
    model: str = ""
    merged: bool = False
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """`scale` multiplies B·A in the engine; `flags` are what its command line needs; `rounded` says that a scaling
    that is no power of two was folded into B, at the cost of one rounding of each number; `opens` is what
    `lorawise verify` can open as OTHER, where it can; `layers` what each weight of a merged model lost."""

    path: Path
    error: float
    rank: int
    scale: float
    files: tuple[str, ...]
    rounded: bool
    flags: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    opens: Path | None = None
    layers: tuple[MergedLayer, ...] = ()

    @property
    def retention(self) -> float:
        """⟨ΔW_got, ΔW⟩ / ‖ΔW‖² over all weights of a merged model."""
        return sum((layer.loss for layer in self.layers), Loss()).retention


Exporter = Callable[[Source, Path, Options], Exported]
EXPORTERS: Registry[Exporter] = Registry("engine")
