"""What else would fit: the most tokens, the longest row, the most settings; and the smallest device that would do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lorawise.facts.device import DeviceFacts
from lorawise.planning.load import MODES, Load

MOST_TOKENS, MOST_SLOTS = 1 << 22, 1024


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
