"""Several adapters as one: ΔW = Σᵢ wᵢ·ΔWᵢ, exactly, or by a method that says how far from that it is.

    exact       the factors side by side: r = Σ rᵢ, no error but the rounding of the file
    svd         the exact sum, cut to a rank (the best there is for its size)
    linear      A and B averaged apart, as PEFT's `linear`: B's of one adapter meet A's of another
    ties        the dense deltas trimmed to their largest entries, a sign elected for each entry, those that agree
                averaged (Yadav et al. 2023, arXiv 2306.01708)
    dare        entries of the dense deltas dropped at random, the rest enlarged (Yu et al. 2023, arXiv 2311.03099)
    dare-ties   dare, then the election of signs
    magnitude   the largest entries kept, the rest dropped

Of the last four the dense result of a module is cut back to a rank. A negative weight subtracts. Every scaling, rank,
rsLoRA and pattern is folded in before anything is added.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import AdapterError, ConfigError
from lorawise.base.registry import Registry
from lorawise.base.tensors import StoredTensor
from lorawise.lora.config import LoraConfig
from lorawise.lora.weights import StoredAdapter
from lorawise.store.algebra.factors import Array, Factors, svd, total
from lorawise.store.algebra.range_finder import largest
from lorawise.store.algebra.rescale import rescale
from lorawise.store.algebra.result import computed, config_with_ranks, experts_of, shapes_of
from lorawise.store.peft_config import listing


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    name: str
    adapter: StoredAdapter
    weight: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """rank     of the result, where the method cuts to one; None: the sum of the parts' ranks
    density  share of entries that ties, dare and magnitude keep
    seed     of what dare drops and of the search for the largest singular values
    """

    rank: int | None = None
    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank={self.rank} is not a whole number from 1")
        if not 0 < self.density <= 1:
            raise ConfigError(f"density={self.density:g} is not in (0, 1]", cure="write 0.5 to keep half the entries")


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighted(Factors):
    """One part's ΔW of one module; its weight and scaling are in B already, and remembered."""

    weight: float
    scaling: float


# The parts of one module, scaling and weight folded in, and its name → its ΔW, of the rank `_rank` gives.
Method = Callable[[Sequence[Weighted], int, Options, str], Factors]
METHODS: Registry[Method] = Registry("method")
DENSE = frozenset({"ties", "dare", "dare-ties", "magnitude"})


@METHODS.register("exact")
def _exact(parts: Sequence[Weighted], rank: int, options: Options, module: str) -> Factors:
    return total(parts)


@METHODS.register("svd")
def _svd(parts: Sequence[Weighted], rank: int, options: Options, module: str) -> Factors:
    return svd(total(parts)).factors(rank)


@METHODS.register("linear")
def _linear(parts: Sequence[Weighted], rank: int, options: Options, module: str) -> Factors:
    # Weight and scaling are in B: half of them (their root) belongs to A, as in PEFT.
    roots = [np.sqrt(abs(part.weight * part.scaling)) for part in parts]
    return Factors(
        A=np.sum([root * part.A for root, part in zip(roots, parts, strict=True)], axis=0),
        B=np.sum([part.B / root for root, part in zip(roots, parts, strict=True)], axis=0),
    )


@METHODS.register("magnitude")
def _magnitude(parts: Sequence[Weighted], rank: int, options: Options, module: str) -> Factors:
    return _cut(np.sum([_trimmed(part.dense(), options.density) for part in parts], axis=0), rank, options)


@METHODS.register("ties")
def _ties(parts: Sequence[Weighted], rank: int, options: Options, module: str) -> Factors:
    return _cut(_elected([_trimmed(part.dense(), options.density) for part in parts], parts), rank, options)


@METHODS.register("dare")
def _dare(parts: Sequence[Weighted], rank: int, options: Options, module: str) -> Factors:
    return _cut(np.sum(_dropped(parts, options, module), axis=0), rank, options)


@METHODS.register("dare-ties")
def _dare_ties(parts: Sequence[Weighted], rank: int, options: Options, module: str) -> Factors:
    return _cut(_elected(_dropped(parts, options, module), parts), rank, options)


def exact_sum(parts: Sequence[Part]) -> Callable[[str], Factors]:
    """Module → Σ w·ΔW of the parts that have it."""
    return lambda module: total(_of_module(parts, module))


def combine(parts: Sequence[Part], method: str, options: Options, dtype: str) -> StoredAdapter:
    """The combination, computed as it is written in `dtype`.

    One part alone, combined exactly, is that part rescaled: the same numbers to the bit. `AdapterError` for parts that
    do not go together: other shapes, tasks or kinds, modules trained in full (there is no base here to add them to).
    """
    _require_kin(parts)
    work = METHODS[method]
    if len(parts) == 1 and method == "exact":
        return _alone(parts[0])
    shapes = {module: widths for part in parts for module, widths in shapes_of(part.adapter).items()}
    ranks = {module: _rank(parts, module, method, options, widths) for module, widths in shapes.items()}
    first = parts[0].adapter
    like = replace(
        first,
        full={},
        layers={module: pair for part in parts for module, pair in part.adapter.layers.items()},
        kinds={k: v for part in parts for k, v in part.adapter.kinds.items()},
    )
    config = config_with_ranks(LoraConfig(target_modules=tuple(shapes)), ranks, 1.0)
    return computed(like, config, shapes, lambda m: work(_of_module(parts, m), ranks[m], options, m), dtype)


def _alone(part: Part) -> StoredAdapter:
    if part.weight == 1:
        return part.adapter
    scaled = rescale(part.adapter, abs(part.weight))
    if part.weight > 0:
        return scaled
    layers = {module: (a, _negated(b)) for module, (a, b) in scaled.layers.items()}
    return replace(scaled, layers=layers)


def _negated(tensor: StoredTensor) -> StoredTensor:
    """Every sign turned, in whatever type: the highest bit of each number."""

    def bits() -> NDArray[Any]:
        held = tensor.bits().copy()
        held.view(f"<u{held.itemsize}")[...] ^= np.array(1 << (8 * held.itemsize - 1), dtype=f"<u{held.itemsize}")
        return held

    return replace(tensor, bits=bits)


def _of_module(parts: Sequence[Part], module: str) -> list[Weighted]:
    found = []
    for part in parts:
        if module in part.adapter.layers:
            plain, scaling = Factors.of(part.adapter, module), part.adapter.config.scaling_of(module)
            found.append(Weighted(A=plain.A, B=part.weight * plain.B, weight=part.weight, scaling=scaling))
    return found


def _rank(parts: Sequence[Part], module: str, method: str, options: Options, widths: tuple[int, int]) -> int:
    ranks = [part.adapter.layers[module][0].shape[-2] for part in parts if module in part.adapter.layers]
    if method == "linear":
        if len(set(ranks)) > 1 or len(ranks) < len(parts):
            raise AdapterError(
                f"{module} has ranks {ranks} in the {len(parts)} adapters",
                expected="the same modules with the same rank in all, for the method 'linear'",
                cure="use the method exact, or svd",
            )
        return ranks[0]
    if method == "exact":
        return sum(ranks)
    return min(options.rank or sum(ranks), *widths, *([sum(ranks)] if method == "svd" else []))


def _require_kin(parts: Sequence[Part]) -> None:
    problems = [f"{part.name}: its weight is {part.weight}" for part in parts if not 0 < abs(part.weight) < 1e6]
    first = parts[0]
    for part in parts:
        if part.adapter.full and (len(parts) > 1 or part.weight != 1):
            problems.append(f"{part.name} holds {listing(list(part.adapter.full), 3)} trained in full")
        if part.adapter.task != first.adapter.task:
            problems.append(f"{part.name} is for {part.adapter.task}, {first.name} for {first.adapter.task}")
        mine, theirs = shapes_of(part.adapter), shapes_of(first.adapter)
        stacks = experts_of(part.adapter), experts_of(first.adapter)
        for module in mine.keys() & theirs.keys():
            kinds = [each.adapter.kinds.get(module, "linear") for each in (part, first)]
            if mine[module] != theirs[module] or kinds[0] != kinds[1] or stacks[0][module] != stacks[1][module]:
                problems.append(
                    f"{module} is {mine[module]} in {part.name}, {theirs[module]} in {first.name} (in, out)"
                )
    if problems:
        raise AdapterError(
            "these adapters cannot be combined: " + "\n  ".join(problems[:8]),
            expected="adapters of one base model and task, with LoRA layers only; weights other than 0, below 1e6",
            cure="leave out what does not belong; to combine modules trained in full, merge and compare the models",
        )


def _trimmed(delta: Array, density: float) -> Array:
    """The largest entries by magnitude, the rest zero."""
    kept = max(1, round(density * delta.size))
    if kept == delta.size:
        return delta
    smallest = np.partition(np.abs(delta).ravel(), delta.size - kept)[delta.size - kept]
    return np.where(np.abs(delta) >= smallest, delta, 0.0)


def _elected(deltas: Sequence[Array], parts: Sequence[Weighted]) -> Array:
    """Entry by entry the sign of the sum wins; what has that sign is averaged by weight, and stands for all: where
    every part agrees this is their sum, and with weights of 1/n the paper's mean."""
    sign = np.sign(np.sum(deltas, axis=0))
    agrees = [(np.sign(delta) == sign) & (delta != 0) for delta in deltas]
    weights = [abs(part.weight) for part in parts]
    heard = np.sum([weight * agree for weight, agree in zip(weights, agrees, strict=True)], axis=0)
    summed = np.sum([np.where(agree, delta, 0.0) for agree, delta in zip(agrees, deltas, strict=True)], axis=0)
    elected: Array = summed * sum(weights) / np.where(heard == 0, 1.0, heard)
    return elected


def _dropped(parts: Sequence[Weighted], options: Options, module: str) -> list[Array]:
    kept = []
    for index, part in enumerate(parts):
        delta = part.dense()
        name = int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "little")
        mask = np.random.default_rng([options.seed, index, name]).random(delta.shape) < options.density
        kept.append(np.where(mask, delta / options.density, 0.0))
    return kept


def _cut(delta: Array, rank: int, options: Options) -> Factors:
    if delta.ndim == 2:
        return largest(delta, rank, seed=options.seed).factors(rank)
    cut = [_cut(each, rank, options) for each in delta]
    return Factors(A=np.stack([each.A for each in cut]), B=np.stack([each.B for each in cut]))
