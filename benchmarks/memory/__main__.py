"""`python -m benchmarks.memory`: predicted beside measured, traced and in closed form, and beside other estimators.

    strict   peaks published by others, with their configuration
    guide    the guide's eight configurations of Llama-3.1-8B, by its own stack and by ours

Nothing is fitted: the only thing taken from a source is how it was run. The result is kept with date and versions.
"""

import argparse
import platform
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.keeping import keep, today, versions
from benchmarks.memory.facts import facts_of
from benchmarks.memory.peers import PEERS, asked, peer_versions
from benchmarks.memory.rows import LLAMA_8B, STRICT, Row
from lorawise.lora.config import LoraConfig
from lorawise.planning.memory import Stack, Workload, predict
from lorawise.planning.memory.model import Method
from lorawise.training.trace import trace

GIB = 2**30
GUIDE: tuple[tuple[str, Method, int, str, float], ...] = (
    ("r 8, q v", "lora", 8, "qv", 17),
    ("r 8, attention", "lora", 8, "attention", 18),
    ("r 16, attention", "lora", 16, "attention", 20),
    ("r 16, all linear", "lora", 16, "all-linear", 23),
    ("r 32, attention", "lora", 32, "attention", 22),
    ("r 64, all linear", "lora", 64, "all-linear", 30),
    ("full fine-tuning", "full", 0, "", 72),
    ("QLoRA, r 16, attention", "qlora", 16, "attention", 6),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", choices=["strict", "guide"], help="one of the two tables")
    parser.add_argument("--keep", action="store_true", help="write the result under benchmarks/results")
    wanted = parser.parse_args()
    result: dict[str, Any] = {"date": today(), "machine": platform.platform()}
    result["versions"] = versions("torch", "transformers", "lorawise") | peer_versions()
    console = Console()
    if wanted.only != "guide":
        result["strict"] = [strict(row) for row in STRICT]
        show_strict(console, result["strict"])
    if wanted.only != "strict":
        result["guide"] = [guide(*case) for case in GUIDE]
        show_guide(console, result["guide"])
    if wanted.keep:
        keep("memory", result)


def strict(row: Row) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "method": row.method,
        "workload": row.workload,
        "mode": row.mode,
        "trainer": "hf",
        "stack": row.stack,
    }
    traced = trace(row.model, row.config, **settings).memory
    closed = predict(facts_of(row.model), row.config, **settings)
    return {
        "name": row.name,
        "source": row.source,
        "stack": asdict(row.stack),
        "measured": row.measured,
        "traced": traced.counted / GIB,
        "closed": closed.counted / GIB,
        "measured_reserved": row.reserved,
        "traced_reserved": traced.reserved / GIB,
        "closed_reserved": closed.reserved / GIB,
        "others": {name: asked(name, row) for name in PEERS},
    }


def guide(name: str, method: Method, r: int, targets: str, said: float) -> dict[str, Any]:
    """Length 2,048; what the guide says is in GB of unknown meaning."""
    facts = facts_of(LLAMA_8B)
    config = None if method == "full" else LoraConfig(r=r, target_modules=targets)
    found: dict[str, Any] = {"name": name, "guide": said}
    for batch in (1, 4):
        padded = Workload(tokens=batch * 2048, rows=batch, length=2048, packed=False)
        for mode, word in (("frugal", "checkpointed"), ("speed", "kept")):
            stock = predict(
                facts,
                config,
                method=method,
                workload=padded,
                mode=mode,
                trainer="hf",
                stack=Stack(),  # type: ignore[arg-type]
            )
            found[f"stock {batch} {word}"] = stock.allocated / GIB
            if config is not None:
                ours = predict(
                    facts,
                    config,
                    method=method,
                    workload=Workload(tokens=batch * 2048, length=2048),
                    mode=mode,  # type: ignore[arg-type]
                )
                found[f"ours {batch} {word}"] = ours.allocated / GIB
    if config is not None:
        one = Workload(tokens=2048)
        traced = trace(LLAMA_8B, config, method=method, workload=one, mode="frugal").memory
        found["ours 1 checkpointed, traced"] = traced.allocated / GIB
    return found


def off(value: float | str | None, measured: float | None) -> str:
    if not isinstance(value, float) or measured is None:
        return "–"
    return f"{value:.2f} [dim]{100 * (value / measured - 1):+.2f} %[/]"


def show_strict(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title="GiB at the peak, and how far from measured")
    for column in ("configuration", "measured", "traced", "closed form", "reserved", "traced", "closed", *PEERS):
        table.add_column(column, justify="left" if column == "configuration" else "right")
    for row in rows:
        others = [
            f"{value:.1f} [dim]{100 * (value / row['measured'] - 1):+.0f} %[/]" if isinstance(value, float) else "–"
            for value in row["others"].values()
        ]
        table.add_row(
            row["name"],
            f"{row['measured']:.2f}",
            off(row["traced"], row["measured"]),
            off(row["closed"], row["measured"]),
            "–" if row["measured_reserved"] is None else f"{row['measured_reserved']:.2f}",
            off(row["traced_reserved"], row["measured_reserved"]),
            off(row["closed_reserved"], row["measured_reserved"]),
            *others,
        )
    console.print(table)
    for name in ("traced", "closed"):
        errors = [row[name] / row["measured"] - 1 for row in rows]
        console.print(
            f"{name}: mean {100 * sum(map(abs, errors)) / len(errors):.2f} %, "
            f"worst over {100 * max(errors):+.2f} %, worst under {100 * min(errors):+.2f} %"
        )


def show_guide(console: Console, rows: list[dict[str, Any]]) -> None:
    columns = [key for key in rows[0] if key != "name"]
    table = Table(title="Llama-3.1-8B at length 2,048: the guide's GB, and GiB allocated")
    table.add_column("configuration")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["name"], *(f"{row[key]:.1f}" if key in row else "–" for key in columns))
    console.print(table)


if __name__ == "__main__":
    main()
