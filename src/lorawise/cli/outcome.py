"""What a command hands back; `app.run` alone prints it and ends the process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import typer


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """document   what --json prints (DESIGN 3)
    table      the result as text, on stdout without --json
    prose      what was left and what to type next, on stderr without --json
    exit_code  0 done; 1 the work ran and met a problem
    """

    document: Mapping[str, object] = field(default_factory=dict)
    table: str = ""
    prose: str = ""
    exit_code: int = 0


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Template = Annotated[
    str | None, typer.Option(metavar="NAME", help="In place of the model's chat template: chatml, or a .jinja file.")
]
