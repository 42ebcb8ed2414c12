"""One way to train, in the same terms whatever tool it was written for.

    scaling   = alpha / r, with rsLoRA alpha / √r; a tool that takes the scaling itself (mlx-lm) is read as alpha =
    scale · r strength  = scaling · r · learning rate = alpha · lr: how fast the model's function moves at first,
    independent of r
                at fixed alpha (checked numerically; docs/rules.md, LW106)
    batch     = rows an optimizer step: rows at once × accumulation (× devices, where the file says how many)

A field is None when nobody can know it without running something: it is not written and the tool has no default for
it, or it is written as an expression. `lines` holds the line of every field that is written, known or not; `defaulted`
the fields that hold the tool's own default; `senseless`
those with a value that no training can use.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["bfloat16", "float16", "float32"]
Quantization = Literal["nf4", "fp4", "4bit", "int8"]
Objective = Literal["sft", "preference"]

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class Senseless:
    """A value that no training can use, as it is written."""

    written: str
    expected: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """See the module. Numbers are as meant (`2e-4` in YAML is a number); names of modules are Hugging Face's."""

    tool: str
    path: str = ""
    model: str | None = None
    task: str | None = None
    objective: Objective = "sft"

    r: int | None = None
    alpha: float | None = None
    rslora: bool = False
    dora: bool = False
    dropout: float | None = None
    targets: str | tuple[str, ...] | None = None
    layers: tuple[int, ...] | int | None = None  # indices, or how many of the last
    full: tuple[str, ...] = ()  # modules trained whole: PEFT's modules_to_save
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    learning_rate: float | None = None
    lora_plus_ratio: float | None = None
    schedule: str | None = None
    warmup_steps: int | None = None
    warmup_share: float | None = None
    epochs: float | None = None
    steps: int | None = None
    rows_at_once: int | None = None
    accumulation: int | None = None
    devices: int | None = None

    max_length: int | None = None
    packing: bool | None = None
    attention: str | None = None
    precision: Precision | None = None  # what the step computes in
    model_precision: Precision | Literal["auto"] | None = None  # what the base is loaded in
    quantization: Quantization | None = None
    compute_precision: Precision | None = None  # of the 4-bit base
    checkpointing: bool | None = None
    assistant_only: bool | None = None

    validation: bool | None = None  # whether anything is held out
    evaluate_every: int | str | None = None  # steps, "epoch", "no"
    save_every: int | str | None = None
    load_best: bool | None = None

    lines: Mapping[str, int] = field(default_factory=dict)
    defaulted: frozenset[str] = frozenset()
    senseless: Mapping[str, Senseless] = field(default_factory=dict)
    own_names: bool = False  # the tool's modules are its own, whatever the family's are called elsewhere
    base_known: bool = False  # its shapes are at hand: rules that go by names alone leave it to LW211 and LW212

    @property
    def scaling(self) -> float | None:
        if not self.r or self.alpha is None or self.r < 1:
            return None
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    @property
    def strength(self) -> float | None:
        """alpha · lr (rsLoRA: alpha · √r · lr); LoRA+ counts, since B learns that much faster."""
        if self.scaling is None or self.r is None or self.learning_rate is None:
            return None
        return self.scaling * self.r * self.learning_rate * (self.lora_plus_ratio or 1.0)

    @property
    def batch(self) -> int | None:
        if self.rows_at_once is None:
            return None
        return self.rows_at_once * (self.accumulation or 1) * (self.devices or 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The targets, when they are a list of names."""
        return () if self.targets is None or isinstance(self.targets, str) else self.targets

    def written(self, name: str) -> bool:
        """Whether the file says something for this field, known or not."""
        return name in self.lines

    def known(self, name: str) -> bool:
        """Written, and the value could be read."""
        return name in self.lines and getattr(self, name) is not None

    def line(self, *names: str) -> int | None:
        """The line of the first of these fields that is written."""
        return next((self.lines[name] for name in names if name in self.lines), None)

    def __str__(self) -> str:
        scaling = "?" if self.scaling is None else f"{self.scaling:g}"
        rs = " (rsLoRA)" if self.rslora else ""
        alpha = "?" if self.alpha is None else f"{self.alpha:g}"
        return f"r={self.r if self.r else '?'} alpha={alpha} scaling={scaling}{rs}"
