"""The commands in one typer app, and the one place that turns what happened into output and an exit code.

0 done; 1 the work ran and met a problem; 2 the call or a file is wrong; 130 stopped by a signal. Under --json stdout
holds one document and nothing else: what a library prints while the command works goes to stderr.
"""

import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TextIO

import typer

from lorawise import __version__
from lorawise.base.errors import LorawiseError
from lorawise.cli.adapter_store import adapter as adapter_commands
from lorawise.cli.chat import chat
from lorawise.cli.check import check
from lorawise.cli.demo import demo
from lorawise.cli.eval import evaluate
from lorawise.cli.export import export
from lorawise.cli.merge import merge
from lorawise.cli.outcome import Outcome
from lorawise.cli.plan import plan
from lorawise.cli.train import train
from lorawise.cli.tune import tune
from lorawise.cli.verify import verify

WHERE_TO_REPORT = "https://github.com/lorawise/lorawise/issues"

HELP = ("-h", "--help")

app = typer.Typer(
    name="lorawise",
    add_completion=False,
    add_help_option=False,  # its parsing would load pydantic (0.2 s) before every command; `_of_the_whole` answers
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": list(HELP)},
)
app.command("demo")(demo)
app.command("plan")(plan)
app.command("train")(train)
app.command("tune")(tune)
app.command("eval")(evaluate)
app.command("chat")(chat)
app.command("check")(check)
app.command("merge")(merge)
app.command("export")(export)
app.command("verify")(verify)
app.add_typer(adapter_commands)


@app.callback()
def lorawise() -> None:
    """LoRA without guesswork: train an adapter, see that it works, talk to it.

    Every command takes --json. `lorawise COMMAND --help` says what it wants, `lorawise --version` which one this is.
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code. Nothing escapes but what ends the interpreter itself."""
    arguments = arguments or ["--help"]
    _make_streams_safe()
    as_json = "--json" in arguments
    try:
        if (told := _of_the_whole(arguments[0])) is not None:
            print(told)
            return 0
        outcome = _work(arguments, quiet_stdout=as_json)
        if as_json and (outcome.document or outcome.exit_code):
            print(json.dumps(outcome.document, allow_nan=False, ensure_ascii=not _speaks_utf8(sys.stdout)))
        else:
            _say(outcome.table, sys.stdout)
            with contextlib.suppress(OSError):
                _say(outcome.prose, sys.stderr)
        sys.stdout.flush()
    except OSError as problem:  # stdout: its reader has left, or the disk it goes to is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(problem, BrokenPipeError):
            with contextlib.suppress(OSError):
                _say(f"error: stdout cannot be written: {problem.strerror}", sys.stderr)
        return 1
    return outcome.exit_code


def _make_streams_safe() -> None:
    """A closed stdout or stderr (`>&-`; Python has None there) swallows what is printed; letters that the terminal's
    encoding lacks are printed as escapes."""
    streams: dict[str, TextIO | None] = {"stdout": sys.stdout, "stderr": sys.stderr}
    for name, stream in streams.items():
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper) and not _speaks_utf8(stream):
            stream.reconfigure(errors="backslashreplace")


def _speaks_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") in ("utf8", "utf8sig")


def _of_the_whole(option: str) -> str | None:
    """What `lorawise --help` and `lorawise --version` print."""
    if option == "--version":
        return f"lorawise {__version__}"
    if option not in HELP:
        return None
    command = typer.main.get_command(app)
    return command.get_help(command.make_context("lorawise", [], resilient_parsing=True))


def _work(arguments: Sequence[str], *, quiet_stdout: bool) -> Outcome:
    wants_help = bool(set(HELP) & set(arguments))
    aside = contextlib.redirect_stdout(sys.stderr) if quiet_stdout and not wants_help else contextlib.nullcontext()
    try:
        with aside:
            result = app(args=list(arguments), prog_name="lorawise", standalone_mode=False)
    except LorawiseError as problem:
        return _failure(problem.to_json(), problem.exit_code)
    except typer.TyperException as problem:
        return _failure(_usage(problem), 2)
    except typer.Abort:
        return _failure(_INTERRUPTED, 130)
    except BrokenPipeError:
        raise
    except Exception as problem:  # noqa: BLE001 - the last one to see it: every other handler is above
        return _unexpected(problem)
    if isinstance(result, Outcome):
        return result
    code = result if isinstance(result, int) else 0
    return _failure(_INTERRUPTED, code) if code == 130 else Outcome(exit_code=code)


_INTERRUPTED = {"code": "interrupted", "found": "stopped", "expected": "", "cure": ""}


def _usage(problem: typer.TyperException) -> dict[str, str]:
    found = problem.format_message() if isinstance(problem, typer.BadParameter) else str(problem)
    possible = vars(problem).get("possibilities") or ()
    near = f"did you mean {' or '.join(sorted(possible))}?" if possible else ""
    context = vars(problem).get("ctx")
    path = context.command_path if context is not None else "lorawise"
    return {"code": "usage", "found": found, "expected": near, "cure": f"{path} --help"}


def _unexpected(problem: Exception) -> Outcome:
    if os.environ.get("LORAWISE_DEBUG") == "1":
        traceback.print_exception(problem, file=sys.stderr)
    kind = type(problem).__name__
    return _failure(
        {
            "code": "unexpected",
            "found": f"{kind}: {problem}" if str(problem) else kind,
            "expected": "",
            "cure": f"LORAWISE_DEBUG=1 shows where; please report it at {WHERE_TO_REPORT}",
        },
        1,
    )


def _failure(error: Mapping[str, str], exit_code: int) -> Outcome:
    lines = [f"error: {error['found']}"]
    lines += [f"  {name}: {error[name]}" for name in ("expected", "cure") if error[name]]
    return Outcome(document={"error": dict(error)}, prose="\n".join(lines), exit_code=exit_code)


def _say(text: str, stream: TextIO) -> None:
    if text:
        print(text, file=stream)
