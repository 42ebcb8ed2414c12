"""Does it fit: how activations are kept, how many tokens at once, and what to give up where it does not.

    needed = reserved + context  ≤  usable memory of the device

The fastest way that fits is taken: keep every activation, else every second layer's, else none; as many tokens at once
as help. What that gave up, and what more would have to go, is a list of `Concession`s in the order they hurt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lorawise.facts.device import DeviceFacts
from lorawise.facts.model import ModelFacts
from lorawise.lora.config import LoraConfig
from lorawise.planning.decision import Decision
from lorawise.planning.memory import Memory, Workload, predict
from lorawise.planning.memory.model import Mode
from lorawise.planning.situation import Method, Trainer

MODES: tuple[Mode, ...] = ("speed", "balanced", "frugal")
AT_ONCE = {"cpu": 2048}  # tokens at once beyond which a step is no faster per token; training/memory.py
AT_ONCE_ELSEWHERE = 16_384
BUSY = 1024  # tokens that keep an accelerator's multipliers busy; fewer only where nothing else fits
SHORTEST = 512  # a concession stops here: shorter rows than this are seldom what was meant
MOST_TOKENS, MOST_SLOTS = 1 << 22, 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Load:
    """Everything the memory of a step depends on. `tokens` at once, `length` of the longest row."""

    model: ModelFacts
    config: LoraConfig
    device: DeviceFacts
    method: Method = "lora"
    mode: Mode = "speed"
    tokens: int = 4096
    length: int = 2048
    packed: bool = True
    accumulate: bool = True
    trainer: Trainer = "lorawise"
    slots: int = 1

    @property
    def workload(self) -> Workload:
        """Packed: one row of `tokens`; else whole rows of `length`, as many as `tokens` allow."""
        rows = 1 if self.packed else max(1, self.tokens // self.length)
        tokens = self.tokens if self.packed else rows * self.length
        return Workload(tokens=tokens, rows=rows, length=self.length, packed=self.packed, accumulate=self.accumulate)

    @cached_property
    def memory(self) -> Memory:
        return predict(
            self.model,
            self.config,
            method=self.method,
            workload=self.workload,
            mode=self.mode,
            trainer=self.trainer,
            slots=self.slots,
            device=self.device,
        )

    @property
    def needed(self) -> int:
        """Bytes of the device that are taken at the peak."""
        return self.memory.total

    @property
    def fits(self) -> bool:
        return self.needed <= self.device.usable


def at_once(device: DeviceFacts) -> int:
    return AT_ONCE.get(device.kind, AT_ONCE_ELSEWHERE)


def settle(load: Load, *, step: int, mode: Mode | None, tokens: int | None) -> Load:
    """The fastest way to run `load` that fits; the smallest when none does. `mode`, `tokens`: the user's own, kept."""
    smallest = load
    for kept in MODES if mode is None else (mode,):
        for count in _counts(load, step) if tokens is None else (tokens,):
            tried = replace(load, mode=kept, tokens=count, accumulate=count < step)
            if tried.fits and (count >= min(BUSY, step) or kept == MODES[-1] or mode is not None):
                return tried
            smallest = tried
    return smallest


def _counts(load: Load, step: int) -> list[int]:
    """Tokens at once, falling: powers of two from what helps down to one longest row."""
    most = max(load.length, min(at_once(load.device), step))
    counts = [most]
    while counts[-1] // 2 > load.length:
        counts.append(1 << (counts[-1] - 1).bit_length() - 1)
    return [*counts, load.length] if counts[-1] > load.length else counts


def decisions(load: Load, *, step: int, mode: Mode | None, tokens: int | None) -> tuple[Decision, Decision]:
    """How `settle` chose, in words."""
    share = load.needed / load.device.usable
    takes = f"{share:.0%} of what {load.device.name} has" if share <= 1 else f"more than {load.device.name} has"
    reasons = {
        "speed": f"every activation is kept: nothing is computed twice, and it takes {takes}",
        "balanced": f"every second layer is computed again in backward, about a sixth more work; it takes {takes}",
        "frugal": f"every layer is computed again in backward, about a third more work; it takes {takes}",
    }
    kept = Decision(
        name="train.memory",
        value=load.mode,
        reason=reasons[load.mode],
        range=MODES,
        sources=("memory",),
        asked=mode is not None,
        advised=load.mode,
    )
    micro = Decision(
        name="train.micro_batch_tokens",
        value=load.tokens,
        reason="tokens at once; the split changes memory, not the result",
        range=(min(load.length, load.tokens), max(load.tokens, at_once(load.device))),
        sources=("memory",),
        asked=tokens is not None,
        advised=load.tokens,
    )
    return kept, micro


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
        load, setting, costs = done
        after = load.needed
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
    if load.method == "qlora":
        return None
    return (
        replace(load, method="qlora"),
        "base.dtype: nf4",
        "a 4-bit base: a little quality, and time to dequantise; planned here, not trained by lorawise yet",
    )


def _shorter(load: Load) -> tuple[Load, str, str] | None:
    length = load.length
    while length > SHORTEST:
        length = max(length // 2, SHORTEST)
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


@dataclass(frozen=True, kw_only=True)
class Largest:
    """What else would fit, each alone: tokens at once, one row's length, settings in one bank. 0: not even one."""

    micro_batch_tokens: int
    max_length: int
    slots: int


def largest(load: Load) -> Largest:
    """By search: what is needed never falls as any of the three grows (law 11), and grows nearly in a line."""
    return Largest(
        micro_batch_tokens=_most(lambda n: replace(load, tokens=n, length=min(n, load.length)), MOST_TOKENS, 64),
        max_length=_most(lambda n: replace(load, tokens=n, length=n), MOST_TOKENS, 64),
        slots=_most(lambda n: replace(load, slots=n), MOST_SLOTS, 1),
    )


def _most(at: Callable[[int], Load], limit: int, unit: int) -> int:
    """The largest multiple of `unit` up to `limit` that fits: the line between two known points, then halves."""
    low, first = 1, at(unit)
    usable = first.device.usable
    if not first.fits:
        return 0
    low_needed, high, high_needed = first.needed, limit // unit + 1, 0
    guess = min(64, high - 1)
    for turn in range(64):
        if high - low <= max(1, low // 256):
            break
        tried = at(guess * unit).needed
        if tried <= usable:
            low, low_needed = guess, tried
        else:
            high, high_needed = guess, tried
        if high_needed and turn % 3 < 2:
            guess = low + int((high - low) * (usable - low_needed) / (high_needed - low_needed))
        else:
            guess = min(2 * low, (low + high) // 2) if not high_needed else (low + high) // 2
        guess = min(max(guess, low + 1), max(high - 1, low + 1))
    return low * unit


def smallest_device(load: Load, known: Sequence[DeviceFacts]) -> DeviceFacts | None:
    """The device with the least memory that runs `load`, every layer computed again and one longest row at once."""
    least = replace(load, mode=MODES[-1], tokens=min(load.tokens, load.length), accumulate=True)
    roughly = 0.9 * least.needed  # devices differ in their workspace and context alone
    for device in sorted(known, key=lambda each: (each.usable, each.name)):
        if device.usable >= roughly and replace(least, device=device).fits:
            return device
    return None
