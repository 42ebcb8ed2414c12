"""How two adapters differ, layer by layer, and how they would get on when stacked.

distance       ‖ΔW_a − ΔW_b‖ / ‖ΔW_a‖
cosine         ⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖·‖ΔW_b‖): 1 the same direction, 0 unrelated, −1 opposed
angles         principal angles, in degrees, between what they read (row spaces) and what they write (column
               spaces), over the singular values that hold 99 % of each: 0 shared, 90 apart
interference   ‖ΔW_b·P_a‖ / ‖ΔW_a‖, P_a the projection on what a reads: how strongly b answers, relative to a, on
               the inputs that a answers to. Two adapters that read other directions do not disturb each other
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lorawise.base.errors import AdapterError
from lorawise.lora.weights import StoredAdapter
from lorawise.store.algebra.factors import Array, Factors, Svd, distance, effective_rank, inner, svd
from lorawise.store.algebra.result import experts_of, ratio, shapes_of


@dataclass(frozen=True, kw_only=True)
class Angles:
    """Degrees; `smallest` is that of the directions they share most."""

    smallest: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class LayerDiff:
    """One module. Where only one adapter has it, cosine, angles and interference are None."""

    name: str
    norms: tuple[float, float]
    distance: float
    cosine: float | None = None
    reads: Angles | None = None
    writes: Angles | None = None
    interference: tuple[float, float] | None = None  # of b on what a reads, of a on what b reads


@dataclass(frozen=True, kw_only=True)
class Difference:
    layers: tuple[LayerDiff, ...]
    distance: float
    cosine: float
    interference: tuple[float, float]


def diff(one: StoredAdapter, other: StoredAdapter) -> Difference:
    """`AdapterError` when a module has other shapes in the two, or when they share none."""
    mine, theirs = shapes_of(one), shapes_of(other)
    stacks = experts_of(one), experts_of(other)
    wrong = [
        name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name] or stacks[0][name] != stacks[1][name]
    ]
    if wrong or not mine.keys() & theirs.keys():
        raise AdapterError(
            f"{wrong[0]} is {mine[wrong[0]]} in one, {theirs[wrong[0]]} in the other"
            if wrong
            else "no module in common",
            expected="two adapters of one base model",
        )
    rows = list(_rows(one, other))
    squares = np.array([[a**2, b**2] for row, _ in rows for a, b in [row.norms]]).sum(axis=0)
    parts = np.array([part for _, part in rows])
    off, product, *crossed = parts.sum(axis=0)
    return Difference(
        layers=tuple(row for row, _ in rows),
        distance=ratio(off**0.5, squares[0] ** 0.5),
        cosine=ratio(product, (squares[0] * squares[1]) ** 0.5),
        interference=(ratio(crossed[0] ** 0.5, squares[0] ** 0.5), ratio(crossed[1] ** 0.5, squares[1] ** 0.5)),
    )


def _rows(one: StoredAdapter, other: StoredAdapter) -> Iterator[tuple[LayerDiff, tuple[float, float, float, float]]]:
    """Each module, with what adds up over modules: distance², inner product, and the two crossed responses²."""
    for name in dict.fromkeys([*one.layers, *other.layers]):
        a, b = (Factors.of(each, name) if name in each.layers else None for each in (one, other))
        if a is None or b is None:
            norms = (a.norm() if a else 0.0, b.norm() if b else 0.0)
            yield LayerDiff(name=name, norms=norms, distance=ratio(max(norms), norms[0])), (max(norms) ** 2, 0, 0, 0)
            continue
        off, product, norms = distance(a, b), inner(a, b), (a.norm(), b.norm())
        bases = [[_main(svd(part)) for part in each.each()] for each in (a, b)]
        crossed = (_response(b, bases[0]), _response(a, bases[1]))
        row = LayerDiff(
            name=name,
            norms=norms,
            distance=ratio(off, norms[0]),
            cosine=ratio(product, norms[0] * norms[1]),
            reads=_angles([main.Vt.T for main in bases[0]], [main.Vt.T for main in bases[1]]),
            writes=_angles([main.U for main in bases[0]], [main.U for main in bases[1]]),
            interference=(ratio(crossed[0], norms[0]), ratio(crossed[1], norms[1])),
        )
        yield row, (off**2, product, crossed[0] ** 2, crossed[1] ** 2)


def _main(whole: Svd) -> Svd:
    """The directions that hold 99 % of the update; one at least."""
    kept = max(1, effective_rank(whole.S, 0.99))
    return Svd(U=whole.U[:, :kept], S=whole.S[:kept], Vt=whole.Vt[:kept])


def _response(factors: Factors, inputs: Sequence[Svd]) -> float:
    """‖ΔW·Vᵀ‖ on orthonormal inputs Vt (k, in), each expert's on its own."""
    parts = zip(factors.each(), inputs, strict=True)
    return math.hypot(*(np.linalg.norm(np.linalg.qr(part.B)[1] @ (part.A @ main.Vt.T)) for part, main in parts))


def _angles(ones: Sequence[Array], others: Sequence[Array]) -> Angles:
    """Between the spans of orthonormal columns, each expert's with its own: arccos of the singular values of their
    product (Björck, Golub 1973)."""
    values = [np.linalg.svd(one.T @ other, compute_uv=False) for one, other in zip(ones, others, strict=True)]
    angles = np.degrees(np.arccos(np.clip(np.concatenate(values), 0, 1)))
    return Angles(smallest=float(angles.min()), mean=float(angles.mean()))
