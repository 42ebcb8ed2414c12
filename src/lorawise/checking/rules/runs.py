"""LW5xx: what a run's own log says went wrong, where, and probably why."""

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise

from lorawise.checking.rules.rule import Hit, rule
from lorawise.checking.rules.scaling import strongest
from lorawise.checking.run_log import Point, RunLog, rolling_median

FEW = 10  # logged steps below which a curve is not judged
SPIKE = 2.0  # times the median before
WIDTH = 20


@rule("LW501", "error", RunLog)
def loss_not_finite(log: RunLog) -> Iterator[Hit]:
    """The loss became NaN: the run diverged there, and everything after it is lost.

    The usual cause is strength, scaling × learning rate; after that a half-precision overflow, or a row whose labels
    are all masked.

    Cure: go back to the checkpoint before; halve the learning rate or the scaling; with fp16, use bf16.

    Source: the guide, mistake 2; EVIDENCE 2 (72 of 80 divergences at the highest rate tried).
    """
    if log.ended == "diverged":
        last = log.points[-1] if log.points else None
        after = f"after step {last.step}" if last is not None else "in its first step"
        yield Hit(
            message=f"the run diverged {after}{_strength(log, last)}; its adapter is of that step",
            cure="halve the learning rate or the scaling; with fp16, use bf16",
            line=None if last is None else last.line,
        )
        return
    broken = next((point for point in log.points if point.loss is not None and not math.isfinite(point.loss)), None)
    if broken is not None:
        before = max((step for step in log.saved if step < broken.step), default=None)
        back = f"; the checkpoint before it is step {before}" if before is not None else ""
        yield Hit(
            message=f"the loss is not finite from step {broken.step}{_strength(log, broken)}{back}",
            cure="halve the learning rate or the scaling; with fp16, use bf16",
            line=broken.line,
        )


@rule("LW502", "warning", RunLog)
def loss_spikes(log: RunLog) -> Iterator[Hit]:
    """The loss jumped to more than twice what it was.

    One spike may be one odd row. Several, or one that does not come back, are strength: scaling × learning rate.

    Cure: lower the learning rate or the scaling; look at the rows of that step.

    Source: the guide, mistake 2 ("loss spikes and instability").
    """
    points = [point for point in log.points if point.loss is not None and math.isfinite(point.loss)]
    losses = [point.loss or 0.0 for point in points]
    if len(points) < FEW:
        return
    spikes = [
        point
        for index, (point, usual) in enumerate(zip(points, rolling_median(losses, WIDTH), strict=True))
        if index >= 5 and (point.loss or 0) > SPIKE * usual and (point.loss or 0) > usual + 0.5
    ]
    if spikes:
        worst = max(spikes, key=lambda point: point.loss or 0)
        again = f", and {len(spikes) - 1} more" if len(spikes) > 1 else ""
        yield Hit(
            message=f"the loss jumps to {worst.loss:.3g} at step {worst.step}{again}{_strength(log, worst)}",
            cure="lower the learning rate or the scaling, or look at the rows of that step",
            line=worst.line,
        )


@rule("LW503", "warning", RunLog)
def loss_flat_from_the_start(log: RunLog) -> Iterator[Hit]:
    """The loss never moved.

    The adapter is too weak (alpha · lr far too small) or too strong to settle, gets no gradient, or the labels hold
    nothing to learn.

    Cure: look at the gradient norm: zero means the adapter is not reached; else raise the strength, or lower it where
    LW106 speaks too.

    Source: EVIDENCE 5; the guide, "your model either barely adapts".
    """
    losses = log.losses
    if len(losses) < FEW or _still(log.points):
        return
    third = max(3, len(losses) // 3)
    first, last = statistics.median(losses[:third]), statistics.median(losses[-third:])
    noise = statistics.pstdev(losses[:third])
    if first > 0.2 and abs(first - last) < 0.01 * first and noise < 0.2 * first:
        yield Hit(
            message=f"the loss is where it began: {first:.3g}, then {last:.3g}{_strength(log, None)}",
            cure="lower the learning rate or the scaling: it is too strong to settle"
            if _too_strong(log)
            else "raise the learning rate or the scaling; check that the adapter gets a gradient",
        )


@rule("LW504", "note", RunLog)
def validation_has_a_plateau(log: RunLog) -> Iterator[Hit]:
    """Validation stopped improving while training went on.

    The guide raises the rank on a plateau. Rule out strength first: at half and twice the scaling a plateau often
    moves, and costs no memory.

    Cure: try scaling × 2 and ÷ 2, then broader targets, then twice the rank.

    Source: the guide, rank selection; EVIDENCE 1.
    """
    scores = [p for p in log.evaluations if p.loss is not None and math.isfinite(p.loss)]
    if len(scores) < 6 or _turned(scores) is not None:
        return
    half = scores[len(scores) // 2 :]
    losses = [point.loss or 0.0 for point in half]
    start = scores[0].loss or 0.0
    if start - losses[0] > 0.02 * start and abs(losses[0] - losses[-1]) < 0.005 * losses[0]:
        yield Hit(
            message=f"validation stands at {losses[-1]:.3g} since step {half[0].step}",
            cure="scaling × 2 and ÷ 2 first; then broader targets; then more rank",
            line=half[0].line,
        )


@rule("LW505", "warning", RunLog)
def overfitted(log: RunLog) -> Iterator[Hit]:
    """Validation turned: the adapter began to learn the training rows by heart.

    Cure: keep the checkpoint of the turn; fewer epochs, lower rank, lower scaling, or more rows.

    Source: the guide ("decrease if you see overfitting").
    """
    scores = [p for p in log.evaluations if p.loss is not None and math.isfinite(p.loss)]
    best = _turned(scores)
    if best is not None:
        keep = min(log.saved, key=lambda step: abs(step - best.step), default=None)
        kept = f"; the nearest checkpoint is step {keep}" if keep is not None else ""
        yield Hit(
            message=f"validation turned at step {best.step} ({best.loss:.3g}), and ends at {scores[-1].loss:.3g}{kept}",
            cure=f"keep step {best.step}; fewer epochs, a lower rank or scaling",
            line=best.line,
        )


@rule("LW506", "error", RunLog)
def gradient_norm_zero(log: RunLog) -> Iterator[Hit]:
    """The gradient norm is zero: nothing reaches the adapter, and nothing was trained.

    Frozen inputs under gradient checkpointing, labels that are all masked, or targets that are not in the forward.

    Cure: use_reentrant False or enable_input_require_grads; count the trained tokens of a row.

    Source: EVIDENCE 5.
    """
    if _still(log.points):
        yield Hit(
            message=f"the gradient norm is 0 in all {len(log.points)} logged steps: nothing was trained",
            cure="enable_input_require_grads with checkpointing; count the trained tokens of a row",
            line=log.points[0].line,
        )


@rule("LW507", "warning", RunLog)
def rate_never_reached(log: RunLog) -> Iterator[Hit]:
    """The run ended inside its warm-up: the learning rate that was asked for was never reached.

    Cure: a warm-up of 3 to 10 % of the steps.

    Source: EVIDENCE 5.
    """
    rates = [(point, point.learning_rate) for point in log.points if point.learning_rate is not None]
    if len(rates) < FEW:
        return
    top, values = max(rate for _, rate in rates), [rate for _, rate in rates]
    asked = log.setting.learning_rate if log.setting is not None else None
    rising = all(a < b for a, b in pairwise(values))
    if rising or (asked is not None and 0 < top < 0.5 * asked):
        of = f" of the {asked:g} asked for" if asked is not None else ""
        yield Hit(
            message=f"the learning rate was still rising at the end: {top:.2g}{of}",
            cure="a shorter warm-up",
            line=rates[-1][0].line,
        )


@rule("LW508", "warning", RunLog)
def throughput_collapsed(log: RunLog) -> Iterator[Hit]:
    """The run became more than twice as slow as it began.

    Memory that spills over, a machine that throttles or is shared, a data loader that starves.

    Cure: look at memory first: paging shows here before it fails.

    Source: EVIDENCE 5 (late out-of-memory).
    """
    speeds = [point.tokens_per_second for point in log.points if point.tokens_per_second]
    if len(speeds) < 2 * FEW:
        return
    quarter = len(speeds) // 4
    first, last = statistics.median(speeds[:quarter]), statistics.median(speeds[-quarter:])
    if last < 0.5 * first:
        yield Hit(
            message=f"throughput fell from {first:,.0f} to {last:,.0f} tokens a second",
            cure="look at memory, then at who else uses the machine",
        )


@rule("LW509", "warning", RunLog)
def resumed_with_a_jump(log: RunLog) -> Iterator[Hit]:
    """The run was resumed and did not go on where it was: steps repeat, or the learning rate jumps.

    Trainer goes on with a fresh optimizer, silently, when optimizer.pt is missing, and begins its schedule anew when
    the number of steps changed.

    Cure: resume from a whole checkpoint, with the same number of steps.

    Source: EVIDENCE 5, measured.
    """
    for before, after in pairwise(log.points):
        rate_before, rate_after = before.learning_rate, after.learning_rate
        if after.step <= before.step:
            yield Hit(
                message=f"after step {before.step} the log goes on at step {after.step}",
                cure="resume from a whole checkpoint",
                line=after.line,
            )
            return
        if rate_before and rate_after and after is not log.points[-1] and not _warming(log.points, before):
            far = rate_after > 3 * rate_before or 10 * rate_after < rate_before
            if far and before.step > 3 * max(1, after.step - before.step):
                yield Hit(
                    message=f"the learning rate jumps from {rate_before:.2g} to {rate_after:.2g} at step {after.step}",
                    cure="resume with the same schedule and number of steps",
                    line=after.line,
                )
                return


def _warming(points: Sequence[Point], until: Point) -> bool:
    """Whether the rate had only risen up to here."""
    rates = [p.learning_rate for p in points if p.step <= until.step and p.learning_rate is not None]
    return all(a <= b for a, b in pairwise(rates)) and len(set(rates)) > 1


def _turned(scores: Sequence[Point]) -> Point | None:
    """The evaluation where validation was best, when what follows is clearly worse."""
    if len(scores) < 3:
        return None
    best = min(scores, key=lambda point: point.loss or 0)
    last = scores[-1].loss or 0.0
    return best if best is not scores[-1] and last > 1.02 * (best.loss or 0) else None


def _still(points: Sequence[Point]) -> bool:
    norms = [point.gradient_norm for point in points if point.gradient_norm is not None]
    return len(norms) >= 3 and not any(norms)


def _too_strong(log: RunLog) -> bool:
    strength = None if log.setting is None else log.setting.strength
    return log.setting is not None and strength is not None and strength > strongest(log.setting)


def _strength(log: RunLog, at: Point | None) -> str:
    """The likely cause in numbers: scaling × learning rate there."""
    setting = log.setting
    rate = at.learning_rate if at is not None else setting.learning_rate if setting is not None else None
    if setting is not None and setting.scaling is not None and rate:
        return f" (scaling {setting.scaling:g} × learning rate {rate:.2g})"
    return f" (learning rate {rate:.2g})" if rate else ""
