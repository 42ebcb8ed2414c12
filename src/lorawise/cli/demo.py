"""`lorawise demo`: the main job on the embedded default."""

from pathlib import Path
from typing import Annotated

import typer

from lorawise.base.errors import UsageError
from lorawise.cli.outcome import Json, Outcome


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder of the run.")] = Path("runs/demo"),
    as_json: Json = False,
) -> Outcome:
    """A small real model learns a small real job on this machine."""
    raise UsageError("the demo is not built yet")
