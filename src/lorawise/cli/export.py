"""`lorawise export`: an adapter in the form that another engine reads."""

from pathlib import Path
from typing import Annotated

import typer

from lorawise.cli.outcome import Json, Outcome


def export(
    source: Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder, or @NAME from the local store.")],
    to: Annotated[str, typer.Option("--to", metavar="ENGINE", help="vllm, peft, mlx or gguf.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="A new folder for the result.")],
    model: Annotated[
        str,
        typer.Option("--model", metavar="MODEL", help="gguf: the base, if not the one ADAPTER names.", show_default=""),
    ] = "",
    fold: Annotated[
        bool, typer.Option("--fold", help="mlx: fold scalings into B, for modules that differ; vllm, peft always do.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="auto, float32, bfloat16, float16; vllm, peft: float64.")
    ] = "auto",
    store: Annotated[
        Path | None, typer.Option("--store", metavar="DIR", help="The local store.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> Outcome:
    """Write an adapter as another engine reads it; files alone, no base model.

    \b
    lorawise export runs/first/adapter --to vllm -o served
    """
    from lorawise.cli.adapter import open_source
    from lorawise.exporting.export import export as work
    from lorawise.exporting.exporters import Options

    done = work(open_source(source, store), to, out, Options(dtype=dtype, fold=fold, model=model))
    document = {
        "path": str(done.path),
        "error": done.error,
        "to": to,
        "rank": done.rank,
        "scale": done.scale,
        "files": list(done.files),
        "rounded": done.rounded,
        "flags": list(done.flags),
    }
    lines = [f"rank {done.rank}, scale {done.scale:g}, error {done.error:.2g}", f"files: {', '.join(done.files)}"]
    if done.rounded:
        lines.append("a scaling is no power of two: folding it rounded the numbers of B once")
    if done.flags:
        lines.append(f"serve with: {' '.join(done.flags)}")
    return Outcome(document=document, table="\n".join(lines), prose=f"left in {done.path}")
