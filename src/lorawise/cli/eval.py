"""`lorawise eval`: how good a base, adapters, stacks of them and merged models are on rows they did not see."""

from typing import TYPE_CHECKING, Annotated

import typer

from lorawise.base.errors import UsageError
from lorawise.cli.named import adapters_of, stack_name, stack_of
from lorawise.cli.options import in_options, reworded
from lorawise.cli.outcome import Json, Outcome, Template

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lorawise.merging.judge import Judged, Pair
    from lorawise.training.measure import Measured
    from lorawise.training.paired import Gap

OPTIONS = {
    "train.max_length": "--max-length",
    "data.template": "--template",
    "data.format": "--format",
    "data.on_bad": "--on-bad",
    "base.dtype": "--dtype",
}


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder or .gguf file.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="File or hub id of rows with answers.")],
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="An adapter; DIR alone when it is the only one.")
    ] = None,
    stack: Annotated[
        list[str] | None, typer.Option(metavar="'A=0.7 B=0.3'", help="A weighted sum of the adapters, at run time.")
    ] = None,
    merged: Annotated[
        list[str] | None, typer.Option(metavar="NAME=MODEL", help="A merged model, judged against its adapters.")
    ] = None,
    answers: Annotated[int, typer.Option(min=0, metavar="N", help="Rows answered in full for exact match.")] = 50,
    max_length: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens a row may have.")] = 2048,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="auto, bfloat16, float16, float32, nf4 or int8.")
    ] = "auto",
    template: Template = None,
    format: Annotated[str, typer.Option(metavar="NAME", help="Of the rows, where their keys do not tell.")] = "auto",
    on_bad: Annotated[str, typer.Option(metavar="WORD", help="A row that cannot be used: stop or skip.")] = "stop",
    as_json: Json = False,
) -> Outcome:
    """Loss, perplexity and exact match of answers, compared row by row.

    \b
    lorawise eval ./base test.jsonl --adapter runs/first/adapter
    lorawise eval ./base test.jsonl --adapter law=a --adapter brief=b --stack "law=0.7 brief=0.3" --merged both=merged
    """
    from lorawise.data.read import bad_rows, read_rows
    from lorawise.merging.judge import judge
    from lorawise.report.metrics import plain

    weights = [stack_of(text) for text in stack or ()]
    stacks = {stack_name(each): each for each in weights}
    named, whole = adapters_of(adapter or []), _merged_of(merged or [])
    with in_options(OPTIONS):
        skipping = bad_rows(on_bad)
        rows = read_rows(data, format=None if format == "auto" else format.replace("-", "_"), on_bad=skipping)
        judged = judge(
            model,
            rows,
            adapters=named,
            stacks=stacks,
            merged=whole,
            answers=answers,
            max_length=max_length,
            dtype=dtype,
            template=template,
            on_bad=skipping,
        )
    for finding in judged.findings:
        typer.echo(f"{finding.level}: {reworded(str(finding), OPTIONS)}", err=True)
    document = {"rows": plain(judged.rows), "pairs": plain(judged.pairs), "findings": plain(judged.findings)}
    return Outcome(document=document, table=_table(judged))


def _merged_of(named: "Sequence[str]") -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in named:
        name, equals, model = entry.partition("=")
        if not equals:
            name, model = "merged", entry
        if not name or not model or name in found:
            raise UsageError(f"--merged {entry}", expected="NAME=MODEL, each name once")
        found[name] = model
    return found


def _table(judged: "Judged") -> str:
    from lorawise.report.adapter_tables import table

    shares = [
        (noun, key)
        for noun, key in (("exact match", "exact_match"), ("accuracy", "accuracy"), ("F1", "f1"))
        if any(getattr(each, key) is not None for each in judged.rows)
    ]
    to_base = {pair.name: pair for pair in judged.pairs if pair.against == "base"}
    head = ["", "loss", "perplexity", *(noun for noun, _ in shares), *(["loss against base"] if to_base else [])]
    rows = [[*_cells(each, [key for _, key in shares]), *_against(to_base, each.name)] for each in judged.rows]
    lines = table([head, *rows])
    family = [pair for pair in judged.pairs if pair.against != "base"]
    if family:
        lines += ["", *table([["against its parents", "loss", "", "exact match", ""], *_families(family)])]
    if to_base:
        lines += ["", *_method(judged.pairs)]
    return "\n".join(lines)


def _families(pairs: "Sequence[Pair]") -> "Iterator[list[str]]":
    for name in dict.fromkeys(pair.name for pair in pairs):
        yield [name, "", "", "", ""]
        yield from (_relation(pair) for pair in pairs if pair.name == name)


def _cells(each: "Measured", keys: "Sequence[str]") -> list[str]:
    from lorawise.report import words

    shown = [words.percent(getattr(each, key)) for key in keys]
    return [each.name, words.loss(each.loss), f"{each.perplexity:.3f}", *shown]


def _against(to_base: "dict[str, Pair]", name: str) -> list[str]:
    if not to_base:
        return []
    return ["" if name not in to_base else _gap(to_base[name].loss, 1, 4)]


def _relation(pair: "Pair") -> list[str]:
    cells = [f"  {pair.against}", _gap(pair.loss, 1, 3), _verdict(pair.loss, lower_is_better=True)]
    if pair.exact_match is None:
        return [*cells, "–", ""]
    return [*cells, _gap(pair.exact_match, 100, 1) + " %", _verdict(pair.exact_match, lower_is_better=False)]


def _gap(gap: "Gap", by: float, digits: int) -> str:
    """`−0.7013 [−0.7512, −0.6534]`."""
    import math

    if math.isnan(gap.difference):
        return "diverged"
    shown = f"{by * gap.difference:+.{digits}f}"
    if math.isinf(gap.low):
        return shown
    return f"{shown} [{by * gap.low:+.{digits}f}, {by * gap.high:+.{digits}f}]"


def _verdict(gap: "Gap", *, lower_is_better: bool) -> str:
    if not gap.tells:
        return "–"
    return "better" if (gap.difference < 0) == lower_is_better else "worse"


def _method(pairs: "Sequence[Pair]") -> list[str]:
    asked = pairs[0].exact_match
    lines = [f"{pairs[0].loss.rows} rows, paired; [95 %] by the paired bootstrap over rows"]
    if asked is not None:
        lines.append(f"{asked.rows} answers, paired; [95 %] after Agresti and Min")
    return lines
