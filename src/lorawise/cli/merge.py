"""`lorawise merge`: adapters merged into a base model on disk, with what rounding lost."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorawise.base.errors import UsageError
from lorawise.cli.outcome import Json, Outcome

if TYPE_CHECKING:
    from lorawise.merging.merge import Merged
    from lorawise.merging.writing import MergedLayer, Progress

WORST = 5


def merge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder or .gguf file.")],
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="Adapter folders: DIR, or DIR=0.7.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="New folder for the merged model.")],
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="keep, bfloat16, float16, or float32, which rounds nothing away.")
    ] = "keep",
    into: Annotated[
        str, typer.Option(metavar="WEIGHTS", help="stored; nf4 or nf4-double: what an NF4 run's adapter saw.")
    ] = "stored",
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Merge although the adapter was trained over other weights.")
    ] = False,
    choose: Annotated[
        bool, typer.Option("--choose", help="Merge into stored and NF4 weights, keep what is nearer to an NF4 run.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Then compare the result with the adapter at run time.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Print every layer, not the worst.")] = False,
    as_json: Json = False,
) -> Outcome:
    """Merge adapters into a model, shard by shard, without loading it.

    \b
    lorawise merge ./base runs/first/adapter -o merged
    lorawise merge ./base runs/legal/adapter=0.7 runs/brief/adapter=0.3 -o merged --dtype float32
    """
    from lorawise.merging.merge import merge as merge_files

    weights = weights_of(adapters)
    if (choose or verify) and (len(weights) > 1 or set(weights.values()) != {1.0}):
        raise UsageError("--choose and --verify compare with one adapter at its full weight", cure="name one adapter")
    more: dict[str, object] = {}
    tables: list[str] = []
    with progress_bar("merging", quiet=as_json) as progress:
        if choose:
            merged, more["kl"] = _chosen(model, next(iter(weights)), out, dtype, into, any_base=any_base)
        else:
            merged = merge_files(model, weights, out, dtype=dtype, into=into, any_base=any_base, progress=progress)
    for finding in merged.findings:
        typer.echo(f"{finding.level}: {finding}", err=True)
    tables.append(layer_table(merged.layers, every=layers))
    if choose:
        tables.append(f"merged into the {merged.into} weights: " + _distances(more["kl"]))
    exit_code = 0
    if verify:
        from lorawise.cli import verify as verifying
        from lorawise.merging.verify import verify as compare

        found = compare(model, next(iter(weights)), merged.path, dtype="auto" if dtype == "keep" else dtype)
        more["verify"], exit_code = verifying.document_of(found), 0 if found.same else 1
        tables.append(verifying.table_of(found))
    return Outcome(
        document=document_of(merged) | more,
        table="\n\n".join(tables),
        prose=f"left in {merged.path}",
        exit_code=exit_code,
    )


def _chosen(
    model: str, adapter: str | Path, out: Path, dtype: str, into: str, *, any_base: bool
) -> "tuple[Merged, dict[str, float]]":
    from lorawise.merging.choose import choose

    made = choose(
        model, adapter, out, how="nf4-double" if into == "nf4-double" else "nf4", dtype=dtype, any_base=any_base
    )
    return made.merged, made.kl


def _distances(kl: object) -> str:
    assert isinstance(kl, dict)
    return ", ".join(f"KL from the model as trained {value:.3g} ({into})" for into, value in kl.items())


def weights_of(named: Sequence[str]) -> dict[str | Path, float]:
    """`["a", "b=0.3"]` → {"a": 1.0, "b": 0.3}; a folder whose own name holds `=` is itself."""
    found: dict[str | Path, float] = {}
    for entry in named:
        folder, equals, weight = entry.rpartition("=")
        if not equals or Path(entry).exists():
            folder, weight = entry, "1"
        try:
            value = float(weight)
        except ValueError:
            raise UsageError(f"{entry}: '{weight}' is not a number", expected="DIR=0.7") from None
        if folder in found:
            raise UsageError(f"{folder} is named twice", cure="give it one weight")
        found[folder] = value
    return found


def document_of(merged: "Merged") -> dict[str, object]:
    from lorawise.report.metrics import plain

    return {
        "path": str(merged.path),
        "retention": merged.retention,
        "error": merged.error,
        "layers": [{"name": each.name, "retention": each.retention, "error": each.error} for each in merged.layers],
        "dtype": merged.dtype,
        "into": merged.into,
        "untied": merged.untied,
        "seconds": merged.seconds,
        "peak_memory": merged.peak_memory,
        "findings": plain(merged.findings),
    }


def layer_table(layers: "Sequence[MergedLayer]", *, every: bool) -> str:
    """Every layer, or a line for each kind of projection and the worst layers of all."""
    if not layers:
        return "no low-rank update: whole modules were put in place"
    if every or len(layers) <= 4 * WORST:
        shown = [_row(each.name, [each]) for each in layers]
    else:
        kinds: dict[str, list[MergedLayer]] = defaultdict(list)
        for each in layers:
            kinds[each.name.rpartition(".")[2]].append(each)
        worst = sorted(layers, key=lambda each: -each.error)[:WORST]
        shown = [_row(f"{kind} ({len(members)})", members) for kind, members in kinds.items()]
        shown += ["worst", *(_row(f"  {each.name}", [each]) for each in worst)]
    head = f"{'':<44}{'retention':>11}{'error':>10}"
    return "\n".join([head, *shown, _row("all", layers)])


def _row(name: str, layers: "Sequence[MergedLayer]") -> str:
    from lorawise.merging.arithmetic import Loss

    loss = sum((layer.loss for layer in layers), Loss())
    return f"{name if len(name) <= 43 else '…' + name[-42:]:<44}{loss.retention:>11.2%}{loss.error:>10.2%}"


@contextmanager
def progress_bar(noun: str, *, quiet: bool) -> "Iterator[Progress | None]":
    """A bar of bytes written, on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    with Bar(noun, BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(noun)
        yield lambda done, wanted: bar.update(task, completed=done, total=wanted)
