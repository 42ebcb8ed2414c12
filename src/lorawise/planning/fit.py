"""Does it fit: how activations are kept, and how many tokens at once.

The fastest way that fits is taken: keep every activation, else every second layer's, else none; as many tokens at once
as help. What that gave up, and what more would have to go, is in `concessions.py`; what else would fit in `largest.py`.
"""

from dataclasses import replace

from lorawise.facts.device import DeviceFacts
from lorawise.planning.decision import Decision
from lorawise.planning.load import BUSY, MODES, Load
from lorawise.planning.memory.model import Mode

AT_ONCE = {"cpu": 2048}  # tokens at once beyond which a step is no faster per token; training/memory.py
AT_ONCE_ELSEWHERE = 16_384


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
