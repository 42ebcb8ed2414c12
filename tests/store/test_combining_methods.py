"""Every method of combining equals its own definition in dense float64 arithmetic, over adapters of any kind.

The oracles are written from the papers, entry by entry, and share nothing with the product but the tensors.
With the rank left as large as a matrix can have, cutting to it loses nothing, so the methods themselves are compared.
"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.store.made_adapters import adapters, configs, dense, dense_of, draw, dtypes, error, saved
from tests.store.test_algebra import NAMES, combined, itself, part, room, summed, weights_of_parts, write

from lorawise.lora.weights import AdapterWeights
from lorawise.store.algebra.combine import METHODS, Options, combine, exact_sum
from lorawise.store.algebra.normalize import normal_form
from lorawise.store.algebra.resize import Goal, Spectra, ranks_for, resize

FULL = 64  # more than any module here is wide
Parts = list[tuple[AdapterWeights, float]]
Array = NDArray[np.float64]
one_to_three = st.lists(st.tuples(adapters, weights_of_parts), min_size=1, max_size=3)
densities = st.sampled_from([0.1, 0.5, 0.8, 1.0])
most = settings(max_examples=12, deadline=None)


def deltas(parts: Parts, module: str) -> list[tuple[Array, float]]:
    """(weight · ΔW, |weight|) of every part that has the module."""
    held = [(dense(a), w) for a, w in parts]
    return [(w * each[module].numpy(), abs(w)) for each, w in held if module in each]


def trimmed(delta: Array, density: float) -> Array:
    """The round(density · size) largest entries by magnitude, and what is as large as the least of them."""
    least = np.sort(np.abs(delta).ravel())[::-1][max(1, round(density * delta.size)) - 1]
    return np.where(np.abs(delta) >= least, delta, 0.0)


def elected(held: list[Array], weights: list[float]) -> Array:
    """Yadav et al. 2023, section 3: the sign of the sum, then the weighted mean of those who have it, for all."""
    result = np.zeros(held[0].shape)
    for at in np.ndindex(result.shape):
        sign = np.sign(sum(each[at] for each in held))
        agreeing = [(each[at], w) for each, w in zip(held, weights, strict=True) if each[at] * sign > 0]
        if agreeing:
            result[at] = sum(v for v, _ in agreeing) / sum(w for _, w in agreeing) * sum(weights)
    return result


def check(found: dict[str, Array], wanted: dict[str, Array], parts: Parts) -> None:
    """To 1e-5 of the result, or of what was added up where the parts cancel."""
    off = sum(float(np.sum((found[m] - wanted[m]) ** 2)) for m in wanted) ** 0.5
    size = sum(float(np.sum(wanted[m] ** 2)) for m in wanted) ** 0.5
    summands = sum(float(np.sum(d**2)) for m in wanted for d, _ in deltas(parts, m)) ** 0.5
    assert off <= 1e-5 * max(size, 0.1 * summands)


def result_of(method: str, parts: Parts, **options: object) -> dict[str, Array]:
    with room() as here:
        written = combined(here, parts, method, **options)
        found = dense_of(here / "out")
        assert written.error == pytest.approx(error(found, summed(parts)), rel=1e-3, abs=1e-6)
        return {module: delta.numpy() for module, delta in found.items()}


@most
@given(parts=one_to_three, density=densities)
def test_magnitude_sums_the_largest_entries(parts: Parts, density: float) -> None:
    found = result_of("magnitude", parts, density=density, rank=FULL)
    wanted = {m: sum(trimmed(d, density) for d, _ in deltas(parts, m)) for m in found}
    check(found, wanted, parts)  # type: ignore[arg-type]


@most
@given(parts=one_to_three, density=densities)
def test_ties_is_the_papers(parts: Parts, density: float) -> None:
    found = result_of("ties", parts, density=density, rank=FULL)
    wanted = {}
    for module in found:
        held = deltas(parts, module)
        wanted[module] = elected([trimmed(d, density) for d, _ in held], [w for _, w in held])
    check(found, wanted, parts)


@most
@given(parts=st.lists(st.tuples(adapters, weights_of_parts), min_size=1, max_size=2), seed=st.integers(0, 99))
def test_dare_keeps_each_entry_enlarged_or_drops_it(parts: Parts, seed: int) -> None:
    """Which entries it keeps is its own affair; each result is one of those that some choice gives."""
    density = 0.5
    for method in ("dare", "dare-ties"):
        found = result_of(method, parts, density=density, seed=seed, rank=FULL)
        wanted, kept, entries = {}, 0.0, 0
        for module, got in found.items():
            held, weights = [d / density for d, _ in deltas(parts, module)], [w for _, w in deltas(parts, module)]
            choices = []
            for keep in product([0.0, 1.0], repeat=len(held)):
                dropped = [k * d for k, d in zip(keep, held, strict=True)]
                choices.append(sum(dropped) if method == "dare" else _elected_at_once(dropped, weights))
            off = np.abs(np.stack([np.asarray(choice) - got for choice in choices]))
            nearest = off.argmin(0)
            wanted[module] = np.take_along_axis(np.stack(choices), nearest[None], 0)[0]
            kept += sum(bin(i).count("1") * int(np.sum(nearest == i)) for i in range(len(choices))) / len(held)
            entries += got.size
        check(found, wanted, parts)
        if method == "dare":
            assert kept / entries == pytest.approx(density, abs=0.1)


def _elected_at_once(held: list[Array], weights: list[float]) -> Array:
    sign = np.sign(sum(held))
    agree = [each * sign > 0 for each in held]
    heard = sum(w * a for w, a in zip(weights, agree, strict=True))
    return np.where(heard > 0, sum(np.where(a, d, 0) for a, d in zip(agree, held, strict=True)), 0.0) * (  # type: ignore[no-any-return]
        sum(weights) / np.where(heard > 0, heard, 1.0)
    )


@most
@given(config=configs, others=st.lists(st.tuples(dtypes, st.integers(0, 99), weights_of_parts), min_size=1, max_size=3))
def test_linear_multiplies_the_averages_of_a_and_b(config: object, others: list[tuple[object, int, float]]) -> None:
    """√|w·s| of each on either side, the sign of w on B: PEFT's definition, for parts of one setting."""
    parts: Parts = [(draw(config, NAMES, dtype, seed), w) for dtype, seed, w in others]  # type: ignore[arg-type]
    found = result_of("linear", parts)
    wanted = {}
    for module in found:
        A = sum((abs(w) * a.config.scaling_of(module)) ** 0.5 * a.layers[module][0].double().numpy() for a, w in parts)
        B = sum(
            np.sign(w) * (abs(w) * a.config.scaling_of(module)) ** 0.5 * a.layers[module][1].double().numpy()
            for a, w in parts
        )
        wanted[module] = B @ A
    check(found, wanted, parts)


def test_every_method_has_its_definition_here_or_beside() -> None:
    assert {*METHODS} == {"exact", "svd", "linear", "ties", "dare", "dare-ties", "magnitude"}


ROUNDING = {"F64": 1e-12, "F32": 1e-6, "F16": 2e-3, "BF16": 2e-2}  # a few units in the last place, of A and of B


@most
@given(parts=one_to_three, weights=adapters, dtype=st.sampled_from([*ROUNDING]))
def test_whatever_type_is_written_the_error_is_its_rounding_and_is_told(
    parts: Parts, weights: AdapterWeights, dtype: str
) -> None:
    with room() as here:
        source = saved(here / "a", weights)
        ranks = ranks_for(Spectra.of(source.adapter), Goal(energy=1.0))
        sources = [saved(here / f"in{i}", each) for i, (each, _) in enumerate(parts)]
        named = [part(f"in{i}", s.adapter, w) for i, (s, (_, w)) in enumerate(zip(sources, parts, strict=True))]
        size = sum(float(d.square().sum()) for each, w in parts for d in dense(each).values()) ** 0.5
        for name, child, parents, exact, wanted in (
            ("resize", resize(source.adapter, ranks, dtype), [source], itself(source), dense(weights)),
            ("normalize", normal_form(source.adapter, dtype), [source], itself(source), dense(weights)),
            ("combine", combine(named, "exact", Options(), dtype), sources, exact_sum(named), summed(parts)),
        ):
            told = write(here / name, child, parents, exact).error
            found = error(dense_of(here / name), wanted)
            assert told == pytest.approx(found, rel=1e-3, abs=1e-9)
            whole = sum(float(d.square().sum()) for d in wanted.values()) ** 0.5
            cancelled = 1.0 if name != "combine" or whole > size / 10 or len(parts) == 1 else float("inf")
            assert found <= ROUNDING[dtype] * cancelled * (3 if len(parts) > 1 else 1)
