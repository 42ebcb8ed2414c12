"""What a person wants to do → which rank, scaling and targets that asks for: the guide's cheat sheet, made consistent.

    task            r (range)      scaling (range)   the guide's row
    style           8 (4–16)       1 (0.5–2)         r 4-8, alpha 8-16, 1.0-2.0; its text says 0.5-1.0
    chat            8 (8–32)       2 (1–2)           r 8-16, alpha 16-32, 2.0
    domain          16 (8–32)      2 (2–4)           r 16, alpha 32-64, 2.0-4.0
    language        16 (16–64)     2 (1–2)           r 16-32, alpha 32-64, 2.0
    multitask       32 (16–64)     1 (1–2)           r 32, alpha 32, 1.0
    classification  4 (4–8)        2 (1–2)           r 4, alpha 8, 2.0
    new-language    128 (128–512)  1 (1–2)           "full fine-tuning or very high rank (r=128+)"
    new-behaviour   128 (128–512)  1 (1–2)           "requires more than a correction layer"

The start of r is the guide's rule of thumb, "start with r=8", moved into the row. Where the guide contradicts itself
the range holds both of its statements, and `why` says how the value was chosen between them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lorawise.base.errors import ConfigError, nearest

START = 8  # "Start with r=8. Increase if validation loss plateaus. Decrease if you see overfitting." (the guide)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of the cheat sheet; pairs are (lowest, highest).

    row            the guide's ranks for it
    ranks          what is still sensible: room to go up where validation loss plateaus, down where it overfits
    lora_suffices  the guide's verdict
    """

    name: str
    about: str
    row: tuple[int, int]
    ranks: tuple[int, int]
    scaling: float
    scalings: tuple[float, float]
    why: str
    lora_suffices: bool = True

    @property
    def r(self) -> int:
        """Where to start: r 8, or the end of the row that lies nearest."""
        return min(max(START, self.row[0]), self.row[1])


_START_AT_ONE = (
    "the guide starts at 1 (neutral) and calls 2 the community's default; at its rule lr = 2e-4/scaling both learn B "
    "equally fast at first, so the range holds both"
)

_ROWS = (
    Task(
        name="style",
        about="tone, formatting, small changes of behaviour",
        row=(4, 8),
        ranks=(4, 16),
        scaling=1.0,
        scalings=(0.5, 2.0),
        why="the guide says 0.5 to 1 in its text and 1 to 2 in its cheat sheet: they meet in 1, where its own example "
        "stands (r 8, alpha 8)",
    ),
    Task(
        name="chat",
        about="following instructions, conversation",
        row=(8, 16),
        ranks=(8, 32),
        scaling=2.0,
        scalings=(1.0, 2.0),
        why="the community's default (r 8, alpha 16), which the cheat sheet repeats; " + _START_AT_ONE,
    ),
    Task(
        name="domain",
        about="medical, legal, code: far from what the base was trained on",
        row=(16, 16),
        ranks=(8, 32),
        scaling=2.0,
        scalings=(2.0, 4.0),
        why="2 to 4 for a domain shift; its example stands at the low end (r 16, alpha 32), and 4 beside a high "
        "learning rate is its own warning",
    ),
    Task(
        name="language",
        about="a language or dialect the base has seen some of",
        row=(16, 32),
        ranks=(16, 64),
        scaling=2.0,
        scalings=(1.0, 2.0),
        why="the cheat sheet's row; " + _START_AT_ONE,
    ),
    Task(
        name="multitask",
        about="several jobs in one adapter",
        row=(32, 32),
        ranks=(16, 64),
        scaling=1.0,
        scalings=(1.0, 2.0),
        why="the cheat sheet's row (r 32, alpha 32): wide capacity, neutral strength",
    ),
    Task(
        name="classification",
        about="labels for texts",
        row=(4, 4),
        ranks=(4, 8),
        scaling=2.0,
        scalings=(1.0, 2.0),
        why="the cheat sheet's row (r 4, alpha 8): the task is simple; " + _START_AT_ONE,
    ),
    Task(
        name="new-language",
        about="a language the base has never seen",
        row=(128, 512),
        ranks=(128, 512),
        scaling=1.0,
        scalings=(1.0, 2.0),
        why="at r 128 a scaling of 2 means alpha 256: the neutral 1 keeps the strength of the update in bounds",
        lora_suffices=False,
    ),
    Task(
        name="new-behaviour",
        about="unlearning what was trained deeply",
        row=(128, 512),
        ranks=(128, 512),
        scaling=1.0,
        scalings=(1.0, 2.0),
        why="at r 128 a scaling of 2 means alpha 256: the neutral 1 keeps the strength of the update in bounds",
        lora_suffices=False,
    ),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ROWS})


def find_task(name: str) -> Task:
    """The row called `name`; `ConfigError` with the nearest name."""
    if name not in TASKS:
        raise ConfigError(f"unknown task '{name}'", cure=nearest(name, list(TASKS)))
    return TASKS[name]
