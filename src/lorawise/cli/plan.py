"""`lorawise plan`: which numbers, why, what memory, how long; and the run file that follows."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorawise.base.errors import ConfigError
from lorawise.cli.outcome import Json, Outcome

if TYPE_CHECKING:
    from lorawise.planning.dataset import Progress
    from lorawise.planning.plan import Plan


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL|RUN.yaml", help="Hub id, folder, .gguf file, or a run file.")],
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="File or hub id to train on.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="chat, style, domain, language, multitask, classification, new-language or new-behaviour.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="rtx-4090, h100, 24GiB, … [this machine].")
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="METHOD", help="lora, qlora or full.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="RUN.yaml", help="Write the run file.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Your own value; the rest follows. Repeatable."),
    ] = None,
    explain: Annotated[str | None, typer.Option(metavar="KEY", help="One decision at length: lora.scaling.")] = None,
    table: Annotated[bool, typer.Option("--table", help="The guide's memory table for this model.")] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Memory from the real step on tensors with nothing behind them (seconds).")
    ] = False,
    trainer: Annotated[str, typer.Option(metavar="TRAINER", help="Memory of lorawise, or of hf: Trainer and PEFT.")] = (
        "lorawise"
    ),
    price: Annotated[float | None, typer.Option(metavar="MONEY", help="Of an hour of the device.")] = None,
    as_json: Json = False,
) -> Outcome:
    """Which numbers, why, and whether it fits: without torch, weights or a GPU.

    \b
    lorawise plan ./base rows.jsonl --task domain --device 24GiB
    lorawise plan ./base rows.jsonl -o run.yaml
    lorawise plan ./base --explain lora.scaling
    lorawise plan ./base --table
    """
    from lorawise.planning.planner import plan as make_plan

    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already", cure="choose another name with -o, or remove it")
    views = [name for name, asked in (("--table", table), ("--explain", explain is not None)) if asked]
    if views and (trace or out is not None or len(views) > 1):
        rest = [*views[1:], *(["--trace"] if trace else []), *(["-o"] if out is not None else [])]
        raise ConfigError(f"{views[0]} with {' and '.join(rest)}", expected="one of them", cure="ask twice")
    with _Bar(quiet=as_json) as bar:
        planned = make_plan(
            model,
            data,
            task=task,
            device=device,
            method=method,
            sets=sets or (),
            trainer=trainer,
            price=price,
            progress=bar,
        )
    if table:
        return _table(planned)
    if trace:
        planned = _traced(planned)
    if explain is not None:
        text = planned.explain(explain, width=_terminal()[0])
        return Outcome(document={"explain": explain, "text": text}, table=text)
    return _told(planned, out)


def _traced(planned: "Plan") -> "Plan":
    """The same plan with the memory that the real model's step on fake tensors takes; loads torch."""
    from dataclasses import replace

    from lorawise.training.trace import trace

    load, dtype = planned.load, planned.settled.text("base.dtype")
    untraced = "a base in int8" if dtype == "int8" else "a classifier" if load.model.is_classifier else ""
    if untraced:
        raise ConfigError(f"{untraced} is not traced", cure="leave --trace out: the closed form has it")
    traced = trace(
        planned.model.config,
        None if planned.method == "full" else load.config,
        method=planned.method,
        workload=load.workload,
        mode=load.mode,
        trainer="hf" if planned.method == "full" else load.trainer,
        slots=load.slots,
        dtype=dtype if dtype in ("bfloat16", "float16", "float32") else "bfloat16",
        device=planned.device.name if planned.device.kind == "cuda" else planned.device.kind,
    )
    return replace(planned, memory=traced.memory)


def _told(planned: "Plan", out: Path | None) -> Outcome:
    from lorawise.planning.document import document
    from lorawise.report.metrics import plain
    from lorawise.report.plan import rendered, screen

    prose = ""
    if out is not None:
        _write(planned, out)
        prose = f"run file  {out}\nnext      lorawise train {out}"
    failed = not planned.fits or any(finding.level == "error" for finding in planned.findings)
    width, colour = _terminal()
    return Outcome(
        document=plain(document(planned)),
        table=rendered(screen(planned, width), width=width, colour=colour),
        prose=prose,
        exit_code=1 if failed else 0,
    )


def _write(planned: "Plan", out: Path) -> None:
    from lorawise.base.files import write_text

    text = planned.run.to_yaml()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)


def _table(planned: "Plan") -> Outcome:
    from dataclasses import asdict

    from lorawise.planning.table import COLUMNS, vram_table
    from lorawise.report.plan import rendered, table_screen

    length = planned.settled.whole("train.max_length")
    rows = list(vram_table(planned.model, planned.device, length=length))
    width, colour = _terminal()
    return Outcome(
        document={
            "model": planned.model.source,
            "length": length,
            "columns": [f"{method} {mode}" for method, mode in COLUMNS],
            "rows": [asdict(row) for row in rows],
        },
        table=rendered(table_screen(planned.model.source, length, rows, width), width=width, colour=colour),
    )


def _terminal() -> tuple[int, bool]:
    """(columns, colours) of stdout; 100 columns and none where it is a file."""
    import os
    import shutil

    stream = sys.__stdout__
    terminal = stream is not None and stream.isatty() and "NO_COLOR" not in os.environ
    return max(60, shutil.get_terminal_size((100, 24)).columns), terminal


class _Bar:
    """A progress bar on stderr, once reading the data has taken a second."""

    def __init__(self, *, quiet: bool) -> None:
        from time import monotonic

        self.quiet = quiet or not sys.stderr.isatty()
        self._clock = monotonic
        self._started = monotonic()
        self._shown = False

    def __enter__(self) -> "Progress":
        return self

    def __call__(self, done: int, of: int) -> None:
        if not self.quiet and self._clock() - self._started > 1:
            filled = 24 * done // max(of, 1)
            print(f"\r{'━' * filled}{' ' * (24 - filled)} {done:,} of {of:,} rows read", end="", file=sys.stderr)
            self._shown = True

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr)
