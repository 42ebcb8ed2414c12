"""`lorawise tune`: many settings over one base, the best kept, and by how much it is better."""

from pathlib import Path
from typing import Annotated

import typer

from lorawise.base.errors import ConfigError
from lorawise.cli.outcome import Json, Outcome


def tune(
    run_file: Annotated[Path | None, typer.Argument(metavar="RUN.yaml", help="What all settings start from.")] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS", help="lora.scaling=1,2,4 or 'lora.scaling=0.5..8 log'. Repeatable."),
    ] = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="Settings to search, with ranges [16].")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="Spend at most 2.5 (full runs), '200k tokens' or '30 min'.")
    ] = None,
    sampler: Annotated[str, typer.Option(metavar="NAME", help="Of ranges: tpe, qmc or random.")] = "tpe",
    eliminate: Annotated[str, typer.Option(metavar="NAME", help="halving, median, paired or none.")] = "halving",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the sampler.")] = 0,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Database for Optuna [a journal in the study's folder].")
    ] = None,
    engine: Annotated[str, typer.Option(metavar="NAME", help="process, or ray: packs on a cluster.")] = "process",
    workers: Annotated[int | None, typer.Option(metavar="N", help="Of the cluster [one a GPU].")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Folder of the study [runs/NAME-tune].")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last rung in DIR.")] = False,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Over any field of the run file. Repeatable.")
    ] = None,
    as_json: Json = False,
) -> Outcome:
    """Find the best setting: train many side by side, drop losers early, keep the best adapter.

    \b
    lorawise tune run.yaml
    lorawise tune run.yaml --over lora.scaling=0.5,1,2,4 --over lora.r=8,32
    lorawise tune run.yaml --over 'train.learning_rate=5e-5..3e-3 log' --trials 16
    lorawise tune run.yaml --resume
    """
    if run_file is None:
        raise ConfigError("no run file was given", expected="lorawise tune RUN.yaml")
    from lorawise.report import words
    from lorawise.runfile import load_run_file
    from lorawise.tuning.console import StudyConsole, table_of
    from lorawise.tuning.folder import StudyFolder
    from lorawise.tuning.options import StudyOptions
    from lorawise.tuning.report.page import REPORT_NAME
    from lorawise.tuning.study import tune as tune_settings

    run, _ = load_run_file(run_file, sets or ())
    options = StudyOptions(
        over=tuple(over or ()),
        trials=trials,
        budget=budget,
        sampler=sampler,
        eliminate=eliminate,
        seed=seed,
        storage=storage,
        engine=engine,
        workers=workers,
    )
    console = StudyConsole()
    try:
        found = tune_settings(
            run,
            out=out or Path("runs") / f"{run_file.stem}-tune",
            options=options,
            resume=resume,
            readers=() if as_json else (console,),
        )
    finally:
        console.close()
    events = StudyFolder(path=found.study).events()
    return Outcome(
        document=found.document(),
        table="" if as_json else _rendered(table_of(found.rows, events)),
        prose="\n".join(
            [
                "",
                found.sentence,
                f"cost     {found.full_run_equivalents:.2f} full runs, {words.duration(found.seconds)}",
                f"adapter  {found.adapter}",
                f"report   {found.study / REPORT_NAME}",
                f"table    {found.study / 'results.csv'}",
                f"next     lorawise train {found.study / 'best.yaml'}",
            ]
        ),
    )


def _rendered(table: object) -> str:
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
