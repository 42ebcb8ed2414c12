"""Every error lorawise raises on purpose.

    LorawiseError                 code, found, expected, cure; exit code
    ├── UsageError (ValueError)   the call or a file is wrong                        exit 2
    │   ├── ConfigError           a setting that cannot be meant (LoraConfig, run file)
    │   ├── DataError             rows that cannot be read or trained on
    │   ├── ModelError            a base model that cannot be opened or adapted
    │   ├── AdapterError          an adapter folder that does not hold what it says
    │   └── TensorFileError       a safetensors file that is torn or lies about itself
    └── RunError                  the work ran and met a problem                     exit 1
        ├── PreflightError        a check before the first step failed
        ├── DivergedError         the loss or the gradients are not finite
        ├── MemoryExhausted       more memory was asked for than there is
        ├── StorageError          the disk refused: full, read-only, torn file
        └── Interrupted           stopped by a signal after a save                   exit 130

One error may carry many problems (all of a file at once): each is a line of `found`.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import ClassVar


class LorawiseError(Exception):
    """What was found, what was expected, and what to do about it."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, found: str, *, expected: str = "", cure: str = "") -> None:
        self.found = found
        self.expected = expected
        self.cure = cure
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.found]
        if self.expected:
            parts.append(f"expected: {self.expected}")
        if self.cure:
            parts.append(f"cure: {self.cure}")
        return "\n  ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.found, self.expected, self.cure))

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "found": self.found, "expected": self.expected, "cure": self.cure}


def _rebuild(kind: type[LorawiseError], found: str, expected: str, cure: str) -> LorawiseError:
    return kind(found, expected=expected, cure=cure)


class UsageError(LorawiseError, ValueError):
    exit_code = 2
    code = "usage"


class ConfigError(UsageError):
    code = "config"


class DataError(UsageError):
    code = "data"


class ModelError(UsageError):
    code = "model"


class AdapterError(UsageError):
    code = "adapter"


class TensorFileError(UsageError):
    code = "tensor-file"


class RunError(LorawiseError):
    code = "run"


class PreflightError(RunError):
    code = "preflight"


class DivergedError(RunError):
    code = "diverged"


class MemoryExhausted(RunError):  # noqa: N818 - MemoryError is Python's own
    code = "out-of-memory"


class StorageError(RunError):
    code = "storage"


class Interrupted(RunError):  # noqa: N818 - named for what happened, as KeyboardInterrupt is
    exit_code = 130
    code = "interrupted"


SHOWN = 24  # names one sentence can hold


def nearest(name: str, known: Sequence[str]) -> str:
    """`did you mean 'x'?`, or what is known (the first `SHOWN`) when nothing is near."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    shown = sorted(known)
    more = f", … ({len(shown)} in all)" if len(shown) > SHOWN else ""
    return f"choose one of: {', '.join(shown[:SHOWN])}{more}"
