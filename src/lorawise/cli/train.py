"""`lorawise train`: a run file becomes an adapter in a folder."""

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from lorawise.base.errors import ConfigError
from lorawise.cli.outcome import Json, Outcome

if TYPE_CHECKING:
    from lorawise.base.findings import Finding
    from lorawise.runfile import RunFile


def train(
    run_file: Annotated[Path | None, typer.Argument(metavar="RUN.yaml", help="What to run.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Folder of the run [runs/NAME of the run file].")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest good checkpoint in DIR.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Stop after preflight: does it fit, is the data right.")
    ] = False,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Hub id, folder or .gguf file.")] = None,
    data: Annotated[str | None, typer.Option(metavar="DATA", help="File or hub id to train on.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Over any field: --set lora.r=32. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> Outcome:
    """Train an adapter: preflight, progress, evaluation, checkpoints.

    \b
    lorawise train run.yaml
    lorawise train run.yaml --set lora.scaling=4 -o runs/stronger
    lorawise train --model ./base --data rows.jsonl -o runs/first
    lorawise train -o runs/first --resume
    torchrun --nproc-per-node 2 -m lorawise train run.yaml
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in (("model", model), ("data.train", data)) if value]
    out = out or Path("runs") / _name(run_file, data)
    if run_file is None and resume:
        run_file = out / "run.yaml"
    run, findings = _load(run_file, [*overrides, *(sets or ())])
    return _train(run, findings, out, resume=resume, dry_run=dry_run, as_json=as_json)


def _name(run_file: Path | None, data: str | None) -> str:
    if run_file is not None:
        return run_file.stem
    return Path(data).stem if data else "run"


def _load(run_file: Path | None, sets: list[str]) -> "tuple[RunFile, list[Finding]]":
    from lorawise.runfile import load_run_file, make_run_file

    if run_file is not None:
        return load_run_file(run_file, sets)
    if not {"model", "data.train"} <= {entry.partition("=")[0] for entry in sets}:
        raise ConfigError("no run file was given", expected="RUN.yaml, or both --model and --data")
    return make_run_file({}, sets)


def _train(
    run: "RunFile", findings: "list[Finding]", out: Path, *, resume: bool, dry_run: bool, as_json: bool
) -> Outcome:
    from lorawise.report.console import ConsoleReader
    from lorawise.report.metrics import plain
    from lorawise.training.following import follow
    from lorawise.training.peers import joined
    from lorawise.training.run import train as train_run

    readers = () if as_json else (ConsoleReader(),)
    with joined() as peers:
        if not peers.leads:
            follow(peers)
            return Outcome()
        result = train_run(
            run, out=out, resume=resume, dry_run=dry_run, findings=findings, readers=readers, peers=peers
        )
    return Outcome(document=plain(result), prose="" if dry_run else _what_next(out, run))


def _what_next(out: Path, run: "RunFile") -> str:
    named = quote(f"{out.name}={out / 'adapter'}")
    template = f" --template {quote(run.data.template)}" if run.data.template else ""
    return "\n".join(
        [
            f"adapter  {out / 'adapter'}",
            f"report   {out / 'report.html'}",
            f"next     lorawise chat {quote(run.model)} --adapter {named}{template}",
        ]
    )
