"""Law 10 on fused experts: algebra on their stacks is the algebra of each expert, by dense oracles; and what is written
answers in the model as its deltas say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.laws.plain_loop import rouse
from tests.store.made_adapters import dense, dense_of, error, saved
from tests.store.test_algebra import part, room
from tests.tiny_experts import EXPERT_FAMILIES, tiny_mixture

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError
from lorawise.lora import attach, eject, inject
from lorawise.lora.weights import AdapterWeights
from lorawise.store import load_adapter
from lorawise.store.algebra.combine import METHODS, Options, combine, exact_sum
from lorawise.store.algebra.diff import diff
from lorawise.store.algebra.factors import Factors
from lorawise.store.algebra.inspect import inspect
from lorawise.store.algebra.normalize import normal_form
from lorawise.store.algebra.rescale import rescale
from lorawise.store.algebra.resize import Goal, Spectra, ranks_for, resize
from lorawise.store.algebra.result import Source, write_child

OWNER = "model.layers.1.mlp.experts"
SHAPES = {
    f"{OWNER}.gate_up_proj": (4, 16, 24),
    f"{OWNER}.down_proj": (4, 12, 16),
    "model.layers.1.self_attn.q_proj": (16, 16),
}


def draw(config: LoraConfig, seed: int, *, count: int = 4) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    layers, kinds = {}, {}
    for name, (*stack, width_in, width_out) in SHAPES.items():
        stack = [count] if stack else []
        r = config.rank_of(name)
        layers[name] = (
            torch.randn(*stack, r, width_in, generator=generator),
            torch.randn(*stack, width_out, r, generator=generator),
        )
        kinds |= {name: "experts"} if stack else {}
    return AdapterWeights(config=config, layers=layers, kinds=kinds)


settings_of = st.builds(
    LoraConfig,
    r=st.integers(1, 5),
    alpha=st.floats(0.5, 8),
    rslora=st.booleans(),
    rank_pattern=st.dictionaries(
        st.sampled_from([r"experts\.\w+", "down_proj", "q_proj"]), st.integers(1, 5), max_size=2
    ),
)
pairs = st.tuples(st.builds(draw, settings_of, st.integers(0, 99)), st.builds(draw, settings_of, st.integers(100, 199)))


@settings(max_examples=15, deadline=None)
@given(both=pairs, weights=st.tuples(st.floats(-2, 2), st.floats(0.1, 2)).filter(lambda w: abs(w[0]) > 1e-3))
def test_an_exact_combination_of_experts_is_the_dense_sum(both, weights) -> None:
    with room() as here:
        sources = [saved(here / f"{i}", adapter) for i, adapter in enumerate(both)]
        parts = [part(str(i), source.adapter, w) for i, (source, w) in enumerate(zip(sources, weights, strict=True))]
        wanted = {name: sum(w * dense(a)[name] for a, w in zip(both, weights, strict=True)) for name in SHAPES}
        for method in ("exact", "svd"):
            child = combine(parts, method, Options(), "F64")
            written = write_child(
                here / method, child, sources, exact_sum(parts), operation="combine", options={"method": method}
            )
            assert error(dense_of(here / method), wanted) < 1e-6
            assert written.error < 1e-6


@settings(max_examples=10, deadline=None)
@given(adapter=st.builds(draw, settings_of, st.integers(0, 99)))
def test_one_adapter_of_experts_with_weight_one_is_itself_to_the_bit(adapter) -> None:
    with room() as here:
        source = saved(here / "a", adapter)
        parts = [part("a", source.adapter, 1.0)]
        child = combine(parts, "exact", Options(), "F32")
        write_child(here / "b", child, [source], exact_sum(parts), operation="combine", options={})
        assert Source.open(here / "b").digest == source.digest


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("exact", "svd", "linear")])
def test_a_dense_method_on_experts_is_that_method_on_each(method: str, tmp_path: Path) -> None:
    """Of a density of 1 nothing is dropped: what is left of each method is its election of signs, entry by entry."""
    both = [draw(LoraConfig(r=3), seed) for seed in (0, 1)]
    sources = [saved(tmp_path / str(i), adapter) for i, adapter in enumerate(both)]
    parts = [part(str(i), source.adapter, 0.5) for i, source in enumerate(sources)]
    child = combine(parts, method, Options(density=1.0, rank=12), "F64")
    write_child(tmp_path / "c", child, sources, exact_sum(parts), operation="combine", options={})
    name = f"{OWNER}.down_proj"
    found = dense_of(tmp_path / "c")[name].numpy()
    one, other = (0.5 * dense(adapter)[name].numpy() for adapter in both)
    wanted = one + other
    if method in ("ties", "dare-ties"):
        sign = np.sign(wanted)
        heard = (np.sign(one) == sign).astype(float) + (np.sign(other) == sign)
        wanted = (one * (np.sign(one) == sign) + other * (np.sign(other) == sign)) * 2 / heard
    assert np.linalg.norm(found - wanted) < 1e-6 * np.linalg.norm(wanted)


@settings(max_examples=15, deadline=None)
@given(adapter=st.builds(draw, settings_of, st.integers(0, 99)), rank=st.integers(1, 3))
def test_resizing_experts_keeps_the_largest_singular_values_of_each(adapter, rank) -> None:
    with room() as here:
        source = saved(here / "a", adapter)
        spectra = Spectra.of(source.adapter)
        ranks = ranks_for(spectra, Goal(rank=min(rank, max(map(len, spectra.values.values())))))
        child = resize(source.adapter, ranks, "F64")
        written = write_child(
            here / "b", child, [source], lambda m: Factors.of(source.adapter, m), operation="resize", options={}
        )
        lost = whole = 0.0
        for name, delta in dense(adapter).items():
            for matrix in delta.reshape(-1, *delta.shape[-2:]):
                values = torch.linalg.svdvals(matrix)
                lost, whole = lost + float((values[ranks[name] :] ** 2).sum()), whole + float((values**2).sum())
        assert written.error == pytest.approx((lost / whole) ** 0.5, abs=1e-6)
        assert spectra.energy(ranks) == pytest.approx(1 - lost / whole, abs=1e-9)
        assert spectra.parameters(ranks) == written.parameters


def test_what_is_told_of_experts_is_told_of_all_of_them_together(tmp_path: Path) -> None:
    one, other = draw(LoraConfig(r=3), 0), draw(LoraConfig(r=2, scaling=0.5), 1)
    sources = [saved(tmp_path / "a", one), saved(tmp_path / "b", other)]
    shown = {layer.name: layer for layer in inspect(sources[0]).layers}
    name = f"{OWNER}.gate_up_proj"
    assert shown[name].norm == pytest.approx(float(dense(one)[name].norm()))
    assert (shown[name].r, shown[name].experts, shown[name].shape) == (3, 4, (24, 16))
    assert shown[name].parameters == 4 * 3 * (24 + 16)
    row = next(row for row in diff(sources[0].adapter, sources[1].adapter).layers if row.name == name)
    a, b = dense(one)[name], dense(other)[name]
    assert row.distance == pytest.approx(float((a - b).norm() / a.norm()))
    assert row.cosine == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())))
    with pytest.raises(AdapterError, match="in one"):
        diff(sources[0].adapter, saved(tmp_path / "c", draw(LoraConfig(r=3), 0, count=5)).adapter)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize("operation", ["rescale", "normalize"])
def test_what_is_written_answers_in_the_model(family: str, operation: str, tmp_path: Path) -> None:
    model = tiny_mixture(family, torch.float64)
    adapters = inject(model, LoraConfig(r=3, scaling=1.7, rank_pattern={r"experts\.down_proj": 2}))
    rouse(adapters)
    source = saved(tmp_path / "a", adapters.weights("default"))
    ids = torch.randint(4, 64, (2, 8))
    if operation == "rescale":
        adapters.set_scale("default", 0.3)
    expected = model(input_ids=ids).logits
    eject(model)
    child = rescale(source.adapter, 0.3) if operation == "rescale" else normal_form(source.adapter, "F64")
    factor = 0.3 if operation == "rescale" else 1.0
    write_child(
        tmp_path / "b",
        child,
        [source],
        lambda m: Factors.of(source.adapter, m).times(factor),
        operation=operation,
        options={},
    )
    attach(model, {"b": load_adapter(tmp_path / "b")})
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-6, atol=1e-6)
