"""What an exporter is: from an adapter on disk to a folder that one engine reads.

    exporter(source, folder, options) → Exported

It refuses what the engine cannot compute before a byte is written, writes the folder whole or not at all, and measures
‖ΔW_engine − ΔW‖ / ‖ΔW‖ on what the files hold, read as the engine reads them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorawise.base.registry import Registry
from lorawise.store.algebra.result import Source


@dataclass(frozen=True, kw_only=True)
class Options:
    """dtype  `auto` or a name in `store.algebra.result.DTYPES`;  fold  whether scalings may be folded into B."""

    dtype: str = "auto"
    fold: bool = False


@dataclass(frozen=True, kw_only=True)
class Exported:
    """`scale` multiplies B·A in the engine; `flags` are what its command line needs; `rounded` says that a scaling
    that is no power of two was folded into B, at the cost of one rounding of each number."""

    path: Path
    error: float
    rank: int
    scale: float
    files: tuple[str, ...]
    rounded: bool
    flags: tuple[str, ...] = ()


Exporter = Callable[[Source, Path, Options], Exported]
EXPORTERS: Registry[Exporter] = Registry("engine")
