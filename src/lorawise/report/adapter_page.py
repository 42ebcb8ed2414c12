"""The layer × module map of one adapter as a page: where the update is, how strong, how many directions it takes.

One self-contained page without scripts: a table whose cells are coloured by ‖ΔW‖, or by ‖ΔW‖ / ‖W‖ where the base was
given. Every name that came from a file is escaped by the template.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorawise.base.files import write_text
from lorawise.report import words
from lorawise.report.html import rendered, resource
from lorawise.store.algebra.inspect import Inspection, Layer

_LAYER = re.compile(r"(?P<before>(?:.*?\.)?)(?P<index>\d+)\.(?P<kind>.+)")
OUTSIDE = "–"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """`shade` from 0 to 1, the strongest cell of the page."""

    text: str
    title: str
    shade: float


def write_map(shown: Inspection, path: Path) -> None:
    """Write the page to `path`; `StorageError` when the disk refuses."""
    write_text(path, render_map(shown))


def render_map(shown: Inspection) -> str:
    places = {place(layer.name): layer for layer in shown.layers}
    kinds = list(dict.fromkeys(kind for _, kind in places))
    rows = sorted({row for row, _ in places}, key=lambda row: (row == OUTSIDE, int(row) if row != OUTSIDE else 0))
    based = any(layer.of_base is not None for layer in shown.layers)
    strongest = max((_strength(layer, based) for layer in shown.layers), default=0.0)
    config = shown.source.adapter.config
    return rendered(
        resource("adapter.html.j2"),
        name=str(shown.source.folder),
        base=shown.source.base,
        setting=str(config),
        norm=f"{shown.norm:.4g}",
        parameters=words.count(shown.parameters),
        digest=shown.source.digest[:16],
        kinds=kinds,
        rows=[(row, [_cell(places.get((row, kind)), strongest, based) for kind in kinds]) for row in rows],
        measure="‖ΔW‖ / ‖W‖" if based else "‖ΔW‖",
        strongest=words.percent(strongest) if based else f"{strongest:.3g}",
        totals=_totals(shown.layers, kinds),
        full=[f"{name} {shape}" for name, shape in shown.full.items()],
    )


def place(name: str) -> tuple[str, str]:
    """`model.layers.3.self_attn.q_proj` → (3, self_attn.q_proj); outside the layers the row is a dash."""
    found = _LAYER.fullmatch(name)
    return (found["index"], found["kind"]) if found else (OUTSIDE, name)


def _strength(layer: Layer, based: bool) -> float:
    return (layer.of_base or 0.0) if based else layer.norm


def _cell(layer: Layer | None, strongest: float, based: bool) -> Cell | None:
    if layer is None:
        return None
    strength = _strength(layer, based)
    told = (
        f"{layer.name}: r {layer.r}, scaling {layer.scaling:.4g}, ‖ΔW‖ {layer.norm:.4g}, {words.percent(layer.share)} "
    )
    told += f"of the update, {layer.rank_90} directions hold 90 %, {layer.rank_99} hold 99 %"
    text = words.percent(layer.of_base) if based else f"{strength:.3g}"
    return Cell(text=text, title=told, shade=round(strength / strongest, 3) if strongest else 0.0)


def _totals(layers: Sequence[Layer], kinds: Sequence[str]) -> list[str]:
    """Of each kind of module, its share of the update."""
    return [words.percent(sum(layer.share for layer in layers if place(layer.name)[1] == kind)) for kind in kinds]
