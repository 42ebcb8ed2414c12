"""A whole run's events, invented: for tests of the readers and the page."""

import math
from collections.abc import Iterator
from pathlib import Path

from lorawise.base.findings import Finding
from lorawise.report.events import (
    Check,
    Evaluated,
    Event,
    Noted,
    Piece,
    Preflight,
    PreflightDone,
    RunEnded,
    RunStarted,
    Sample,
    Saved,
    StepDone,
)

EVIL = "<script>alert('x')</script> & [bold]not markup[/bold] \x1b[31mred"


def preflight() -> Preflight:
    return Preflight(
        checks=(
            Check(name="every row has trained tokens", passed=True, detail="12 to 96 a row"),
            Check(name="the end of a turn is trained", passed=True, detail="<|im_end|>"),
            Check(name="one BOS a row", passed=True),
            Check(name="every B gets a gradient", passed=True, detail="210 of 210"),
        ),
        row=(
            Piece(
                text="<|im_start|>user\nOrder 4411 arrived broken, two mugs. " + EVIL + "<|im_end|>\n", trained=False
            ),
            Piece(text="<|im_start|>assistant\n", trained=False),
            Piece(text='{"order": 4411, "items": [{"name": "mug", "count": 2}]}<|im_end|>', trained=True),
        ),
        rows=400,
        validation_rows=40,
        skipped_rows=3,
        cut_rows=2,
        cut_tokens=117,
        tokens=61_000,
        trained_tokens=24_000,
        longest=512,
        peak_memory=900 * 2**20,
        seconds=2.5,
    )


def samples(*, good: bool) -> tuple[Sample, ...]:
    wanted = '{"order": 4411, "items": [{"name": "mug", "count": 2}], "refund": true}'
    answer = wanted if good else "I am sorry to hear that! Could you tell me more about the order? " + EVIL
    prompt = "user: Order 4411 arrived broken, two mugs. I want my money back."
    return tuple(
        Sample(prompt=f"{prompt} ({i})", reference=wanted, answer=answer, match=good and i != 2) for i in range(3)
    )


def evaluated(step: int, loss: float, *, name: str = "validation", good: bool = True, best: bool = False) -> Evaluated:
    return Evaluated(
        step=step,
        name=name,  # type: ignore[arg-type]
        loss=loss,
        perplexity=math.exp(loss),
        tokens=2400,
        seconds=1.2,
        exact_match=0.95 if good else 0.0,
        samples=samples(good=good),
        best=best,
    )


def step_done(step: int, loss: float) -> StepDone:
    return StepDone(
        step=step,
        epoch=step / 50,
        loss=loss,
        learning_rate=2e-4 * (1 + math.cos(math.pi * step / 150)) / 2,
        gradient_norm=1.5 * math.exp(-step / 60) + 0.1 * math.sin(step) ** 2,
        tokens=1200,
        trained_tokens=480,
        seconds=1.6,
        tokens_per_second=750 + 20 * math.sin(step / 3),
        memory=int(1.1 * 2**30),
    )


def loss_at(step: int) -> float:
    return 1.9 * math.exp(-step / 25) + 0.12 + 0.05 * math.sin(step * 12.9)


def whole_run(folder: Path, *, steps: int = 150) -> Iterator[Event]:
    setting = {"r": 16, "alpha": 32.0, "scaling": 2.0, "learning_rate": 2e-4, "target_modules": "all-linear"}
    yield RunStarted(
        run=folder,
        setting=setting,
        steps_total=steps,
        epochs=3.0,
        trainable_parameters=4_884_480,
        total_parameters=139_399_488,
        tokens_per_epoch=61_000,
        trained_tokens_per_epoch=24_000,
        device="cpu",
        dtype="bfloat16",
    )
    finding = Finding(code="cut", level="warning", message="2 rows were cut at 512 tokens", cure="raise max_length")
    yield Noted(finding=finding)
    yield PreflightDone(report=preflight())
    yield evaluated(0, 2.31, name="base", good=False)
    for step in range(1, steps + 1):
        yield step_done(step, loss_at(step))
        if step % 50 == 0:
            yield evaluated(step, loss_at(step) + 0.05, best=True)
            yield Saved(step=step, path=folder / "checkpoints" / f"step-{step:06}")
    yield RunEnded(
        reason="finished",
        step=steps,
        tokens=1200 * steps,
        trained_tokens=480 * steps,
        seconds=1.6 * steps,
        tokens_per_second=750.0,
        peak_memory=int(1.1 * 2**30),
        validation_loss=0.19,
        base_validation_loss=2.31,
        best_step=steps,
        adapter=folder / "adapter",
    )
