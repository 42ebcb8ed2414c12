"""`python -m benchmarks.train`: ours, the guide's script and TRL, side by side on the same rows, threads and dtype.

Every arm runs in its own process, in turn, several times; the table gives medians, and the ratio to ours within each
round, so that a machine whose speed drifts moves both sides. Counted are real tokens (no padding) over the whole
training call, its first step included. An arm whose gradient norm is not above zero did not train and is refused.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.keeping import keep, today, versions
from benchmarks.train.cases import CASES, ROWS_PER_STEP, Case, write_rows
from lorawise.data.encode import EncodeOptions, encode_rows
from lorawise.data.read import read_rows
from lorawise.data.sources import Source
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.models.embedded import embedded_model

THREADS = 2
# TRL's settings: the batch that was fastest here (1 × 16: no padding at all) and the guide's 4 × 4 grouped by length.
ARMS = {"lorawise": 0, "guide": 4, "trl 1x16": 1, "trl 4x4": 4}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.train", description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=[*CASES, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    asked = parser.parse_args()
    model = embedded_model()
    for case in CASES.values() if asked.case == "all" else [CASES[asked.case]]:
        with tempfile.TemporaryDirectory(prefix="lorawise-bench-") as scratch:
            result = run_case(case, model, asked.arms, asked.repeats, Path(scratch))
        show(result)
        keep(f"train-{result['case']['name']}-cpu", result)


def run_case(case: Case, model: Path, arms: list[str], repeats: int, scratch: Path) -> dict[str, Any]:
    train, validation = write_rows(case, ChatTokenizer.open(model), scratch)
    tokenised, tokens = tokenise(train, model, case)
    held, _ = tokenise(validation, model, case)
    rounds: list[dict[str, Any]] = []
    for number in range(repeats):
        done = {}
        for arm in arms:
            print(f"{case.name} round {number + 1}/{repeats}: {arm}", file=sys.stderr)
            folder = scratch / f"{arm.replace(' ', '-')}-{number}"
            folder.mkdir()
            done[arm] = (
                ours(case, model, train, folder) if arm == "lorawise" else peer(case, model, tokenised, arm, folder)
            )
            if not min(done[arm]["gradient_norms"]) > 0:
                raise SystemExit(f"{arm} did not train: gradient norms {done[arm]['gradient_norms']}")
            done[arm]["tokens_per_second"] = tokens / done[arm]["seconds"]
        rounds.append(done)
    adapters = {arm: rounds[0][arm].pop("adapter") for arm in arms}
    losses = judge(model, held, adapters, scratch)
    for done in rounds:
        for arm in arms:
            done[arm].pop("adapter", None)
    return {
        "case": asdict(case),
        "rows": case.rows,
        "real_tokens": tokens,
        "validation_loss": losses,
        "rounds": rounds,
        "machine": {
            "cores": os.cpu_count(),
            "threads": THREADS,
            "processor": platform.processor() or platform.machine(),
        },
        "versions": versions("lorawise", "torch", "transformers", "peft", "trl"),
        "date": today(),
    }


def tokenise(path: Path, model: Path, case: Case) -> tuple[Path, int]:
    """The rows as every arm trains them: ids and labels; and the number of real tokens."""
    tokenizer = ChatTokenizer.open(model)
    encoded = encode_rows(
        read_rows([Source(path=str(path))]).rows, tokenizer, EncodeOptions(max_length=case.max_length)
    )
    target = path.with_suffix(".tokens.jsonl")
    with target.open("w") as out:
        for row in encoded:
            ids = row.ids.tolist()
            labels = [token if trained else -100 for token, trained in zip(ids, row.trained.tolist(), strict=True)]
            out.write(json.dumps({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}) + "\n")
    return target, encoded.tokens


def ours(case: Case, model: Path, train: Path, folder: Path) -> dict[str, Any]:
    """`lorawise train` as a user runs it; preflight and the model's opening are not part of the training call."""
    run_file = folder / "run.yaml"
    run_file.write_text(
        yaml.safe_dump(
            {
                "model": str(model),
                "data": {"train": str(train), "validation": None},
                "base": {"dtype": "bfloat16"},
                "lora": {"r": case.r, "alpha": case.alpha, "target_modules": case.target_modules},
                "train": {
                    "epochs": 1,
                    "batch_size": ROWS_PER_STEP,
                    "max_length": case.max_length,
                    "learning_rate": case.learning_rate,
                    "schedule": "constant",
                    "warmup": 0,
                },
            }
        )
    )
    out = folder / "run"
    answer = json.loads(_python("-m", "lorawise", "train", str(run_file), "-o", str(out), "--json", capture=True))
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "seconds": answer["train_seconds"],
        "peak_memory": answer["peak_memory"],
        "steps": answer["steps"],
        "gradient_norms": [step["gradient_norm"] for step in steps if "gradient_norm" in step],
        "losses": [step["loss"] for step in steps if "gradient_norm" in step],
        "adapter": answer["adapter"],
    }


def peer(case: Case, model: Path, tokenised: Path, arm: str, folder: Path) -> dict[str, Any]:
    batch = ARMS[arm]
    job = {
        "model": str(model),
        "tokenised": str(tokenised),
        "adapter": str(folder / "adapter"),
        "output": str(folder / "output"),
        "report": str(folder / "report.json"),
        "threads": THREADS,
        "r": case.r,
        "alpha": case.alpha,
        "learning_rate": case.learning_rate,
        "batch": batch,
        "accumulation": ROWS_PER_STEP // batch,
    }
    (folder / "job.json").write_text(json.dumps(job))
    _python("-m", "benchmarks.train.peers", arm.split()[0], str(folder / "job.json"))
    report = json.loads((folder / "report.json").read_text())
    report["seconds"] = report.pop("seconds_with_first_step")
    return report | {"adapter": job["adapter"]}


def judge(model: Path, held: Path, adapters: dict[str, str], scratch: Path) -> dict[str, float]:
    job = {
        "model": str(model),
        "tokenised": str(held),
        "adapters": adapters,
        "threads": THREADS,
        "report": str(scratch / "losses.json"),
    }
    (scratch / "judge.json").write_text(json.dumps(job))
    _python("-m", "benchmarks.train.judge", str(scratch / "judge.json"))
    return json.loads((scratch / "losses.json").read_text())


def _python(*arguments: str, capture: bool = False) -> str:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    run = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(arguments[:3])} failed:\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}")
    return run.stdout if capture else ""


def show(result: dict[str, Any]) -> None:
    rounds = result["rounds"]
    table = Table(title=f"{result['case']['name']}: {result['rows']} rows, {result['real_tokens']:,} real tokens")
    for heading in ("arm", "tokens/s", "ours is", "memory", "ours is", "loss", "gradient norm"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm in rounds[0]:
        speed = statistics.median(done[arm]["tokens_per_second"] for done in rounds)
        memory = statistics.median(done[arm]["peak_memory"] for done in rounds)
        faster = least = ""
        if arm != "lorawise" and "lorawise" in rounds[0]:
            ratios = [done["lorawise"]["tokens_per_second"] / done[arm]["tokens_per_second"] for done in rounds]
            faster = f"{statistics.median(ratios):.2f}×"
            least = f"{statistics.median(d['lorawise']['peak_memory'] / d[arm]['peak_memory'] for d in rounds):.2f}×"
        norms = [norm for done in rounds for norm in done[arm]["gradient_norms"]]
        loss = result["validation_loss"][arm]
        table.add_row(
            arm,
            f"{speed:.0f}",
            faster,
            f"{memory / 1e9:.2f} GB",
            least,
            f"{loss:.3f}",
            f"{min(norms):.2f}–{max(norms):.2f}",
        )
    Console().print(table)
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    Console().print(
        f"base's validation loss {result['validation_loss']['base']:.3f}; bf16, {machine['threads']} threads on "
        f"{machine['processor']}; {versions}"
    )


if __name__ == "__main__":
    main()
