"""How many settings side by side are worth it: as many as fill the device, and no more.

    knee = the power of two up to `MOST_SLOTS` nearest above  at once / tokens of a step

`at_once` are the tokens beyond which a step is no faster per token. One setting's step that has as many fills the
device alone: others beside it wait as long as they would after it.
"""

from lorawise.planning.fit import AT_ONCE, AT_ONCE_ELSEWHERE

MOST_SLOTS = 16  # trained side by side: the widest bank that a step was measured for


def knee(tokens: int, device: str) -> int:
    """Settings in one bank, each with `tokens` at once, on a device of this kind (`cpu`, `cuda`, …)."""
    at_once = AT_ONCE.get(device, AT_ONCE_ELSEWHERE)
    slots = 1
    while slots < MOST_SLOTS and slots * tokens < at_once:
        slots *= 2
    return slots
