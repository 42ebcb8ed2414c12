"""The command line: one file a command, each of which parses, calls and says what came of it.

    argv ─ app (typer) ─▶ command ─▶ Outcome ─ app.run ─▶ stdout, stderr, exit code

Nothing here loads torch, transformers or pydantic before a command starts to work.
"""

import sys


def main() -> None:
    from lorawise.cli.app import run

    sys.exit(run(sys.argv[1:]))
