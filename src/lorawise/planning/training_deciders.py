"""Decisions on the run: how long a row, how many epochs, how large a step, how fast, in which precision."""

import math

from lorawise.facts.device import AN_AMOUNT
from lorawise.planning.deciders import decider
from lorawise.planning.decision import Decision
from lorawise.planning.precision import computed_in
from lorawise.planning.rate import GUIDE_BATCH, LAWS, interval, learning_rate, rounded
from lorawise.planning.situation import Settled, Situation
from lorawise.runfile.schema import QUANTISED

LENGTH, LENGTH_STEP = 2048, 128  # the guide's max_length; lengths come in whole blocks
EPOCHS_BY_ROWS = ((10_000, 3.0), (100_000, 2.0))  # up to so many rows; beyond, 1 (Unsloth's 1 to 3, the guide's 3)
FEWEST_STEPS = 100  # fewer steps than the guide's own warm-up is no run
FEWEST_ROWS = 4  # a step
DEFAULT_TOKENS = 4096


@decider("train.max_length")
def max_length(s: Situation, done: Settled) -> Decision:
    """Tokens a row may have; what is longer is cut at its end, and counted.

    2048 in the guide's script. With data at hand: just above the longest row when that is within 2048, else the 99th
    percentile, never above what the model was trained to read. Packed rows do not pay for a length they do not use, but
    the longest row bounds the micro-batch, and with it the memory.
    """
    most = s.model.max_positions or 1 << 20
    if s.data is None:
        value, reason, sources = (
            min(LENGTH, most),
            "the guide's script; name the data to fit it to the rows",
            ("guide",),
        )
        low = min(512, most)
    else:
        longest, low = s.data.longest, min(_block(s.data.percentile(0.95)), most)
        wanted = longest if longest <= LENGTH else max(LENGTH, s.data.percentile(0.99))
        value, sources = min(_block(wanted), most), ("data",)
        cut = s.data.rows_cut(value)
        reason = (
            f"cuts {cut:,} of {s.data.rows:,} rows" if cut else f"no row is cut: the longest has {longest:,} tokens"
        )
    step = s.asked("train.batch_tokens")
    if isinstance(step, int) and value > step:
        value, reason = step, f"{reason}; your step of {step:,} tokens holds no longer row"
    return Decision(name="train.max_length", value=value, reason=reason, range=(low, most), sources=sources)


def _block(length: int) -> int:
    return math.ceil(max(length, 2) / LENGTH_STEP) * LENGTH_STEP


@decider("train.epochs")
def epochs(s: Situation, done: Settled) -> Decision:
    """Passes over the data.

    3 in the guide's script, 1 to 3 in Unsloth's guide: more for few rows, one where rows are plenty, since a row seen
    again teaches less and is remembered more. Validation loss says when to stop (`train.early_stopping`).
    """
    steps = s.asked("train.steps")
    if isinstance(steps, int):
        return Decision(name="train.steps", value=steps, reason="as you wrote it", asked=True)
    rows = None if s.data is None else s.data.rows
    value = 3.0 if rows is None else next((e for most, e in EPOCHS_BY_ROWS if rows <= most), 1.0)
    reason = "the guide's script" if rows is None else f"{rows:,} rows: fewer passes for more rows"
    return Decision(name="train.epochs", value=value, reason=reason, range=(1.0, 3.0), sources=("guide", "Unsloth"))


@decider("train.batch_tokens")
def batch(s: Situation, done: Settled) -> Decision:
    """Tokens an optimizer step learns from.

    The guide's script takes 16 rows (4 at once, 4 times). LoRA loses more than full fine-tuning when batches grow
    (LoRA Without Regret), and a run needs steps: fewer rows a step where the data would give fewer than 100. Split into
    micro-batches that fit, it does not change the memory, nor does the split change the result.
    """
    rows = s.asked("train.batch_size")
    if isinstance(rows, int):
        return Decision(name="train.batch_size", value=rows, reason="rows a step, as you wrote it", asked=True)
    length = done.whole("train.max_length")
    if s.data is None:
        value = max(DEFAULT_TOKENS, length)
        reason, low, high, sources = "small steps suit LoRA", 2048, 32_768, ("LoRA Without Regret", "DESIGN")
    else:
        mean = s.data.tokens_kept(length) / s.data.rows
        rows_a_step = GUIDE_BATCH
        while rows_a_step > FEWEST_ROWS and s.data.rows * _epochs(done) / rows_a_step < FEWEST_STEPS:
            rows_a_step //= 2
        value = max(_power(rows_a_step * mean), length)
        reason = f"about {value / mean:.0f} rows of {mean:.0f} tokens; the guide's script takes 16"
        low, high, sources = (
            max(_power(FEWEST_ROWS * mean), length),
            _power(64 * mean),
            ("guide", "LoRA Without Regret"),
        )
    return Decision(
        name="train.batch_tokens", value=value, reason=reason, range=(low, max(value, high)), sources=sources
    )


def _epochs(done: Settled) -> float:
    return done.real("train.epochs") if "train.epochs" in done else 1.0


def _power(tokens: float) -> int:
    """The power of two nearest above."""
    return int(2 ** math.ceil(math.log2(max(tokens, 16))))


def rows_a_step(s: Situation, done: Settled) -> float:
    """Rows an optimizer step learns from; the guide's 16 where the data is not known."""
    if "train.batch_size" in done:
        return done.real("train.batch_size")
    if s.data is None:
        return float(GUIDE_BATCH)
    kept = s.data.tokens_kept(done.whole("train.max_length")) / s.data.rows
    return done.real("train.batch_tokens") / kept


@decider("train.learning_rate")
def rate(s: Situation, done: Settled) -> Decision:
    """The peak learning rate: lr = 2e-4 / scaling · √(32 / r) · g(rows a step).

    The guide's baseline is 2e-4 / scaling, and its own script writes 2e-4 at scaling 2, twice that. Both are in the
    interval: at r 8 and scaling 2 the formula gives the script's 2e-4, at r 32 the baseline's.

    √(32/r) stands between the guide, whose rule does not know the rank, and LoRA Without Regret, where the best rate
    does not change with r while alpha stays 32 (that is 32/r at a fixed scaling). Where it was measured, the best rate
    fell 5.6-fold from r 4 to r 256: an exponent of 0.41 (arXiv 2602.04998). g grows from 1 at the guide's 16 rows to
    1.5 at the 128 rows of the public sweep of 35 models, where the formula gives the 3e-4 that was best for 22 of them,
    and lost 0 % at the median and 2.6 % at worst (docs/learning-rate.md).

    The interval is that of the sweep's best rates, a third to 10/3. LoRA's best rate is about ten times that of full
    fine-tuning. PiSSA wants about 10× less, OLoRA and LoRA-GA about 18× less. High scaling needs a lower rate: 5e-4 at
    scaling 4 spikes.
    """
    r, scaling, rows = done.whole("lora.r"), done.real("lora.scaling"), rows_a_step(s, done)
    value = rounded(learning_rate(r=r, scaling=scaling, batch=rows))
    if s.method == "full":
        return _full_rate(value)
    low, high = interval(value, scaling)
    guide, fixed = (learning_rate(r=r, scaling=scaling, batch=rows, law=law) for law in list(LAWS)[::2])
    return Decision(
        name="train.learning_rate",
        value=value,
        reason=f"between the guide's 2e-4/scaling ({_short(guide)}) and alpha·lr held fixed ({_short(fixed)})"
        if r != 32
        else "where the guide's 2e-4/scaling and the public sweep agree",
        range=(rounded(low), rounded(high)),
        sources=("guide", "tinker-cookbook", "LoRA Without Regret", "Learning Rate Matters"),
    )


def _full_rate(lora: float) -> Decision:
    return Decision(
        name="train.learning_rate",
        value=rounded(lora / 10),
        reason="full fine-tuning's best rate is about a tenth of LoRA's",
        range=(rounded(lora / 30), rounded(lora / 3)),
        sources=("LoRA Without Regret",),
    )


def _short(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


@decider("train.schedule")
def schedule(s: Situation, done: Settled) -> Decision:
    """How the learning rate falls. Cosine to nothing is the common choice; wsd (constant, then a fall over the last
    fifth) suits a run that may be prolonged; constant suits comparing settings early, since a falling rate mis-ranks
    high ones."""
    return Decision(
        name="train.schedule",
        value="cosine",
        reason="the common choice; wsd where the run may be prolonged",
        range=("constant", "linear", "cosine", "wsd"),
        sources=("QLoRA", "DESIGN"),
    )


@decider("train.warmup")
def warmup(s: Situation, done: Settled) -> Decision:
    """Steps at the start while the learning rate rises, as a share of the run or as steps.

    The guide's script writes 100 steps; QLoRA 3 % of the run. The share follows the run's length: 100 steps would be
    most of a short run.
    """
    steps = total_steps(s, done)
    seen = "" if steps is None else f" ({max(1, math.ceil(0.03 * steps))} of {steps:,} steps)"
    return Decision(
        name="train.warmup",
        value=0.03,
        reason=f"a share follows the run's length{seen}; the guide's 100 steps can be all of a short run",
        range=(0.0, 0.1),
        sources=("QLoRA", "guide"),
    )


def total_steps(s: Situation, done: Settled) -> int | None:
    """Optimizer steps of the whole run; None where the data is not known."""
    if "train.steps" in done:
        return done.whole("train.steps")
    if s.data is None:
        return None
    return max(1, math.ceil(s.data.rows * done.real("train.epochs") / rows_a_step(s, done)))


@decider("base.dtype")
def dtype(s: Situation, done: Settled) -> Decision:
    """What the frozen base is held and computed in.

    bfloat16 where the device multiplies it: the range of float32 in half the memory. float16 on older cards (the
    guide's script trains with fp16), where losses are scaled against underflow. A CPU is asked when the run starts.
    nf4 is QLoRA: 4-bit blocks, about a quarter of the memory; the scaling works the same on it, since it acts on the
    adapter's own full-precision weights.
    """
    if s.method == "qlora":
        return Decision(
            name="base.dtype",
            value="nf4",
            reason="QLoRA: 4-bit base, adapter in full precision; the scaling works the same",
            range=QUANTISED,
            sources=("QLoRA", "guide"),
        )
    if s.device.kind == "cpu":
        return Decision(
            name="base.dtype",
            value="auto",
            reason=f"{computed_in('auto', s.model, s.device)} here: bfloat16 where a processor multiplies it and the "
            "model is no float32",
            range=("auto", "bfloat16", "float32"),
            sources=("device", "model"),
        )
    known = [name for name in ("bfloat16", "float16", "float32") if name in s.device.formats]
    value = known[0] if known else "float32"
    reason = f"{s.device.name} computes in it" + ("" if value == "bfloat16" else ", and has no bfloat16")
    if s.device.source == AN_AMOUNT:
        reason = "most cards compute in it; name the card: older ones take float16"
    return Decision(name="base.dtype", value=value, reason=reason, range=tuple(known), sources=("device", "model"))
