"""Every operation on adapter files equals dense float64 arithmetic, and the error it tells is the error there is."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.store.made_adapters import NAMES, adapters, dense, dense_of, draw, error, saved

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError, ConfigError
from lorawise.lora.weights import AdapterWeights, StoredAdapter
from lorawise.store import read_history
from lorawise.store.algebra.combine import METHODS, Options, Part, combine, exact_sum
from lorawise.store.algebra.factors import Factors
from lorawise.store.algebra.normalize import SERVED_RANKS, normal_form
from lorawise.store.algebra.range_finder import largest
from lorawise.store.algebra.rescale import rescale, rescale_to
from lorawise.store.algebra.resize import SPREADS, Goal, Spectra, ranks_for, resize
from lorawise.store.algebra.result import Source, Written, write_child

weights_of_parts = st.floats(0.05, 3).flatmap(lambda w: st.sampled_from([w, -w]))
most = settings(max_examples=15, deadline=None)


def part(name: str, adapter: StoredAdapter, weight: float) -> Part:
    return Part(name=name, adapter=adapter, weight=weight)


@contextmanager
def room() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def write(folder: Path, child: object, parents: list[Source], exact: object, **options: object) -> Written:
    return write_child(folder, child, parents, exact, operation="test", options=options)  # type: ignore[arg-type]


def itself(source: Source) -> object:
    return lambda module: Factors.of(source.adapter, module)


# -- rescale, normalize ------------------------------------------------------------------------------------------


@most
@given(weights=adapters, by=st.floats(0.01, 50))
def test_rescaling_multiplies_every_delta_and_touches_no_number(weights: AdapterWeights, by: float) -> None:
    with room() as here:
        source = saved(here / "a", weights)
        write(here / "b", rescale(source.adapter, by), [source], exact_sum([part("a", source.adapter, by)]))
        wanted = {module: by * delta for module, delta in dense(weights).items()}
        assert error(dense_of(here / "b"), wanted) < 1e-12
        old, new = ((here / each / "adapter_model.safetensors").read_bytes() for each in "ab")
        assert old == new


def test_rescaling_to_a_scaling_sets_it(tmp_path: Path) -> None:
    source = saved(tmp_path / "a", draw(LoraConfig(r=8, scaling=2.0, rslora=True), NAMES, torch.float32, 0))
    scaled = rescale_to(source.adapter, 0.5)
    assert scaled.config.scaling == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="negative weight"):
        rescale(source.adapter, -1)


@most
@given(weights=adapters)
def test_the_normal_form_computes_the_same_and_has_one_rank_and_no_patterns(weights: AdapterWeights) -> None:
    with room() as here:
        source = saved(here / "a", weights)
        written = write(here / "b", normal_form(source.adapter, "F32"), [source], itself(source))
        found = Source.open(here / "b").adapter
        assert error(dense_of(here / "b"), dense(weights)) < 1e-6
        assert written.error == pytest.approx(error(dense_of(here / "b"), dense(weights)), abs=1e-9)
        config = found.config
        assert (config.scaling, config.rslora, config.dropout) == (1.0, False, 0.0)
        assert not config.rank_pattern
        assert not config.alpha_pattern
        assert config.r in SERVED_RANKS
        assert {a.shape[0] for a, _ in found.layers.values()} == {config.r}


# -- resize --------------------------------------------------------------------------------------------------------


def cut(delta: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    return u[:, :rank] @ torch.diag(s[:rank]) @ vt[:rank]


@most
@given(weights=adapters, rank=st.integers(1, 64), spread=st.sampled_from([*SPREADS]))
def test_a_rank_gives_the_dense_truncation_and_tells_its_error(weights: AdapterWeights, rank: int, spread: str) -> None:
    with room() as here:
        source = saved(here / "a", weights)
        spectra = Spectra.of(source.adapter)
        rank = min(rank, max(map(len, spectra.values.values())))
        ranks = ranks_for(spectra, Goal(rank=rank), spread)
        written = write(here / "b", resize(source.adapter, ranks, "F32"), [source], itself(source))
        full, found = dense(weights), dense_of(here / "b")
        assert error(found, {m: cut(full[m], ranks[m]) for m in full}) < 1e-5
        assert written.error == pytest.approx(error(found, full), abs=1e-7)
        assert written.error == pytest.approx(max(0, 1 - spectra.energy(ranks)) ** 0.5, abs=1e-6)
        assert sum(ranks.values()) <= rank * len(ranks)
        assert written.parameters == spectra.parameters(ranks)


@most
@given(weights=adapters, energy=st.floats(0.05, 1), spread=st.sampled_from([*SPREADS]))
def test_an_energy_keeps_that_much_with_the_fewest_ranks(weights: AdapterWeights, energy: float, spread: str) -> None:
    with room() as here:
        spectra = Spectra.of(saved(here / "a", weights).adapter)
    ranks = ranks_for(spectra, Goal(energy=energy), spread)
    assert spectra.energy(ranks) >= energy - 1e-9
    if spread == "layer":
        for module, values in spectra.values.items():
            one = Spectra(values={module: values}, costs=spectra.costs)
            assert one.energy({module: ranks[module]}) >= energy - 1e-9
            assert ranks[module] == 1 or one.energy({module: ranks[module] - 1}) < energy
    if spread == "uniform" and max(ranks.values()) > 1:
        fewer = {m: min(max(ranks.values()) - 1, len(values)) for m, values in spectra.values.items()}
        assert spectra.energy(fewer) < energy


@most
@given(weights=adapters, share=st.floats(0, 1), spread=st.sampled_from([*SPREADS]))
def test_a_budget_is_kept_and_used(weights: AdapterWeights, share: float, spread: str) -> None:
    with room() as here:
        spectra = Spectra.of(saved(here / "a", weights).adapter)
    whole, least = (
        spectra.parameters({m: len(v) if full else 1 for m, v in spectra.values.items()}) for full in (True, False)
    )
    budget = int(least + share * (whole - least))
    try:
        ranks = ranks_for(spectra, Goal(budget=budget), spread)
    except ConfigError:
        assert spread == "layer"  # its smallest member may be more than rank 1 everywhere
        return
    assert spectra.parameters(ranks) <= budget
    if share == 1:
        assert ranks == {m: len(v) for m, v in spectra.values.items()}
    with pytest.raises(ConfigError, match="rank 1 in every module"):
        ranks_for(spectra, Goal(budget=least - 1), "all")


def test_one_threshold_over_all_keeps_more_energy_than_one_rank_for_all(tmp_path: Path) -> None:
    weights = draw(LoraConfig(r=8), NAMES, torch.float64, 3)
    strong = {m: (a * (10 if "layers.0" in m else 0.1), b) for m, (a, b) in weights.layers.items()}
    spectra = Spectra.of(saved(tmp_path / "a", AdapterWeights(config=weights.config, layers=strong)).adapter)
    uniform, spread = (ranks_for(spectra, Goal(rank=2), name) for name in ("uniform", "all"))
    assert spectra.energy(spread) > spectra.energy(uniform)


@pytest.mark.parametrize("fields", [{}, {"rank": 2, "energy": 0.5}, {"rank": 0}, {"energy": 1.5}, {"budget": -1}])
def test_a_goal_is_one_of_three(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Goal(**fields)  # type: ignore[arg-type]


def test_a_rank_above_all_is_refused(tmp_path: Path) -> None:
    spectra = Spectra.of(saved(tmp_path / "a", draw(LoraConfig(r=4), NAMES, torch.float32, 0)).adapter)
    with pytest.raises(ConfigError, match="only takes away"):
        ranks_for(spectra, Goal(rank=5))


# -- combine -------------------------------------------------------------------------------------------------------

several = st.lists(st.tuples(adapters, weights_of_parts), min_size=1, max_size=3)


def summed(parts: list[tuple[AdapterWeights, float]]) -> dict[str, torch.Tensor]:
    wanted: dict[str, torch.Tensor] = {}
    for weights, weight in parts:
        for module, delta in dense(weights).items():
            wanted[module] = wanted.get(module, torch.zeros_like(delta)) + weight * delta
    return wanted


def combined(here: Path, parts: list[tuple[AdapterWeights, float]], method: str, **options: object) -> Written:
    sources = [saved(here / f"in{i}", weights) for i, (weights, _) in enumerate(parts)]
    named = [part(f"in{i}", s.adapter, w) for i, (s, (_, w)) in enumerate(zip(sources, parts, strict=True))]
    child = combine(named, method, Options(**options), "F32")  # type: ignore[arg-type]
    return write(here / "out", child, sources, exact_sum(named), **options)


@most
@given(parts=several)
def test_combining_exactly_is_the_dense_sum(parts: list[tuple[AdapterWeights, float]]) -> None:
    with room() as here:
        written = combined(here, parts, "exact")
        wanted = summed(parts)
        found = error(dense_of(here / "out"), wanted)
        scale = error({m: torch.zeros_like(d) for m, d in wanted.items()}, summed([(w, abs(x)) for w, x in parts]))
        assert found < 1e-5 or scale < 1  # parts that cancel leave their rounding
        assert written.error == pytest.approx(found, rel=1e-3, abs=1e-9)


@most
@given(parts=several, rank=st.integers(1, 64))
def test_svd_is_the_dense_sum_cut_to_the_rank(parts: list[tuple[AdapterWeights, float]], rank: int) -> None:
    with room() as here:
        combined(here, parts, "svd", rank=rank)
        found = dense_of(here / "out")
        assert error(found, {m: cut(delta, rank) for m, delta in summed(parts).items()}) < 1e-5


def two(seed: int = 0, r: int = 3) -> list[tuple[AdapterWeights, float]]:
    config = LoraConfig(r=r, scaling=2.0)
    return [(draw(config, NAMES[:1], torch.float32, seed + i), weight) for i, weight in enumerate((0.7, 0.3))]


def test_ties_is_the_papers_on_the_dense_deltas(tmp_path: Path) -> None:
    parts = two()
    combined(tmp_path, parts, "ties", density=0.4, rank=24)
    deltas = [w * dense(a)[NAMES[0]].numpy() for a, w in parts]
    trimmed = [np.where(np.abs(d) >= np.sort(np.abs(d).ravel())[d.size - round(0.4 * d.size)], d, 0) for d in deltas]
    elected = np.sign(sum(trimmed))
    wanted = np.zeros(deltas[0].shape)
    for index in np.ndindex(wanted.shape):
        agreeing = [(t[index], w) for t, (_, w) in zip(trimmed, parts, strict=True) if t[index] * elected[index] > 0]
        if agreeing:
            wanted[index] = sum(value for value, _ in agreeing) / sum(weight for _, weight in agreeing)
    assert error(dense_of(tmp_path / "out"), {NAMES[0]: torch.from_numpy(wanted)}) < 1e-5


def test_dare_drops_by_its_seed_and_is_right_on_the_average(tmp_path: Path) -> None:
    parts = two()
    wanted = summed(parts)
    found = []
    for seed in range(24):
        combined(tmp_path / str(seed), parts, "dare", density=0.5, rank=24, seed=seed)
        found.append(dense_of(tmp_path / str(seed) / "out")[NAMES[0]])
    combined(tmp_path / "again", parts, "dare", density=0.5, rank=24, seed=7)
    assert torch.equal(dense_of(tmp_path / "again" / "out")[NAMES[0]], found[7])
    assert error({NAMES[0]: found[0]}, wanted) > 0.5
    assert error({NAMES[0]: torch.stack(found).mean(0)}, wanted) < 0.35


def test_everything_kept_makes_every_dense_method_exact(tmp_path: Path) -> None:
    parts = two()
    for method in ("dare", "magnitude"):
        assert combined(tmp_path / method, parts, method, density=1.0).error < 1e-6


def test_linear_has_pefts_cross_terms_and_says_so(tmp_path: Path) -> None:
    parts = two()
    written = combined(tmp_path, parts, "linear")
    A = sum((w * 2.0) ** 0.5 * a.layers[NAMES[0]][0].double() for a, w in parts)
    B = sum((w * 2.0) ** 0.5 * a.layers[NAMES[0]][1].double() for a, w in parts)
    assert error(dense_of(tmp_path / "out"), {NAMES[0]: B @ A}) < 1e-5
    assert written.error > 0.5


@pytest.mark.parametrize("method", [*METHODS])
def test_every_method_writes_an_adapter_with_its_parents_and_its_error(method: str, tmp_path: Path) -> None:
    parts = two()
    written = combined(tmp_path, parts, method, rank=None, density=0.6)
    found = error(dense_of(tmp_path / "out"), summed(parts))
    assert written.error == pytest.approx(found, rel=1e-6, abs=1e-7)
    history = read_history(tmp_path / "out", Source.open(tmp_path / "out").adapter)
    assert history is not None
    assert history.parents == tuple(Source.open(tmp_path / f"in{i}").digest for i in range(2))
    assert history.run["operation"] == "test"


def test_what_does_not_go_together_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    good = saved(tmp_path / "a", draw(LoraConfig(r=2), NAMES[:2], torch.float32, 0)).adapter
    wide = draw(LoraConfig(r=2), NAMES[:1], torch.float32, 0)
    a, b = wide.layers[NAMES[0]]
    other = AdapterWeights(config=wide.config, layers={NAMES[0]: (a[:, :-1], b)})
    whole = AdapterWeights(
        config=LoraConfig(r=2, modules_to_save=("score",)), layers=wide.layers, full={"score.weight": torch.zeros(2, 2)}
    )
    lie = saved(tmp_path / "b", other).adapter
    full = saved(tmp_path / "c", whole).adapter
    for parts, says in (
        ([part("a", good, 1), part("b", lie, 1)], r"\(23, 40\) in b"),
        ([part("a", good, 1), part("c", full, 1)], "trained in full"),
        ([part("a", good, float("nan"))], "weight is nan"),
        ([part("a", good, 0.0)], "weight is 0"),
    ):
        with pytest.raises(AdapterError, match=says):
            combine(parts, "exact", Options(), "F32")
    with pytest.raises(ConfigError, match="did you mean 'ties'"):
        combine([part("a", good, 1)], "tes", Options(), "F32")


def test_a_large_matrix_is_searched_as_well_as_it_is_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    matrix = generator.standard_normal((300, 40)) @ np.diag(0.7 ** np.arange(40)) @ generator.standard_normal((40, 200))
    whole = largest(matrix, 8, seed=0)
    monkeypatch.setattr("lorawise.store.algebra.range_finder.WHOLE", 16)
    found = largest(matrix, 8, seed=0)
    assert np.allclose(found.S[:8], whole.S[:8], rtol=1e-9)
    assert np.allclose(found.factors(8).dense(), whole.factors(8).dense(), atol=1e-8 * whole.S[0])


def test_a_result_never_replaces_what_is_there(tmp_path: Path) -> None:
    source = saved(tmp_path / "a", draw(LoraConfig(r=2), NAMES, torch.float32, 0))
    before = (tmp_path / "a" / "adapter_config.json").read_bytes()
    with pytest.raises(AdapterError, match="exists"):
        write(tmp_path / "a", rescale(source.adapter, 2), [source], itself(source))
    assert (tmp_path / "a" / "adapter_config.json").read_bytes() == before
