"""`lorawise verify`: does a merge, an export or a second adapter answer as base + adapter does."""

from typing import TYPE_CHECKING, Annotated

import typer

from lorawise.cli.outcome import Json, Outcome

if TYPE_CHECKING:
    from lorawise.merging.verify import Verified


def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder or .gguf file.")],
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="The adapter, used at run time.")],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Merged folder, .gguf file, or another adapter.")],
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="auto, bfloat16, float16, float32, nf4 or int8.")
    ] = "auto",
    as_json: Json = False,
) -> Outcome:
    """Compare OTHER with MODEL + ADAPTER on probe texts; exit 1 when they differ.

    \b
    lorawise verify ./base runs/first/adapter merged
    """
    from lorawise.merging.verify import verify as compare

    found = compare(model, adapter, other, dtype=dtype)
    return Outcome(document=document_of(found), table=table_of(found), exit_code=0 if found.same else 1)


def document_of(found: "Verified") -> dict[str, object]:
    from lorawise.report.metrics import plain

    return {
        "same": found.same,
        "max_logit_difference": found.max_logit_difference,
        "kl": found.kl,
        "kl_from_base": found.kl_from_base,
        "kl_other_from_base": found.kl_other_from_base,
        "probes": found.probes,
        "findings": plain(found.findings),
    }


def table_of(found: "Verified") -> str:
    lines = [
        "the same" if found.same else "NOT the same",
        f"  {'KL to the adapter at run time':<34}{found.kl:>12.3g} nats a token",
        f"  {'KL of the adapter to its base':<34}{found.kl_from_base:>12.3g}",
        f"  {'largest difference of a logit':<34}{found.max_logit_difference:>12.3g}",
    ]
    return "\n".join([*lines, *(f"{finding.level}: {finding}" for finding in found.findings)])
