"""A plan on the terminal: one screen, the reasons cut to its width (`--explain` has them whole)."""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from lorawise.base.findings import Finding
from lorawise.planning.dataset import DataFacts
from lorawise.planning.decision import Decision
from lorawise.planning.explain import shown, shown_range
from lorawise.planning.plan import Plan
from lorawise.planning.table import COLUMNS, TableRow
from lorawise.report import words

LEVELS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
LABEL = 10  # columns of the word each line starts with
BETWEEN = "  "

Cell = str | tuple[str, str]  # text, or text and style


def rendered(lines: Iterable[Text], *, width: int, colour: bool) -> str:
    """Lines as a console `width` columns wide shows them: those of a table are cut, sentences are wrapped."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, color_system="auto" if colour else None)
    for line in lines:
        for part in line.wrap(console, width) if line.no_wrap is None else [line]:
            part.rstrip()
            console.print(part, overflow="ellipsis", no_wrap=True, crop=True, highlight=False)
    return out.getvalue().rstrip("\n")


def screen(plan: Plan, width: int) -> Iterator[Text]:
    """Everything in the order it is asked: what, from what, which numbers, how much memory, how long, what is wrong."""
    yield from _told(
        "plan", f"{_short(plan.model.source)} · {plan.task.name} · {plan.method} · {plan.device.name}", width
    )
    yield from _told("model", _model(plan), width)
    data = "none named: lengths, time and a run file need it" if plan.data is None else _data(plan.data)
    yield from _told("data", data, width)
    yield Text()
    full = plan.method == "full"
    told = [each for each in plan.decisions if not (full and each.name.startswith("lora."))]
    yield from _columns([_decision(plan, decision) for decision in told], "llll", width)
    yield Text("--explain NAME tells the whole reason; * is what you wrote", "dim", no_wrap=True)
    yield Text()
    yield from _told("trains", _trains(plan), width)
    if not full:
        yield from _told("strength", f"alpha·lr {words.rate(plan.strength)}: {plan.strength_in_words}", width)
    yield Text()
    yield from _memory(plan, width)
    yield from _fit(plan, width)
    yield from _time(plan, width)
    if plan.findings:
        yield Text()
        yield from (line for finding in plan.findings for line in _finding(finding, width))


def _short(source: str) -> str:
    """A path as seen from here where that is shorter; a hub id as it is."""
    near = os.path.relpath(source) if Path(source).exists() else source
    return min(source, near, key=len)


def _told(label: str, text: str, width: int) -> Iterator[Text]:
    """A labelled sentence, wrapped under its own first word."""
    console = Console(file=io.StringIO(), width=width)
    for i, part in enumerate(Text(words.visible(text)).wrap(console, max(width - LABEL, 20))):
        part.rstrip()
        yield Text.assemble((f"{label if i == 0 else '':<{LABEL}}", "dim"), part, no_wrap=True)


def _columns(rows: Sequence[Sequence[Cell]], align: str, width: int, indent: int = 0) -> Iterator[Text]:
    """Rows in columns (l or r), the last cut to what is left of the width, after a whole word where there is one."""
    plain = [[(cell, "") if isinstance(cell, str) else cell for cell in row] for row in rows]
    widths = [max(len(row[i][0]) for row in plain) for i in range(len(align))]
    for row in plain:
        line = Text(" " * indent, no_wrap=True)
        for i, (text, style) in enumerate(row):
            padded = text.rjust(widths[i]) if align[i] == "r" else text.ljust(widths[i])
            line.append((BETWEEN if i else "") + padded, style)
        line.rstrip()
        yield _cut(line, width, least=indent + sum(widths[:-1]) + len(BETWEEN) * len(widths))


def _cut(line: Text, width: int, *, least: int) -> Text:
    """The line within `width` columns, after a whole word where that leaves more than `least` of it."""
    if line.cell_len <= width:
        return line
    kept = line.plain[:width].rfind(" ")
    if kept > least and cell_len(line.plain) == len(line.plain):
        line.right_crop(len(line) - kept)
        line.append("…", line.spans[-1].style if line.spans else "")
    else:
        line.truncate(width, overflow="ellipsis")
    return line


def _model(plan: Plan) -> str:
    model = plan.model
    read = "" if model.exact else ", shapes by the family's rule"
    return f"{words.count(model.parameters)} parameters, {model.num_layers} layers, {model.dtype}{read}"


def _data(data: DataFacts) -> str:
    about = "about " if data.measured_by == "bytes" or data.sampled else ""
    parts = [
        f"{data.rows:,} rows, {about}{data.tokens:,} tokens ({data.mean:.0f} a row, 95 % up to "
        f"{data.percentile(0.95):,}, longest {data.longest:,}), {words.percent(data.trained_share)} trained"
    ]
    if data.validation_rows:
        parts.append(f"{data.validation_rows:,} rows held out")
    if data.duplicates:
        parts.append(f"{data.duplicates:,} copies")
    if data.measured_by == "bytes":
        parts.append("estimated from bytes, no tokenizer of the model is on this machine")
    elif data.sampled:
        parts.append(f"measured on {data.encoded:,} rows")
    return "; ".join(parts)


def _decision(plan: Plan, decision: Decision) -> list[Cell]:
    value = shown(decision.value)
    if decision.name == "lora.scaling":
        value += f" (alpha {plan.config.alpha:g})"
    value = words.visible(value if len(value) <= 24 else f"{value[:23]}…")
    number = decision.range and not isinstance(decision.value, str)
    bounds = shown_range(decision.range) if number else ""
    return [
        decision.name.rpartition(".")[2],
        (f"{value} *" if decision.asked else value, "bold"),
        (bounds, "dim"),
        (words.visible(decision.reason), "dim"),
    ]


def _trains(plan: Plan) -> str:
    share = 100 * plan.trainable / plan.total
    counts = f"{words.count(plan.trainable)} of {words.count(plan.total)} parameters ({share:.4f} %)"
    if plan.method == "full":
        return counts
    served = f"unmerged {100 * plan.serving_cost:.2g} % more work a token, merged none"
    return f"{counts}; adapter {words.size(plan.adapter_bytes)}; served {served}"


def _memory(plan: Plan, width: int) -> Iterator[Text]:
    fits, memory = plan.fits, plan.memory
    yield Text.assemble(
        (f"{'memory':<{LABEL}}", "dim"),
        f"{words.size(plan.needed)} of {words.size(plan.device.usable)}: ",
        ("fits", "bold green") if fits else ("does not fit", "bold red"),
        no_wrap=True,
    )
    parts = {"allocated": memory.allocated, "reserved": memory.reserved, "context": memory.context}
    told = ", ".join(f"{name} {words.size(size)}" for name, size in parts.items() if size)
    yield Text.assemble(" " * LABEL, (told, "dim"), no_wrap=True)
    causes: list[list[Cell]] = [[words.size(line.bytes), line.cause, (line.because, "dim")] for line in memory.by_cause]
    yield from _columns(causes, "rll", width, LABEL)


def _fit(plan: Plan, width: int) -> Iterator[Text]:
    sizes = " · ".join(f"{name} {words.size(size)}" for name, size in plan.methods.items())
    yield from _told("methods", sizes, width)
    if plan.fits:
        most = plan.largest
        settings = f"{most.slots} settings side by side" if most.slots != 1 else "no second setting beside it"
        text = f"{most.micro_batch_tokens:,} tokens at once, or one row of {most.max_length:,}; {settings}"
        yield from _told("at most", text, width)
        return
    waiting = [concession for concession in plan.concessions if not concession.taken]
    rows: list[list[Cell]] = []
    for each in waiting:
        after = (f"{words.size(each.needed)} fits", "green") if each.fits else words.size(each.needed)
        rows.append([f"−{words.size(max(each.saves, 0))}", each.setting, after, (each.costs, "dim")])
    for i, line in enumerate(_columns(rows, "rlll", width - LABEL)):
        yield Text.assemble((f"{'to fit' if i == 0 else '':<{LABEL}}", "dim"), line, no_wrap=True)
    if waiting and not waiting[-1].fits:
        yield from _told("", f"none of this makes it fit {plan.device.name}", width)
    device = plan.smallest_device
    known = "none that is known would do" if device is None else f"as it is, {device.name} is the smallest to do"
    yield from _told("device", known, width)


def _time(plan: Plan, width: int) -> Iterator[Text]:
    pace, forecast = plan.pace, plan.forecast
    if pace is None:
        text = f"not known: no throughput is known of {plan.device.name}; a first run calibrates it"
        yield from _told("time", text, width)
        return
    text = f"{pace.low:,.0f} to {pace.high:,.0f} tokens/s ({pace.because})"
    if forecast is not None:
        likely, short, long = map(words.duration, forecast.seconds)
        text = f"{forecast.steps:,} steps, {forecast.tokens:,} tokens: about {likely} ({short} to {long}); {text}"
    if plan.price is not None:
        of, cost = (
            ("a million tokens cost", pace.cost(1e6, plan.price)) if forecast is None else ("costs", forecast.cost)
        )
        if cost is not None:
            text = f"{text}; {of} about {_money(cost[0])} ({_money(cost[1])} to {_money(cost[2])})"
    yield from _told("time", text, width)


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 0.1 else f"{amount:.1g}"


def _finding(finding: Finding, width: int) -> Iterator[Text]:
    console = Console(file=io.StringIO(), width=width)
    text = Text.assemble((f"{finding.level:<{LABEL}}", LEVELS[finding.level]))
    for i, part in enumerate(Text(words.visible(str(finding))).wrap(console, max(width - LABEL, 20))):
        part.rstrip()
        yield Text.assemble(text if i == 0 else " " * LABEL, part, no_wrap=True)


def table_screen(name: str, length: int, rows: Sequence[TableRow], width: int) -> Iterator[Text]:
    """The guide's VRAM table for one model, in GiB, within 80 columns."""
    guide = any(row.guide for row in rows)
    about = f"{_short(name)}: GiB reserved and context, one row of {length:,} tokens at once, bfloat16 base"
    yield from _told("table", about, width)
    yield Text()
    heads = ["", "trains", *(mode if mode != "speed" else method for method, mode in COLUMNS)]
    cells: list[list[Cell]] = [[(head, "dim") for head in [*heads, *(["guide"] if guide else [])]]]
    for row in rows:
        sizes = [_gib(size) for size in row.needed]
        sizes += [""] * (len(COLUMNS) - len(sizes))
        cells.append([row.name, words.count(row.trainable), *sizes, *([row.guide] if guide else [])])
    yield from _columns(cells, "l" + "r" * (len(cells[0]) - 1), width)
    yield Text()
    yield from _told(
        "",
        "frugal: the method to its left, layers computed again; full fine-tuning is the stock Trainer's, without and "
        "with that",
        width,
    )


def _gib(size: int) -> str:
    value = size / 2**30
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}"
