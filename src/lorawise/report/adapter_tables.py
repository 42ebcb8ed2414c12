"""What is told of adapters on a terminal: aligned, at most 80 columns wide unless names are longer."""

from collections.abc import Sequence

from lorawise.report import words
from lorawise.store.algebra.diff import Difference
from lorawise.store.algebra.inspect import Inspection
from lorawise.store.algebra.result import Written


def inspection(shown: Inspection, *, all_layers: bool = False) -> str:
    config, source = shown.source.adapter.config, shown.source
    root = "√r (rsLoRA)" if config.rslora else "r"
    facts = [
        ("adapter", str(source.folder)),
        ("base", source.base or "not told"),
        ("setting", f"r {config.r}, alpha {config.alpha:g}, scaling {config.scaling:g} = alpha / {root}"),
        ("ranks", _span([layer.r for layer in shown.layers])),
        ("scalings", _span([layer.scaling for layer in shown.layers])),
        ("modules", f"{len(shown.layers)}: {_kinds([layer.name for layer in shown.layers])}"),
        ("in full", ", ".join(f"{name} {shape}" for name, shape in shown.full.items())),
        ("parameters", f"{words.count(shown.parameters)} in {', '.join(shown.dtypes)}"),
        ("‖ΔW‖", f"{shown.norm:.4g} over all modules"),
        ("digest", source.digest[:16]),
        *_history(shown),
    ]
    lines = [f"{name:<11} {words.short(words.visible(value))}" for name, value in facts if value]
    return "\n".join([*lines, "", *_layers(shown, all_layers=all_layers)])


def _layers(shown: Inspection, *, all_layers: bool) -> list[str]:
    based = any(layer.of_base is not None for layer in shown.layers)
    rows = [["module", "r", "scaling", "‖ΔW‖", "share", "r 90 %", "r 99 %", *(["of base"] if based else [])]]
    ordered = sorted(shown.layers, key=lambda layer: -layer.norm)
    kept = ordered if all_layers else ordered[:12]
    for layer in kept:
        cells = [layer.name, str(layer.r), f"{layer.scaling:.4g}", f"{layer.norm:.4g}", words.percent(layer.share)]
        cells += [str(layer.rank_90), str(layer.rank_99)]
        rows.append([*cells, *([words.percent(layer.of_base)] if based else [])])
    lines = table(rows)
    if len(kept) < len(ordered):
        rest = sum(layer.share for layer in ordered[len(kept) :])
        lines.append(f"and {len(ordered) - len(kept)} more with {words.percent(rest)} of the update; --all shows them")
    return lines


def difference(shown: Difference, names: tuple[str, str], *, all_layers: bool = False) -> str:
    rows = [["module", "distance", "cosine", "reads", "writes", "interference"]]
    ordered = sorted(shown.layers, key=lambda layer: -layer.distance)
    for layer in ordered if all_layers else ordered[:12]:
        cells = ["–"] * 4
        if layer.cosine is not None and layer.reads and layer.writes and layer.interference:
            cells = [f"{layer.cosine:+.3f}", f"{layer.reads.mean:.0f}°", f"{layer.writes.mean:.0f}°"]
            cells.append(" ".join(words.percent(each) for each in layer.interference))
        rows.append([layer.name, words.percent(layer.distance), *cells])
    lines = table(rows)
    if not all_layers and len(ordered) > 12:
        lines.append(f"and {len(ordered) - 12} more; --all shows them")
    on_one, on_other = (words.percent(each) for each in shown.interference)
    lines += [
        "",
        f"distance {words.percent(shown.distance)} of {names[0]}, cosine {shown.cosine:+.3f} over all modules",
        f"on what {names[0]} reads, {names[1]} answers {on_one} as strongly; the other way round {on_other}",
        "reads, writes: mean principal angle; 0° the same directions, 90° unrelated",
    ]
    return "\n".join(lines)


def written(result: Written, sentence: str) -> str:
    told = f"{words.count(result.parameters)} parameters, rank up to {result.rank}"
    return f"{result.path}\n{sentence}\n{told}\nerror {error(result.error)} against the exact update"


def error(value: float) -> str:
    """A relative error: 0, 3e-08, 0.4 %."""
    return "0" if not value else f"{value:.1e}" if value < 1e-4 else f"{100 * value:.3g} %"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right, each as wide as it must be."""
    safe = [[words.visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*safe, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in safe
    ]


def _history(shown: Inspection) -> list[tuple[str, str]]:
    history = shown.source.history
    if history is None:
        return [("history", "none: PEFT or another tool wrote it")]
    operation = history.run.get("operation")
    facts = [("made", f"{history.created}" + (f" by {operation}" if isinstance(operation, str) else ""))]
    return facts + [("parent", digest[:16]) for digest in history.parents]


def _span(values: Sequence[float]) -> str:
    """Only told when modules differ."""
    return f"{min(values):g} to {max(values):g}" if values and min(values) != max(values) else ""


def _kinds(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
