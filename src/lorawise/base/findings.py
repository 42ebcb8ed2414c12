"""A finding: one thing worth a person's attention, with where it is and what to do."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    code: str
    level: Level
    message: str
    cure: str = ""
    path: str = ""
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}: " if self.line else f"{self.path}: " if self.path else ""
        cure = f" ({self.cure})" if self.cure else ""
        return f"{where}{self.message}{cure}"
