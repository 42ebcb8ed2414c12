"""What a person said → the situation a plan is made for: run file, model, data, device, method and task.

MODEL or RUN.yaml ─┐
DATA, --set ───────┼─▶ RunFile ─▶ facts of model and data ─┐
--method ──────────┘                                       ├─▶ Situation, findings
--device ──────────────▶ facts of the device ──────────────┤
--task ────────────────▶ a row of the cheat sheet ─────────┘
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorawise.base.errors import ConfigError, nearest
from lorawise.base.findings import Finding
from lorawise.facts.device import find_device
from lorawise.facts.read import read_model
from lorawise.planning.dataset import DataFacts, Progress, read_data
from lorawise.planning.situation import METHODS, Method, Situation
from lorawise.planning.tasks import Task, find_task
from lorawise.planning.tokenizer import tokenizer_folder
from lorawise.runfile import RunFile, load_run_file, make_run_file
from lorawise.runfile.schema import QUANTISED

NO_DATA = "train.jsonl"  # stands in a run file for data that was not named


def situation_of(
    model: str | Path,
    data: str | Path | None,
    *,
    task: str | None,
    device: str | None,
    method: str | None,
    sets: Sequence[str],
    progress: Progress | None,
) -> tuple[Situation, list[Finding]]:
    """As `planner.plan` takes them; what is cheapest to refuse is refused first."""
    wanted_task = None if task is None else find_task(task)
    one_of("method", method, METHODS)
    run, findings = _run_file(str(model), data, method, sets)
    by_method = _method(run, method)
    facts = read_model(run.model)
    found = find_device(device)
    known = None
    if str(run.data.train[0].path) != NO_DATA:
        known = read_data(run, tokenizer_folder(run.model), progress=progress)
    if known is not None and known.labels:
        facts = facts.as_classifier(known.labels)
    situation = Situation(
        task=wanted_task or _task(run, known),
        run=run,
        model=facts,
        device=found,
        method=by_method,
        data=known,
    )
    return situation, findings


def one_of(noun: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise ConfigError(f"unknown {noun} '{value}'", cure=nearest(value, list(known)))


def _run_file(
    model: str, data: str | Path | None, method: str | None, sets: Sequence[str]
) -> tuple[RunFile, list[Finding]]:
    over = [f"data.train={json.dumps(str(data))}"] if data is not None else []
    over += ["base.dtype=nf4"] if method == "qlora" and not _names(sets, "base.dtype") else []
    if Path(model).suffix.lower() in (".yaml", ".yml"):
        return load_run_file(model, [*over, *sets], unbuilt="keep")
    run, findings = make_run_file({"model": model, "data": {"train": NO_DATA}}, [*over, *sets], unbuilt="keep")
    if data is None and not _names(sets, "data.train"):
        run = run.model_copy(update={"data": run.data.model_copy(update={"train": (_no_data(run),)})})
    return run, findings


def _no_data(run: RunFile) -> Any:
    """The placeholder as it was written: the loader made a path of it."""
    return run.data.train[0].model_copy(update={"path": NO_DATA})


def _names(sets: Sequence[str], key: str) -> bool:
    return any(entry.partition("=")[0].strip() == key for entry in sets)


def _method(run: RunFile, method: str | None) -> Method:
    """qlora is a packed base, and a packed base is qlora: `ConfigError` where the two are told apart."""
    dtype = run.base.dtype
    packed = dtype in QUANTISED
    wrong = {"qlora": not packed, "lora": packed, "full": packed}
    if method is not None and wrong[method]:
        raise ConfigError(
            f"--method {method} with base.dtype {dtype}",
            expected="nf4 or int8 for qlora, a plain type or auto for lora and full",
            cure="leave one of the two out",
        )
    by_dtype: Method = "qlora" if packed else "lora"
    return next((known for known in METHODS if known == method), by_dtype)


def _task(run: RunFile, data: DataFacts | None) -> Task:
    if "task" in run.model_fields_set or data is None or not data.classification:
        return find_task(run.task)
    return find_task("classification")
