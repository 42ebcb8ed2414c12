"""`lorawise export`: an adapter in the form that another engine reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorawise.base.errors import UsageError
from lorawise.cli.outcome import Json, Outcome

if TYPE_CHECKING:
    from lorawise.exporting.exporters import Exported


def export(
    source: Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder, or @NAME from the local store.")],
    to: Annotated[str, typer.Option("--to", metavar="ENGINE", help="vllm, peft, mlx, gguf or ollama.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="A new folder for the result.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help="gguf, ollama: the base, if not ADAPTER's own.", show_default=False
        ),
    ] = "",
    fold: Annotated[
        bool, typer.Option("--fold", help="mlx: fold scalings into B, for modules that differ; vllm, peft always do.")
    ] = False,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE", help="auto, float32, bfloat16, float16; float64 (vllm, peft); q8_0, keep (merged)."
        ),
    ] = "auto",
    store: Annotated[
        Path | None, typer.Option("--store", metavar="DIR", help="The local store.", show_default=False)
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="gguf: the whole model, the adapter merged into the base's .gguf file.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Then compare the result with the adapter at run time.")
    ] = False,
    as_json: Json = False,
) -> Outcome:
    """Write an adapter as another engine reads it; files alone, no base model is loaded.

    \b
    lorawise export runs/first/adapter --to vllm -o served
    lorawise export runs/first/adapter --to gguf --model base.gguf --merged -o out
    """
    from lorawise.cli.adapter import open_source
    from lorawise.cli.merge import progress_bar
    from lorawise.exporting.export import export as work
    from lorawise.exporting.export import opens
    from lorawise.exporting.exporters import Options

    adapter = open_source(source, store)
    with progress_bar("writing", quiet=as_json) as progress:
        options = Options(dtype=dtype, fold=fold, model=model, merged=merged, progress=progress)
        if verify and not opens(to, options):
            raise UsageError(
                f"--verify cannot open what {to} is given",
                expected="vllm, peft, ollama, or gguf with --merged",
                cure="leave it out: the error that is printed is measured on the files, read as the engine reads them",
            )
        done = work(adapter, to, out, options)
    for finding in done.findings:
        typer.echo(f"{finding.level}: {finding}", err=True)
    document, tables, exit_code = document_of(done, to), [_table(done)], 0
    if verify and done.opens is not None:
        from lorawise.cli import verify as verifying
        from lorawise.merging.verify import verify as compare

        found = compare(model or adapter.base, adapter.folder, done.opens)
        document["verify"], exit_code = verifying.document_of(found), 0 if found.same else 1
        tables.append(verifying.table_of(found))
    return Outcome(document=document, table="\n\n".join(tables), prose=f"left in {done.path}", exit_code=exit_code)


def document_of(done: "Exported", engine: str) -> dict[str, object]:
    from lorawise.report.metrics import plain

    document: dict[str, object] = {
        "path": str(done.path),
        "error": done.error,
        "to": engine,
        "rank": done.rank,
        "scale": done.scale,
        "files": list(done.files),
        "rounded": done.rounded,
        "flags": list(done.flags),
        "findings": plain(done.findings),
    }
    if done.layers:
        layers = [{"name": each.name, "retention": each.retention, "error": each.error} for each in done.layers]
        document |= {"retention": done.retention, "layers": layers}
    return document


def _table(done: "Exported") -> str:
    from lorawise.cli.merge import layer_table

    lines = [layer_table(done.layers, every=False), ""] if done.layers else []
    if not done.layers:
        lines.append(f"rank {done.rank}, scale {done.scale:g}, error {done.error:.2g}")
    lines.append(f"files: {', '.join(done.files)}")
    if done.rounded:
        lines.append("a scaling is no power of two: folding it rounded the numbers of B once")
    if done.flags:
        lines.append(f"serve with: {' '.join(done.flags)}")
    return "\n".join(lines)
