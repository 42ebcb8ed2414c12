"""`lorawise check`: what is wrong with a setting, rows, a run or an adapter, and the cure."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorawise.base.errors import ConfigError, UsageError
from lorawise.cli.outcome import Json, Outcome


class Form(StrEnum):
    """How findings are printed."""

    text = "text"
    sarif = "sarif"
    github = "github"


def check(
    paths: Annotated[list[Path] | None, typer.Argument(metavar="PATH...", help="Files and folders.")] = None,
    form: Annotated[Form, typer.Option("--format", help="text, sarif or github (annotations).")] = Form.text,
    select: Annotated[str, typer.Option(metavar="CODES", help="Only these: LW105, or LW1 for all of a group.")] = "",
    ignore: Annotated[str, typer.Option(metavar="CODES", help="None of these.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 on warnings too.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Write what is safe to write, and show the diff.")] = False,
    base: Annotated[Path | None, typer.Option(metavar="DIR", help="The base, to see what merging loses.")] = None,
    explain: Annotated[str | None, typer.Option(metavar="CODE", help="The page of one rule.")] = None,
    convert: Annotated[
        str | None, typer.Option(metavar="TOOL", help="Print the setting for another tool, alpha·lr unchanged.")
    ] = None,
    as_json: Json = False,
) -> Outcome:
    """Findings over run files, other tools' configs, scripts, rows, runs and adapters.

    Nothing is run, changed or fetched. Exit 1 when there are errors.

    \b
    lorawise check run.yaml train.py axolotl.yml adapter/ runs/7/
    lorawise check --explain LW105
    lorawise check --convert mlx-lm axolotl.yml
    """
    if explain is not None:
        return _explain(explain)
    if not paths:
        raise UsageError("no path was given", expected="lorawise check PATH...", cure="lorawise check --help")
    if convert is not None:
        return _convert(paths, convert)
    return _check(paths, form, _codes(select), _codes(ignore), strict=strict, fix=fix, base=base)


def _codes(text: str) -> list[str]:
    return [code for code in text.replace(",", " ").split() if code]


def _explain(code: str) -> Outcome:
    from lorawise.checking.manual import page
    from lorawise.checking.rules import RULES

    text = page(code)
    return Outcome(document={"code": code, "level": RULES[code].level, "page": text}, table=text)


def _convert(paths: list[Path], tool: str) -> Outcome:
    from lorawise.checking.conversion import convert

    if len(paths) != 1:
        raise ConfigError(f"{len(paths)} paths to convert", expected="one file")
    setting, text = convert(paths[0], tool)
    lora = {"r": setting.r, "alpha": setting.alpha, "scaling": setting.scaling}
    strength = "" if setting.strength is None else f", alpha·lr {setting.strength:.3g}"
    return Outcome(
        document={
            "tool": tool,
            "text": text,
            "lora": lora,
        },
        table=text.rstrip(),
        prose=f"from {setting.tool}: {setting}{strength}",
    )


def _check(
    paths: list[Path],
    form: Form,
    select: list[str],
    ignore: list[str],
    *,
    strict: bool,
    fix: bool,
    base: Path | None,
) -> Outcome:
    from lorawise import __version__
    from lorawise.checking import check as look
    from lorawise.checking import outputs
    from lorawise.checking.fixing import apply_fixes

    if base is not None and not base.is_dir():
        raise UsageError(f"{base} is no folder", expected="--base DIR with the base's safetensors")
    report = look(*paths, select=select, ignore=ignore, strict=strict, base=base)
    diff = ""
    if fix and report.fixes:
        diff = apply_fixes(report.fixes)
        report = look(*paths, select=select, ignore=ignore, strict=strict, base=base)
    if form is Form.sarif:
        table = outputs.as_sarif_text(report, version=__version__)
    elif form is Form.github:
        table = outputs.as_github(report)
    else:
        table = "\n\n".join(part for part in (diff, outputs.as_text(report, width=_width())) if part)
    safe = sum(len(fixes) for fixes in report.fixes.values())
    prose = f"{safe} can be fixed with --fix" if safe and not fix and form is Form.text else ""
    document = outputs.as_document(report) | ({"diff": diff} if fix else {})
    return Outcome(document=document, table=table, prose=prose, exit_code=1 if report.failed else 0)


def _width() -> int:
    import shutil

    return max(60, min(120, shutil.get_terminal_size().columns))
