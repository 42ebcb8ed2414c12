"""`lorawise eval`: how good a base and an adapter are on rows they did not see."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorawise.cli.outcome import Json, Outcome, Template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorawise.training.measure import Measured


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder or .gguf file.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="File or hub id of rows with answers.")],
    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="An adapter, measured beside the base.")] = None,
    answers: Annotated[int, typer.Option(min=0, metavar="N", help="Rows answered in full for exact match.")] = 50,
    max_length: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens a row may have.")] = 2048,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="auto, bfloat16, float16 or float32.")] = "auto",
    template: Template = None,
    as_json: Json = False,
) -> Outcome:
    """Loss, perplexity and exact match of answers.

    \b
    lorawise eval ./base test.jsonl --adapter runs/first/adapter
    """
    from lorawise.data.read import read_rows
    from lorawise.models.load import load
    from lorawise.report.metrics import plain
    from lorawise.training.measure import measure

    rows = read_rows(data)
    loaded = load(model, {} if adapter is None else {"adapter": adapter}, dtype=dtype, template=template)
    for finding in loaded.findings:
        typer.echo(f"{finding.level}: {finding}", err=True)
    measured = list(measure(loaded, rows, answers=answers, max_length=max_length))
    document = {"rows": plain(measured), "findings": plain(loaded.findings)}
    return Outcome(document=document, table=_table(measured))


def _table(measured: "Sequence[Measured]") -> str:
    from lorawise.report import words

    shares = {"exact match": "exact_match", "accuracy": "accuracy", "F1": "f1"}
    shown = [(noun, key) for noun, key in shares.items() if any(getattr(each, key) is not None for each in measured)]
    lines = [f"{'':<10}{'loss':>10}{'perplexity':>12}" + "".join(f"{noun:>14}" for noun, _ in shown)]
    for each in measured:
        cells = "".join(f"{words.percent(getattr(each, key)):>14}" for _, key in shown)
        lines.append(f"{each.name:<10}{words.loss(each.loss):>10}{each.perplexity:>12.3f}{cells}")
    return "\n".join(lines)
