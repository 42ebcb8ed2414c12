"""What to give up where a run does not fit, in the order it hurts: what each gives, what it costs, what is needed then.

    packing budget → checkpointing → chunked loss → 4-bit base → length → rank → targets

The first three change no result. Each step starts from where the one before left off.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lorawise.planning.load import BUSY, MODES, Load
from lorawise.runfile.not_built import is_built

SHORTEST = 512  # a concession stops here: shorter rows than this are seldom what was meant


@dataclass(frozen=True, kw_only=True)
class Concession:
    """One thing given up. `saves` against the one before, `needed` once it and all before are made."""

    name: str
    setting: str
    saves: int
    costs: str
    needed: int
    fits: bool
    taken: bool = False


Step = Callable[[Load], tuple[Load, str, str] | None]  # → (the load after, the setting to write, what it costs)


def concessions(start: Load, settled: Load) -> tuple[Concession, ...]:
    """From the fastest way to run to one that fits, in the order they hurt; empty when nothing has to go.

    Those the plan itself makes (they change no result) are `taken`. The list ends with the first that fits.
    """
    load, made = start, []
    before = load.needed
    for name, step in STEPS:
        if before <= load.device.usable:
            break
        done = step(load)
        if done is None:
            continue
        tried, setting, costs = done
        after = tried.needed
        if after >= before:
            continue
        load = tried
        taken = name in ("packing budget", "checkpointing") and _reached(settled, load)
        made.append(
            Concession(
                name=name,
                setting=setting,
                saves=before - after,
                costs=costs,
                needed=after,
                fits=after <= load.device.usable,
                taken=taken,
            )
        )
        before = after
    return tuple(made)


def _reached(settled: Load, load: Load) -> bool:
    return settled.tokens <= load.tokens or MODES.index(settled.mode) >= MODES.index(load.mode)


def _fewer_tokens(load: Load) -> tuple[Load, str, str] | None:
    if load.tokens <= load.length:
        return None
    fewer = max(load.length, min(load.tokens, BUSY))
    return (
        replace(load, tokens=fewer, accumulate=True),
        f"train.micro_batch_tokens: {fewer}",
        "more micro-batches a step; the result stays the same",
    )


def _checkpointing(load: Load) -> tuple[Load, str, str] | None:
    if load.mode == MODES[-1]:
        return None
    return (
        replace(load, mode=MODES[-1]),
        f"train.memory: {MODES[-1]}",
        "layers are computed again: about a third more work; the result stays the same",
    )


def _chunked_loss(load: Load) -> tuple[Load, str, str] | None:
    """Our trainer never holds a batch's logits; the stock one does."""
    if load.trainer == "lorawise":
        return None
    return replace(load, trainer="lorawise"), "lorawise train", "the loss is taken in chunks; the result stays the same"


def _nf4(load: Load) -> tuple[Load, str, str] | None:
    if load.method == "full":
        return replace(load, method="lora"), "--method lora", "an adapter in place of the whole model"
    if load.method == "qlora" or load.model.experts:  # bitsandbytes leaves fused experts as they are
        return None
    trained = "" if is_built("base.dtype", "nf4") else "; planned here, not trained by lorawise yet"
    return (
        replace(load, method="qlora"),
        "base.dtype: nf4",
        f"a 4-bit base: a little quality, and time to dequantise{trained}",
    )


def _shorter(load: Load) -> tuple[Load, str, str] | None:
    length = load.length
    while length > SHORTEST:
        length = max(length // 2 // SHORTEST * SHORTEST, SHORTEST)
        tried = replace(load, length=length, tokens=min(load.tokens, length))
        if tried.fits:
            break
    if length == load.length:
        return None
    return (
        replace(load, length=length, tokens=min(load.tokens, length)),
        f"train.max_length: {length}",
        "longer rows lose their ends",
    )


def _lower_rank(load: Load) -> tuple[Load, str, str] | None:
    r = load.config.r
    while r > 4:
        r //= 2
        if replace(load, config=load.config.replace(r=r)).fits:
            break
    if r == load.config.r:
        return None
    return replace(load, config=load.config.replace(r=r)), f"lora.r: {r}", "less capacity"


def _fewer_targets(load: Load) -> tuple[Load, str, str] | None:
    wider = load.config.target_modules
    if wider == "qv":
        return None
    return (
        replace(load, config=load.config.replace(target_modules="qv")),
        "lora.target_modules: qv",
        "narrow targets learn less at equal rank",
    )


STEPS: Sequence[tuple[str, Step]] = (
    ("packing budget", _fewer_tokens),
    ("checkpointing", _checkpointing),
    ("chunked loss", _chunked_loss),
    ("4-bit base", _nf4),
    ("length", _shorter),
    ("rank", _lower_rank),
    ("targets", _fewer_targets),
)
