"""The kinds of value a run file holds: each takes what a person may reasonably write and says what it wants.

YAML 1.1 reads `2e-4` as text and `16.0` as a float; both are taken for the number they mean. `true` is never a number.
A refusal is a ValueError whose text continues `lora.r: `, so that a loader can put file, line and key before it.
"""

import math
import os
import sys
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import PlainValidator

from lorawise.base.errors import nearest

T = TypeVar("T")
Auto = Literal["auto"]


def number(value: object) -> float | int | None:
    """The number a scalar means, whole where it is whole; None when it means none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        return None  # NaN, infinity, and whole numbers that no float can hold
    return int(value) if isinstance(value, float) and value.is_integer() else value


def whole(least: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        found = number(value)
        if not isinstance(found, int) or found < least:
            raise ValueError(f"{value!r} is not a whole number from {least}")
        return found

    return read


def real(
    *, above: float | None = None, least: float | None = None, below: float = math.inf
) -> Callable[[object], float]:
    bounds = [f"above {above:g}" if above is not None else f"from {least:g}"]
    bounds += [f"below {below:g}"] if below < math.inf else []

    def read(value: object) -> float:
        found = number(value)
        low = found is not None and (found > above if above is not None else found >= (least or 0.0))
        if found is None or not low or found >= below:
            raise ValueError(f"{value!r} is not a number {' and '.join(bounds)}")
        return float(found)

    return read


def word(*known: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in known:
            raise ValueError(f"{value!r} is not known; {nearest(str(value), known)}")
        return str(value)

    return read


def either(literal: str, read: Callable[[object], T]) -> Callable[[object], T | str]:
    def check(value: object) -> T | str:
        if value == literal:
            return literal
        try:
            return read(value)
        except ValueError as problem:
            raise ValueError(f"{problem}, nor '{literal}'") from None

    return check


def optional(read: Callable[[object], T]) -> Callable[[object], T | None]:
    """null, and the words people write for it (`off` and `no` reach us as false)."""

    def check(value: object) -> T | None:
        return None if value is None or value is False or value == "none" else read(value)

    return check


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not text")
    return value


def place(value: object) -> str:
    """A hub id, or a path that a disk could hold."""
    found = text(value)
    try:
        os.stat(Path(found).expanduser())
    except (FileNotFoundError, NotADirectoryError):
        return found
    except (OSError, ValueError, RuntimeError) as problem:
        said = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise ValueError(f"{found[:80]!r} is no path: {said}") from None
    return found


def names(value: object) -> tuple[str, ...]:
    """A list of names; one name alone counts as a list of one; null as none."""
    if value is None or value is False:
        return ()
    if isinstance(value, str):
        return (text(value),)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{value!r} is not a list of names")
    return tuple(text(entry) for entry in value)


def words(*known: str) -> Callable[[object], tuple[str, ...]]:
    def read(value: object) -> tuple[str, ...]:
        return () if value == "none" else tuple(word(*known)(entry) for entry in names(value))

    return read


def text_or_names(value: object) -> str | tuple[str, ...]:
    return text(value) if isinstance(value, str) else names(value)


def indices(value: object) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{value!r} is not a list of layer indices, such as [0, 1, 2]")
    return tuple(whole(0)(entry) for entry in value)


def patterns(read: Callable[[object], T]) -> Callable[[object], dict[str, T]]:
    def check(value: object) -> dict[str, T]:
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r} is not a mapping of module pattern to number")
        return {text(name): read(entry) for name, entry in value.items()}

    return check


def betas(value: object) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{value!r} is not two numbers, such as [0.9, 0.999]")
    beta = real(least=0.0, below=1.0)
    return beta(value[0]), beta(value[1])


def steps_or_share(value: object) -> int | float:
    """Steps when whole, a share of the run when below 1. `0.03`, `100`; `1.5` is neither."""
    found = number(value)
    if found is None or found < 0 or (found >= 1 and not isinstance(found, int)):
        raise ValueError(f"{value!r} is neither a share below 1 (0.03) nor a whole number of steps (100)")
    return found


def day(value: object) -> str:
    """A date as YYYY-MM-DD: YAML's own dates reach us as the text that was written."""
    try:
        return date.fromisoformat(text(value)).isoformat()
    except ValueError:
        raise ValueError(f"{value!r} is not a day, such as 2026-11-25") from None


def validation(value: object) -> str | int | float | None:
    """A file or hub id, a share of the training rows below 1, or a number of them; null for none."""
    if isinstance(value, str) and number(value) is None and value != "none":
        return place(value)
    return optional(_share_or_rows)(value)


def _share_or_rows(value: object) -> int | float | None:
    found = number(value)
    if found is None or found < 0 or (found >= 1 and not isinstance(found, int)):
        raise ValueError(f"{value!r} is neither a file, a share below 1 (0.05), nor a whole number of rows (200)")
    return found or None


def kind(read: Callable[[object], Any]) -> PlainValidator:
    return PlainValidator(read)


Place = Annotated[str, kind(place)]
Text = Annotated[str, kind(text)]
Flag = Annotated[bool, kind(flag)]
Positive = Annotated[int, kind(whole(1))]
Count = Annotated[int, kind(whole(0))]
PositiveReal = Annotated[float, kind(real(above=0.0))]
NonNegative = Annotated[float, kind(real(least=0.0))]
Share = Annotated[float, kind(real(least=0.0, below=1.0))]
Names = Annotated[tuple[str, ...], kind(names)]
