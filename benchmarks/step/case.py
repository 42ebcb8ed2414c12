"""A case is a file: model shape, data lengths, method and settings. Weights are random, so it needs no network.

title    what it is          model    a hub id whose shape the table of well-known models has
lengths  of the documents    dtype    bfloat16, float16, float32 or nf4
memory   positions of `train.memory` to measure ours at; the peer keeps all, or computes all again
layers   fewer than the model has; 0 for all              needs  cuda, any, or nothing: only when named
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorawise.facts.known import known_config

FOLDER = Path(__file__).parent / "cases"


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    title: str
    model: str
    lengths: list[int]
    dtype: str
    memory: list[str]
    needs: str
    layers: int = 0
    r: int = 16
    alpha: float = 32
    target_modules: str = "all-linear"
    steps: int = 10
    warmup: int = 2

    def __post_init__(self) -> None:
        if known_config(self.model) is None:
            raise ValueError(f"{self.name}: no shape is known of {self.model}")

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def config(self) -> dict[str, Any]:
        found = {key: value for key, value in (known_config(self.model) or {}).items() if key != "architectures"}
        return found | ({"num_hidden_layers": self.layers} if self.layers else {})


def cases() -> dict[str, Case]:
    """Every case by the name of its file."""
    return {p.stem: Case(name=p.stem, **tomllib.loads(p.read_text(encoding="utf-8"))) for p in sorted(FOLDER.iterdir())}
