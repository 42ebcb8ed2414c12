"""`plan`: a model, data, a task and a device become decisions with reasons, memory, time, and a run file.

model ─ facts ─┐
data ──────────┼─▶ Situation ─ deciders ─▶ Settled ─ fit ─▶ memory mode, micro-batch ─▶ Plan ─▶ run.yaml
device ────────┤                               └─ contradictions ─▶ findings
--set, run file┘
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lorawise.base.errors import ConfigError, nearest
from lorawise.base.findings import Finding
from lorawise.facts.device import DeviceFacts, devices, find_device
from lorawise.facts.model import ModelFacts
from lorawise.facts.read import read_model
from lorawise.facts.targets import trainable
from lorawise.lora.config import LoraConfig
from lorawise.planning.calibration import calibrated, past_runs
from lorawise.planning.contradictions import contradictions
from lorawise.planning.dataset import DataFacts, Progress, read_data
from lorawise.planning.decision import Decision
from lorawise.planning.fit import (
    MODES,
    Concession,
    Largest,
    Load,
    concessions,
    decisions,
    largest,
    settle,
    smallest_device,
)
from lorawise.planning.memory import Memory
from lorawise.planning.pace import Forecast, Pace, Work, expected
from lorawise.planning.rate import strength, strength_in_words
from lorawise.planning.settled import decide_all
from lorawise.planning.situation import METHODS, Method, Settled, Situation
from lorawise.planning.tasks import Task, find_task
from lorawise.planning.tokenizer import tokenizer_folder
from lorawise.planning.training_deciders import total_steps
from lorawise.runfile import RunFile, load_run_file, make_run_file

NO_DATA = "train.jsonl"  # stands in a run file for data that was not named
ADAPTER_BYTES = 4  # a parameter of an adapter on disk and in training: float32 masters


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Everything `lorawise plan` says. `memory` is of the settled run; `methods` what each method would need."""

    situation: Situation
    settled: Settled
    load: Load
    memory: Memory
    trainable: int
    concessions: tuple[Concession, ...]
    methods: Mapping[str, int]
    pace: Pace | None
    forecast: Forecast | None
    findings: tuple[Finding, ...]

    @property
    def model(self) -> ModelFacts:
        return self.situation.model

    @property
    def device(self) -> DeviceFacts:
        return self.situation.device

    @property
    def task(self) -> Task:
        return self.situation.task

    @property
    def method(self) -> Method:
        return self.situation.method

    @property
    def data(self) -> DataFacts | None:
        return self.situation.data

    @property
    def config(self) -> LoraConfig:
        return self.load.config

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(self.settled.values())

    @property
    def needed(self) -> int:
        return self.memory.total

    @property
    def fits(self) -> bool:
        return self.needed <= self.device.usable

    @property
    def total(self) -> int:
        """Parameters of model and adapter together, as PEFT counts them."""
        return self.model.parameters + (0 if self.method == "full" else self.trainable)

    @property
    def strength(self) -> float:
        """alpha · lr, how fast the function moves at first."""
        return strength(alpha=self.config.alpha, rate=self.settled.real("train.learning_rate"))

    @property
    def strength_in_words(self) -> str:
        return strength_in_words(self.strength)

    @property
    def adapter_bytes(self) -> int:
        """On disk; without the header, which takes a few kilobytes."""
        return ADAPTER_BYTES * self.trainable

    @property
    def serving_cost(self) -> float:
        """Work a token that an unmerged adapter adds to the base's; merged it adds none."""
        return self.trainable / Work(model=self.model, trainable=self.trainable, length=1).met

    @cached_property
    def largest(self) -> Largest:
        return largest(self.load)

    @cached_property
    def smallest_device(self) -> DeviceFacts | None:
        return smallest_device(self.load, tuple({device.name: device for device in devices().values()}.values()))

    def explain(self, name: str) -> str:
        from lorawise.planning.explain import explain

        return explain(self, name)

    @cached_property
    def run(self) -> RunFile:
        """The run file with every decision in it. `ConfigError` where there is nothing to train with it."""
        if self.method == "full":
            raise ConfigError(
                "full fine-tuning is planned and compared, not trained: lorawise trains adapters",
                cure=f"--method lora; r {max(128, self.config.r)} on all-linear comes nearest to it",
            )
        if self.data is None:
            raise ConfigError("a run file needs data", cure="name it after the model: lorawise plan MODEL DATA -o …")
        chosen = {d.name: d.value for d in self.decisions if not d.asked or d.name == "lora.scaling"}
        run = self.situation.run.with_values(chosen)
        return run.with_values({"task": self.task.name})


def plan(
    model: str | Path,
    data: str | Path | None = None,
    *,
    task: str | None = None,
    device: str | None = None,
    method: str | None = None,
    sets: Sequence[str] = (),
    trainer: str = "lorawise",
    price: float | None = None,
    runs: Path | str = "runs",
    progress: Progress | None = None,
) -> Plan:
    """Plan a run of `model` (a hub id, a folder, a .gguf file, or a run file) on `data`.

    task     a row of the guide's cheat sheet (`planning/tasks.py`); default: the run file's, else by the data
    device   a name (`rtx-4090`), an amount (`24GiB`); default: this machine
    method   lora, qlora or full
    sets     `("lora.r=32",)`: the user's own values; what follows from them follows
    price    of an hour of the device
    runs     folder of past runs that calibrate the time, where the device is this machine
    `UsageError` where something cannot be meant or is not there. Nothing is written, no weights are read.
    """
    wanted_task = None if task is None else find_task(task)
    _one_of("method", method, METHODS)
    _one_of("trainer", trainer, ("lorawise", "hf"))
    if price is not None and not 0 <= price < float("inf"):
        raise ConfigError(f"a price of {price}", expected="money an hour of the device costs, from 0")
    run, findings = _run_file(str(model), data, method, sets)
    facts = read_model(run.model)
    found = find_device(device)
    known = None
    if str(run.data.train[0].path) != NO_DATA:
        known = read_data(run, tokenizer_folder(run.model), progress=progress)
    chosen = wanted_task or _task(run, known)
    situation = Situation(
        task=chosen,
        run=run,
        model=facts,
        device=found,
        method=_method(run, method),
        data=known,
    )
    return _planned(situation, findings, trainer, price, Path(runs) if device is None else None)


def _one_of(noun: str, value: str | None, known: Sequence[str]) -> None:
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
    by_dtype: Method = "qlora" if run.base.dtype in ("nf4", "int8") else "lora"
    return next((known for known in METHODS if known == method), by_dtype)


def _task(run: RunFile, data: DataFacts | None) -> Task:
    if "task" in run.model_fields_set or data is None or not data.classification:
        return find_task(run.task)
    return find_task("classification")


def _planned(s: Situation, findings: Sequence[Finding], trainer: str, price: float | None, runs: Path | None) -> Plan:
    done = decide_all(s)
    config = s.config(
        r=done.whole("lora.r"),
        scaling=done.real("lora.scaling"),
        dropout=done.real("lora.dropout"),
        target_modules=s.asked("lora.target_modules") or done.text("lora.target_modules"),
    )
    length = done.whole("train.max_length")
    longest = length if s.data is None else min(length, s.data.longest)
    step = (
        done.whole("train.batch_tokens") if "train.batch_tokens" in done else done.whole("train.batch_size") * longest
    )
    load = Load(
        model=s.model,
        config=config,
        device=s.device,
        method=s.method,
        length=longest,
        packed=s.run.train.packing,
        trainer="hf" if trainer == "hf" else "lorawise",
    )
    mode, tokens = s.asked("train.memory"), s.asked("train.micro_batch_tokens")
    own_mode = next((known for known in MODES if known == mode), None)
    own_tokens = tokens if isinstance(tokens, int) else None
    settled = settle(load, step=step, mode=own_mode, tokens=own_tokens)
    for decision in decisions(settled, step=step, mode=own_mode, tokens=own_tokens):
        done.add(decision)
    fastest = replace(load, tokens=own_tokens or max(longest, step), mode=own_mode or MODES[0], accumulate=False)
    count = s.model.parameters if s.method == "full" else trainable(s.model, config)
    pace = _pace(s, done, settled, count, runs)
    return Plan(
        situation=s,
        settled=done,
        load=settled,
        memory=settled.memory,
        trainable=count,
        concessions=concessions(fastest, settled),
        methods={name: replace(settled, method=name).needed for name in METHODS},
        pace=pace,
        forecast=_forecast(s, done, pace, price),
        findings=(
            *s.model.notes,
            *findings,
            *(() if s.data is None else s.data.findings),
            *_not_trainable(s),
            *contradictions(s, done),
        ),
    )


def _pace(s: Situation, done: Settled, load: Load, count: int, runs: Path | None) -> Pace | None:
    work = Work(
        model=s.model,
        trainable=count,
        length=load.length if s.data is None else min(s.data.mean, load.length),
        trained_share=1.0 if s.data is None else s.data.trained_share,
        mode=load.mode,
        full=s.method == "full",
    )
    past = [] if runs is None or s.method == "qlora" else past_runs(runs, device=s.device.kind)
    return calibrated(work, past) or expected(work, s.device, dtype=done.text("base.dtype"), micro_tokens=load.tokens)


def _forecast(s: Situation, done: Settled, pace: Pace | None, price: float | None) -> Forecast | None:
    steps = total_steps(s, done)
    if pace is None or steps is None:
        return None
    if "train.steps" in done or s.data is None:
        if "train.batch_tokens" not in done:
            return None
        tokens = steps * done.whole("train.batch_tokens")
    else:
        tokens = round(s.data.tokens_kept(done.whole("train.max_length")) * done.real("train.epochs"))
    return Forecast(tokens=tokens, steps=steps, pace=pace, price=price)


def _not_trainable(s: Situation) -> list[Finding]:
    """What is planned here and refused by `lorawise train`, until it is built."""
    if s.method == "full":
        return [
            Finding(
                code="plan-full",
                level="note",
                message="full fine-tuning is planned and compared, not trained",
                cure="--method lora writes a run file",
            )
        ]
    if s.run.base.dtype in ("nf4", "int8"):
        return [
            Finding(
                code="plan-not-built",
                level="warning",
                message=f"a base in {s.run.base.dtype} is planned here; lorawise does not train on one yet",
                cure="base.dtype: bfloat16, or a smaller model",
            )
        ]
    return []
