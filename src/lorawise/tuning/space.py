"""What a study varies: axes over the run file's own keys.

    lora.scaling=0.5,1,2,4        a grid: these values
    lora.scaling=0.5..8 log       a range: searched by a sampler

A pack trains many settings over the same rows, so an axis is something that each slot may have for itself, or an outer
one that a whole pack shares (`shared.py`): values then, not a range, for each takes a pack of its own.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorawise.base.errors import ConfigError, nearest
from lorawise.lora.config import MAX_RANK, PRESETS
from lorawise.runfile import RunFile
from lorawise.runfile.yaml_lines import read_value

PER_SLOT = (
    "lora.r",
    "lora.scaling",
    "lora.alpha",
    "lora.rslora",
    "lora.dropout",
    "lora.target_modules",
    "lora.layers",
    "lora.init",
    "lora.seed",
    "train.learning_rate",
    "train.lora_plus_ratio",
    "train.weight_decay",
    "train.warmup",
    "train.clip",
    "train.eps",
)
SHARED = ("train.batch_tokens", "train.batch_size", "train.max_length", "train.seed")
AXES = (*PER_SLOT, *SHARED)
MOST = 4096  # settings of one grid; more is a slip


@dataclass(frozen=True, kw_only=True)
class Grid:
    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Range:
    """low ≤ value ≤ high; `whole` for ranks; `log` when equal ratios are to be equally likely."""

    key: str
    low: float
    high: float
    log: bool
    whole: bool


Axis = Grid | Range


def parse_axes(texts: Sequence[str], run: RunFile) -> tuple[Axis, ...]:
    """`ConfigError` with every axis that cannot be meant. Each end or value must be one the run file would take."""
    axes: list[Axis] = []
    problems: list[str] = []
    for text in texts:
        try:
            axis = _as_taken(_parse(text), run)
            if any(axis.key == other.key for other in axes):
                raise ConfigError(f"--over {axis.key} is given twice")
            axes.append(axis)
        except ConfigError as problem:
            problems.append(f"{problem.found}{f'; {problem.cure}' if problem.cure else ''}")
    keys = {axis.key for axis in axes}
    if {"lora.scaling", "lora.alpha"} <= keys:
        problems.append("lora.scaling and lora.alpha are both axes: one of them follows from the other and r")
    if problems:
        raise ConfigError(
            "\n  ".join(problems), expected="--over KEY=a,b,c (a grid) or --over KEY=low..high [log] (a range)"
        )
    return tuple(axes)


def _parse(text: str) -> Axis:
    key, equals, given = (part.strip() for part in text.partition("="))
    if not equals or not given:
        raise ConfigError(f"--over {text!r} names no values")
    if key not in AXES:
        raise ConfigError(f"--over {key}: settings of one study cannot differ in it", cure=nearest(key, AXES))
    low, dots, high = given.partition("..")
    if not dots:
        whole = read_value(f"[{given}]")
        values = tuple(tuple(v) if isinstance(v, list) else v for v in whole)
        if not values:
            raise ConfigError(f"--over {text!r} holds no value")
        return Grid(key=key, values=values)
    if key in SHARED:
        raise ConfigError(f"--over {text!r} is a range, and each of its values would take a pack", cure=f"{key}=a,b,c")
    high, _, word = high.strip().partition(" ")
    try:
        ends = float(low), float(high)
    except ValueError:
        raise ConfigError(f"--over {text!r}: {low!r} to {high!r} are not numbers") from None
    if word.strip() not in ("", "log"):
        raise ConfigError(f"--over {text!r} ends in {word!r}", cure="only `log` may follow a range")
    log = word.strip() == "log"
    if not (math.isfinite(ends[0]) and math.isfinite(ends[1]) and ends[0] < ends[1]) or (log and ends[0] <= 0):
        raise ConfigError(f"--over {text!r} is an empty range", cure="the low end first; above 0 with log")
    return Range(key=key, low=ends[0], high=ends[1], log=log, whole=key == "lora.r")


def _as_taken(axis: Axis, run: RunFile) -> Axis:
    """The axis with its values as the run file holds them (`1e-4` as a number); `ConfigError` where it refuses one."""
    ends = axis.values if isinstance(axis, Grid) else (axis.low, axis.high)
    taken = tuple(_taken(axis.key, int(v) if isinstance(axis, Range) and axis.whole else v, run) for v in ends)
    if isinstance(axis, Range):
        return axis
    if len({repr(value) for value in taken}) < len(taken):
        raise ConfigError(f"--over {axis.key} holds a value twice")
    return replace(axis, values=taken)


def _taken(key: str, value: Any, run: RunFile) -> Any:
    try:
        tree = run_of(run, {key: value}).model_dump()
    except ValueError as problem:
        raise ConfigError(f"--over {key}: {value!r} is refused: {_first(problem)}") from problem
    section, _, name = key.partition(".")
    return tree[section][name]


def _first(problem: Exception) -> str:
    """What the run file said, without what pydantic puts round it."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    said = lines[2] if len(lines) > 2 else lines[-1]
    return said.removeprefix("Value error, ").partition(" [type=")[0]


def with_ranks(axes: Sequence[Axis], run: RunFile) -> tuple[Axis, ...]:
    """The axes and r around the run file's own: a quarter, itself and four times, which keep its scaling."""
    r = run.lora.r
    return (*axes, Grid(key="lora.r", values=tuple(sorted({max(1, r // 4), r, min(4 * r, MAX_RANK)}))))


def default_axes(run: RunFile) -> tuple[Axis, ...]:
    """Scaling × learning rate around the run file's own values: half to four times, and a third to nine times."""
    scaling, rate = run.lora_config().scaling, run.train.learning_rate
    return (
        Grid(key="lora.scaling", values=tuple(scaling * k for k in (0.5, 1.0, 2.0, 4.0))),
        Grid(key="train.learning_rate", values=tuple(float(f"{rate * k:.3g}") for k in (0.333, 1.0, 3.0, 9.0))),
    )


def grid_of(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """Every combination of the grids, the last axis fastest; `ConfigError` beyond `MOST`."""
    grids = [axis for axis in axes if isinstance(axis, Grid)]
    count = math.prod(len(axis.values) for axis in grids)
    if count > MOST:
        raise ConfigError(f"the grid has {count:,} settings", expected=f"at most {MOST:,}", cure="use ranges")
    for values in itertools.product(*(axis.values for axis in grids)):
        yield {axis.key: value for axis, value in zip(grids, values, strict=True)}


def setting_of_run(axes: Sequence[Axis], run: RunFile) -> dict[str, Any]:
    """The run file's own values on the axes: what a study's winner has to beat."""
    tree = run.model_dump()
    return {axis.key: tree[axis.key.partition(".")[0]][axis.key.partition(".")[2]] for axis in axes}


def run_of(run: RunFile, setting: Mapping[str, Any]) -> RunFile:
    """The run file with a setting put over it; r or rsLoRA alone keeps the scaling. `ValueError` where it refuses."""
    held = {} if {"lora.alpha", "lora.scaling"} & set(setting) else {"lora.scaling": run.lora_config().scaling}
    return run.with_values(held | dict(setting))


def identity(run: RunFile) -> str:
    """Equal for settings that are provably the same run, however they are written.

    r 8 alpha 16 and r 8 scaling 2; rsLoRA or not at one scaling; and, as B's gradient and eps go with the scaling and
    with one over the LoRA+ ratio (law 5), scaling 4 at ratio 1 and scaling 1 at ratio 4: without clipping, whose norm
    mixes A and B, and without decay or dropout, whose masks follow the setting.
    """
    config, train, ratio = run.lora_config(), run.train, run.train.lora_plus_ratio
    patterned = bool(config.rank_pattern or config.alpha_pattern)
    if config.rslora and not (config.dropout or patterned):
        config = config.replace(rslora=False)
    linear_layers_alone = isinstance(config.target_modules, str) and config.target_modules in PRESETS
    if linear_layers_alone and not (train.clip or train.weight_decay or config.dropout or patterned):
        config, ratio = config.replace(scaling=float(f"{config.scaling * ratio:.12g}")), 1.0
    rest = (train.learning_rate, ratio, train.weight_decay, train.warmup, train.clip, train.eps)
    shared = (train.batch_tokens, train.batch_size, train.max_length, train.seed)
    return repr((config, train.betas, rest, shared))
