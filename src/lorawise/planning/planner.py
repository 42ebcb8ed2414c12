"""`plan`: a model, data, a task and a device become decisions with reasons, memory, time, and a run file.

inputs ─▶ Situation ─ deciders ─▶ Settled ─ fit ─▶ memory mode, micro-batch ─▶ Plan ─▶ run.yaml
                                     └─ contradictions ─▶ findings
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lorawise.base.errors import ConfigError
from lorawise.base.findings import Finding
from lorawise.facts.model import ModelFacts
from lorawise.facts.targets import trainable
from lorawise.planning.adapter_deciders import chosen_targets
from lorawise.planning.calibration import calibrated, past_runs
from lorawise.planning.concessions import concessions
from lorawise.planning.contradictions import contradictions
from lorawise.planning.dataset import Progress
from lorawise.planning.decision import Decision
from lorawise.planning.fit import decisions, settle
from lorawise.planning.inputs import one_of, situation_of
from lorawise.planning.load import MODES, Load
from lorawise.planning.pace import Forecast, Pace, Work, expected
from lorawise.planning.plan import Plan
from lorawise.planning.precision import computed_in
from lorawise.planning.settled import decide_all
from lorawise.planning.situation import METHODS, TRAINERS, Settled, Situation
from lorawise.planning.training_deciders import total_steps
from lorawise.runfile.not_built import is_built

OFFLOAD = "offload"  # a memory mode of the run file that the prediction has no walk of its own for


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
    one_of("trainer", trainer, TRAINERS)
    if price is not None and not 0 <= price < float("inf"):
        raise ConfigError(f"a price of {price}", expected="money an hour of the device costs, from 0")
    situation, findings = situation_of(
        model, data, task=task, device=device, method=method, sets=sets, progress=progress
    )
    return _planned(situation, findings, trainer, price, Path(runs) if device is None else None)


def _planned(s: Situation, findings: Sequence[Finding], trainer: str, price: float | None, runs: Path | None) -> Plan:
    done = decide_all(s)
    load, step = _load(s, done, trainer)
    mode, tokens = s.asked("train.memory"), s.asked("train.micro_batch_tokens")
    own_mode = MODES[-1] if mode == OFFLOAD else next((known for known in MODES if known == mode), None)
    own_tokens = tokens if isinstance(tokens, int) else None
    settled = settle(load, step=step, mode=own_mode, tokens=own_tokens)
    for decision in decisions(settled, step=step, mode=own_mode, tokens=own_tokens):
        done.add(_offloaded(decision) if mode == OFFLOAD and decision.name == "train.memory" else decision)
    fastest = replace(load, tokens=own_tokens or max(load.length, step), mode=own_mode or MODES[0], accumulate=False)
    count = s.model.parameters if s.method == "full" else trainable(s.model, load.config)
    pace = _pace(s, done, settled, count, runs)
    forecast = _forecast(s, done, pace, price)
    return Plan(
        situation=s,
        settled=done,
        load=settled,
        memory=settled.memory,
        trainable=count,
        concessions=concessions(fastest, settled),
        methods={name: replace(settled, method=name).needed for name in METHODS},
        pace=pace,
        price=price,
        forecast=forecast,
        findings=(
            *s.model.notes,
            *findings,
            *(() if s.data is None else s.data.findings),
            *_not_trainable(s),
            *contradictions(s, done),
            *_without_a_price(price, pace, forecast),
        ),
    )


def _load(s: Situation, done: Settled, trainer: str) -> tuple[Load, int]:
    """The load before it is made to fit, and the tokens of an optimizer step."""
    config = s.config(
        r=done.whole("lora.r"),
        expert_r=done.whole("lora.expert_r") if "lora.expert_r" in done else None,
        scaling=done.real("lora.scaling"),
        dropout=done.real("lora.dropout"),
        target_modules=chosen_targets(s, done),
    )
    length = done.whole("train.max_length")
    longest = length if s.data is None else min(length, s.data.longest)
    load = Load(
        model=_as_held(s.model, done.text("base.dtype"), s),
        config=config,
        device=s.device,
        method=s.method,
        length=longest,
        packed=s.run.train.packing,
        trainer="hf" if trainer == "hf" else "lorawise",
        packing="int8" if done.text("base.dtype") == "int8" else "nf4",
        double_quant=s.run.base.double_quant,
    )
    if "train.batch_tokens" in done:
        return load, done.whole("train.batch_tokens")
    return load, done.whole("train.batch_size") * longest


def _as_held(model: ModelFacts, dtype: str, s: Situation) -> ModelFacts:
    """The model in the type that its products are computed in, whatever it is stored in."""
    wanted = s.asked("base.compute_dtype") if s.method == "qlora" else None
    return model.replace(dtype=computed_in(dtype if wanted is None else str(wanted), model, s.device))


def _offloaded(frugal: Decision) -> Decision:
    """Layers are computed again, and their inputs wait in the processor's memory: the device holds less than `frugal`
    says, never more."""
    return replace(
        frugal,
        value=OFFLOAD,
        reason="as you wrote it: layers' inputs wait in the processor's memory; predicted as frugal, which takes more",
        range=(*MODES, OFFLOAD),
        asked=True,
        advised=frugal.value,
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


def _without_a_price(price: float | None, pace: Pace | None, forecast: Forecast | None) -> Iterator[Finding]:
    """A price that nothing could be made of."""
    if price is None or forecast is not None:
        return
    if pace is None:
        yield Finding(
            code="plan-no-cost",
            level="warning",
            message="no cost is told: how fast this device trains is not known",
            cure="name the device (--device rtx-4090), or make a first run here, which calibrates the time",
        )
    else:
        yield Finding(
            code="plan-no-cost",
            level="warning",
            message="only the cost of a million tokens is told: how many a run takes is not known without data",
            cure="name the data after the model, or give --set train.steps=…",
        )


def _not_trainable(s: Situation) -> Iterator[Finding]:
    """What is planned here and refused by `lorawise train`, until it is built."""
    if s.method == "full":
        yield Finding(
            code="plan-full",
            level="note",
            message="full fine-tuning is planned and compared, not trained",
            cure="--method lora writes a run file",
        )
    elif s.method == "qlora" and s.model.experts:
        yield Finding(
            code="plan-experts-not-quantised",
            level="warning",
            message=f"bitsandbytes leaves the fused experts of {s.model.architecture} in 16 bits; lorawise does not "
            "train on such a base",
            cure="--method lora: base.dtype bfloat16",
        )
    elif not is_built("base.dtype", s.run.base.dtype):
        yield Finding(
            code="plan-not-built",
            level="warning",
            message=f"a base in {s.run.base.dtype} is planned here; lorawise does not train on one yet",
            cure="base.dtype: bfloat16, or a smaller model",
        )
