"""`python -m benchmarks.adapters`: combine and resize beside PEFT's and beside a dense SVD, on square layers.

Every arm runs in its own process, in turn, in rounds; the table gives medians, and the ratio to ours within each round.
The error is ‖ΔW_result − ΔW_exact‖ / ‖ΔW_exact‖ in float64 against the sum of the inputs, and beside it the least that
any result of that rank can have (Eckart and Young 1936).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.adapters.cases import OPERATIONS, WEIGHTS, WIDTHS, Operation, exact, write_adapters
from benchmarks.keeping import keep, place, today, versions
from lorawise.report import words

THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.adapters", description=str(__doc__).splitlines()[0])
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS))
    parser.add_argument("--operations", nargs="+", choices=list(OPERATIONS), default=list(OPERATIONS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="write the result under benchmarks/results")
    asked = parser.parse_args()
    result: dict[str, Any] = {
        "date": today(),
        "machine": {"cores": os.cpu_count(), "threads": THREADS, "platform": platform.platform(), "device": "cpu"},
        "versions": versions("lorawise", "peft", "torch", "numpy"),
        "weights": WEIGHTS,
        "rows": [],
    }
    for width in asked.widths:
        for name in asked.operations:
            with tempfile.TemporaryDirectory(prefix="lorawise-bench-") as scratch:
                result["rows"] += measured(OPERATIONS[name], width, asked.repeats, Path(scratch))
            if asked.keep:  # after every operation: at 4,096 wide one takes minutes
                keep_rows(result)
    show(result)


def keep_rows(result: dict[str, Any]) -> None:
    """Rows of another run of the same day stay, but for those measured again."""
    path = place("adapters-cpu", result)
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    key = lambda row: (row["width"], row["operation"])  # noqa: E731
    again = {key(row) for row in result["rows"]}
    rows = sorted([row for row in before if key(row) not in again] + result["rows"], key=lambda row: row["width"])
    keep("adapters-cpu", result | {"rows": rows})


def measured(operation: Operation, width: int, repeats: int, scratch: Path) -> list[dict[str, Any]]:
    names = write_adapters(scratch, width, operation)
    wanted = exact(scratch, names)
    rounds: dict[str, list[dict[str, Any]]] = {arm: [] for arm in operation.arms}
    for number in range(repeats):
        for arm in operation.arms:
            print(f"{width} {operation.name}, round {number + 1}/{repeats}: {arm}", file=sys.stderr)
            rounds[arm].append(one(arm, operation, width, names, scratch / f"{arm.replace(' ', '-')}-{number}"))
    own = rounds[operation.arms[0]]
    return [
        {
            "width": width,
            "operation": operation.name,
            "arm": arm,
            "seconds": statistics.median(each["seconds"] for each in done),
            "folder_seconds": done[0]["folder_seconds"],
            "peak_memory": max(each["peak_memory"] for each in done),
            "ours_is_faster": [each["seconds"] / mine["seconds"] for each, mine in zip(done, own, strict=True)],
            "rank": done[0]["rank"],
            "error": error(done[0]["delta"], wanted),
            "least_error": least(wanted, done[0]["rank"], names),
        }
        for arm, done in rounds.items()
    ]


def one(arm: str, operation: Operation, width: int, names: list[str], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    job = {
        "folder": str(folder.parent),
        "out": str(folder / "out"),
        "result": str(folder / "result.npz"),
        "report": str(folder / "report.json"),
        "width": width,
        "rank": operation.rank,
        "weights": {name: WEIGHTS[name] for name in names},
        "folders": folder.name.endswith("-0"),
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "OPENBLAS_NUM_THREADS": str(THREADS)}
    command = [sys.executable, "-m", "benchmarks.adapters.arms", arm, str(folder / "job.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
    held = np.load(folder / "result.npz")
    A, B = held["A"].astype(np.float64), held["B"].astype(np.float64)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report | {"rank": len(A), "delta": float(held["scaling"]) * (B @ A)}


def error(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def least(wanted: NDArray[np.float64], rank: int, names: list[str]) -> float:
    """√ of the energy beyond `rank`. The update has at most 64 singular values: a projection that keeps them all is
    exact, and small."""
    most = 64 if len(names) == 1 else 32
    if rank >= most:
        return 0.0
    basis = np.linalg.qr(wanted @ np.random.default_rng(0).standard_normal((wanted.shape[1], most + 8)))[0]
    squares = np.linalg.svd(basis.T @ wanted, compute_uv=False) ** 2
    return float((squares[rank:].sum() / squares.sum()) ** 0.5)


def show(result: dict[str, Any]) -> None:
    table = Table(title="one square linear layer, float32")
    for heading in ("width", "operation", "arm", "in memory", "ours is", "folder to folder", "peak", "error", "least"):
        table.add_column(
            heading,
            justify="left" if heading in ("operation", "arm") else "right",
            no_wrap=heading != "folder to folder",
        )
    before: tuple[Any, ...] = ()
    for row in result["rows"]:
        key = (row["width"], row["operation"])
        ratios = row["ours_is_faster"]
        table.add_row(
            *(("", "") if key == before else (f"{row['width']:,}", row["operation"])),
            row["arm"],
            seconds(row["seconds"]),
            "" if row["arm"].startswith("ours") else " ".join(f"{ratio:,.1f}×" for ratio in ratios),
            "–" if row["folder_seconds"] is None else seconds(row["folder_seconds"]),
            words.size(row["peak_memory"]) if row["peak_memory"] else "–",
            f"{row['error']:.2e}",
            f"{row['least_error']:.2e}",
        )
        before = key
    Console(width=max(120, Console().width)).print(table)
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    print(f"{result['date']}, {THREADS} threads on {platform.machine()}; {versions}")


def seconds(value: float) -> str:
    return f"{1e3 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


if __name__ == "__main__":
    main()
