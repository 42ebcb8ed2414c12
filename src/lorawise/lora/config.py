"""One adapter's setting: W' = W + scaling · B·A, with scaling = alpha / r (rsLoRA: alpha / √r).

Scaling is the dial: a setting is written with `scaling` or with `alpha`, always shows both, and keeps the scaling
when only the rank changes (LoRA: Hu et al. 2021, arXiv 2106.09685; rsLoRA: Kalajdzievski 2023, arXiv 2312.03732).
This module imports neither torch nor transformers: planning uses it.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, TypeVar, get_args

from lorawise.base.errors import ConfigError, nearest
from lorawise.base.patterns import matches_key

V = TypeVar("V")
Bias = Literal["none", "all", "lora_only"]
BIASES = get_args(Bias)
INIT_NAMES = ("kaiming", "gaussian")  # what `inits.INITS` holds, known here without torch

PRESETS = ("qv", "attention", "mlp", "all-linear")  # of target_modules; `lora.targets` says what each selects

EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")  # of fused experts that can be adapted
MAX_RANK = 65_536  # far beyond any layer's width: a larger r in a file is a mistake or an attack
FLOAT32 = (1.2e-38, 3.4e38)  # what s·B is computed in holds no smaller and no larger numbers
DEFAULT_SCALING = 2.0  # the guide's community default, r 8 with alpha 16


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What to adapt and how strongly. Frozen; refuses nonsense at birth with `ConfigError`.

    r               rank of the update
    scaling, alpha  either one; the other follows (scaling = alpha/r, or alpha/√r with rslora). Both only if they agree
    target_modules  a preset (`qv`, `attention`, `mlp`, `all-linear`), one regex matched against the whole module
                    name, or several names, each matched as PEFT does: the whole name or its last components
    exclude_modules names or one regex, taken away from the targets
    layers          indices of the decoder layers to adapt; None means all
    expert_r        rank of each fused expert, at the same scaling; None means r
    rank_pattern, alpha_pattern   regex on the module name → its own r or alpha (PEFT's meaning: a rank alone keeps
                    alpha, so that module's scaling is alpha / its own r)
    modules_to_save modules trained in full and saved with the adapter
    init            `kaiming` (PEFT's default for A) or `gaussian` (the guide's, with kaiming's standard deviation)
    seed            of the init; two equal settings with equal seeds start from the same bits
    """

    r: int = 16
    scaling: float = field(default=None)  # type: ignore[assignment]  # filled from alpha at birth, a float ever after
    alpha: float = field(default=None)  # type: ignore[assignment]
    rslora: bool = False
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    exclude_modules: str | tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    expert_r: int | None = None
    modules_to_save: tuple[str, ...] = ()
    bias: Bias = "none"
    init: str = "kaiming"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers"):
            value = getattr(self, name)
            if isinstance(value, (list, set, frozenset)):
                object.__setattr__(self, name, tuple(sorted(value) if isinstance(value, (set, frozenset)) else value))
        problems = list(self._problems())
        if problems:
            raise ConfigError("\n  ".join(problems), cure="see help(lorawise.LoraConfig) for what each field takes")
        self._settle_scaling()
        object.__setattr__(self, "rank_pattern", dict(self.rank_pattern))
        object.__setattr__(self, "alpha_pattern", dict(self.alpha_pattern))

    def _problems(self) -> Iterator[str]:
        yield from self._wrong_numbers()
        yield from self._wrong_selection()
        for field_name, right, noun in (
            ("rank_pattern", _is_rank, f"a whole number from 1 to {MAX_RANK}"),
            ("alpha_pattern", _is_positive, "a positive number"),
        ):
            yield from _wrong_pattern(field_name, getattr(self, field_name), right, noun)
        if not isinstance(self.rslora, bool):
            yield f"rslora={self.rslora!r} is not True or False"
        if self.bias not in BIASES:
            yield f"bias={self.bias!r} is not none, all or lora_only"
        if self.init not in INIT_NAMES:
            yield f"init={self.init!r} is not known; {nearest(str(self.init), INIT_NAMES)}"

    def _wrong_numbers(self) -> Iterator[str]:
        if not _is_rank(self.r):
            yield f"r={self.r!r} is not a whole number from 1 to {MAX_RANK}"
        if self.expert_r is not None and not _is_rank(self.expert_r):
            yield f"expert_r={self.expert_r!r} is not a whole number from 1 to {MAX_RANK}"
        for name in ("scaling", "alpha"):
            value = getattr(self, name)
            if value is not None and not _is_positive(value):
                yield f"{name}={value!r} is not a positive number"
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            yield f"dropout={self.dropout!r} is not in [0, 1)"
        if not _is_index(self.seed):
            yield f"seed={self.seed!r} is not a whole number from 0"

    def _wrong_selection(self) -> Iterator[str]:
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if not isinstance(value, str) and not _are_names(value):
                yield f"{name}={value!r} is neither a text nor names"
        if not _are_names(self.modules_to_save):
            yield f"modules_to_save={self.modules_to_save!r} is not a list of names"
        if not self.target_modules and not self.modules_to_save:
            yield "target_modules is empty and nothing is in modules_to_save: nothing would train"
        if self.layers is not None and not _are_indices(self.layers):
            yield f"layers={self.layers!r} is not a list of layer indices (0, 1, …)"

    def _settle_scaling(self) -> None:
        root = math.sqrt(self.r) if self.rslora else self.r
        if self.alpha is None:
            scaling = DEFAULT_SCALING if self.scaling is None else self.scaling
            object.__setattr__(self, "scaling", float(scaling))
            object.__setattr__(self, "alpha", float(scaling) * root)
        elif self.scaling is None:
            object.__setattr__(self, "scaling", self.alpha / root)
        elif not math.isclose(self.scaling, self.alpha / root, rel_tol=1e-9):
            raise ConfigError(
                f"alpha={self.alpha:g} with r={self.r} means scaling={self.alpha / root:g}, "
                f"but scaling={self.scaling:g} is written too",
                cure="write one of the two",
            )
        if not all(FLOAT32[0] < value < FLOAT32[1] for value in (self.scaling, self.alpha)):
            raise ConfigError(
                f"scaling={self.scaling:g} and alpha={self.alpha:g} with r={self.r} leave the range of floats",
                expected="a scaling between about 0.01 and 100",
            )

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed. Changing only r (or rslora) keeps the scaling; alpha follows.

        A module with its own r or alpha in a pattern keeps that number, so its scaling does change.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if "alpha" in changes and "scaling" not in changes:
            values["scaling"] = None
        else:
            values["alpha"] = None
        return type(self)(**(values | changes))

    def rank_of(self, module: str) -> int:
        """The rank of one module: its own from `rank_pattern`, of fused experts `expert_r`, else r."""
        own = self.expert_r if self.expert_r is not None and is_expert_parameter(module) else self.r
        return _pattern_value(self.rank_pattern, module, own)

    def alpha_of(self, module: str) -> float:
        """Its own from `alpha_pattern`; of experts with a rank of their own what keeps the scaling; else alpha."""
        own = self.alpha
        if self.expert_r is not None and is_expert_parameter(module):
            own = self.scaling * (math.sqrt(self.expert_r) if self.rslora else self.expert_r)
        return _pattern_value(self.alpha_pattern, module, own)

    def scaling_of(self, module: str) -> float:
        """scaling of one module, from its own rank and alpha."""
        rank, alpha = self.rank_of(module), self.alpha_of(module)
        if rank == self.r and alpha == self.alpha:
            return self.scaling
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def __str__(self) -> str:
        rs = " (rsLoRA)" if self.rslora else ""
        return f"r={self.r} alpha={self.alpha:g} scaling={self.scaling:g}{rs}"


def is_expert_parameter(module: str) -> bool:
    """Whether this is the name of a parameter of fused experts, as transformers calls them."""
    return module.endswith(tuple(f"experts.{key}" for key in EXPERT_PARAMETERS))


def _pattern_value(pattern: Mapping[str, V], module: str, default: V) -> V:
    for expression, value in pattern.items():
        if pattern_matches(expression, module):
            return value
    return default


def _wrong_pattern(field_name: str, pattern: object, right: Callable[[object], bool], noun: str) -> Iterator[str]:
    if not isinstance(pattern, Mapping):
        yield f"{field_name}={pattern!r} is not a mapping of module patterns to numbers"
        return
    for expression, value in pattern.items():
        if not right(value):
            yield f"{field_name}[{expression!r}]={value!r} is not {noun}"
        try:
            re.compile(expression)
        except (re.error, RecursionError, OverflowError, TypeError) as problem:
            yield f"pattern {expression!r} is not a regular expression: {problem}"


def _are_names(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) and name for name in value)


def pattern_matches(expression: str, module: str) -> bool:
    """Whether a key of `rank_pattern` or `alpha_pattern` means this module: the whole name or its last components."""
    return matches_key(expression, module)


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_indices(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_index, value))


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
