"""One number of a plan with what speaks for it; `value, reason, range, sources` in every form it is shown in.

A decision is named as the field of a run file that it fills (`lora.r`, `train.learning_rate`), so that `--set` can
override it and `--explain` can find it.
"""

from dataclasses import dataclass

Value = str | int | float | bool | None
Range = tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """
    name     the dotted key of the run file it fills
    value    what the plan takes: the user's own value where there is one
    reason   why, in a sentence
    range    two bounds for a number, every sensible choice for a word; empty where nothing else makes sense
    sources  short names, each explained in `evidence.SOURCES`
    asked    whether the value is the user's own; `advised` is then what the plan would have taken
    """

    name: str
    value: Value
    reason: str
    range: Range = ()
    sources: tuple[str, ...] = ()
    asked: bool = False
    advised: Value = None

    @property
    def within(self) -> bool:
        """Does the value lie in the range? Words must be among the choices; no range refuses nothing."""
        if not self.range:
            return True
        low, high = self.range[0], self.range[-1]
        if _is_number(self.value) and _is_number(low) and _is_number(high):
            return float(low) * (1 - 1e-9) <= float(self.value) <= float(high) * (1 + 1e-9)  # type: ignore[arg-type]
        return self.value in self.range


def _is_number(value: Value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
