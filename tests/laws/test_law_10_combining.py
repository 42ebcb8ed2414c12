"""Law 10: one adapter combined with weight 1 is itself; an exact combination is the dense sum of the deltas.

What every operation writes is loaded by PEFT, and by us, with the logits of the base with the dense deltas added. A
weighted stack at run time is the exact combination on disk.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.peft_oracle import logits_of, peft_injected, peft_loaded, peft_saved
from tests.store.made_adapters import adapters, configs, dense_of, saved
from tests.store.test_algebra import part, room
from tests.tiny import tiny_model

from lorawise import LoraConfig
from lorawise.lora import attach
from lorawise.lora.weights import AdapterWeights, StoredAdapter
from lorawise.store import load_adapter
from lorawise.store.algebra.combine import METHODS, Options, combine, exact_sum
from lorawise.store.algebra.factors import Factors
from lorawise.store.algebra.normalize import normal_form
from lorawise.store.algebra.rescale import rescale
from lorawise.store.algebra.resize import Goal, Spectra, ranks_for, resize
from lorawise.store.algebra.result import Source, write_child


@settings(max_examples=20, deadline=None)
@given(weights=adapters)
def test_one_adapter_with_weight_one_is_itself_to_the_bit(weights: AdapterWeights) -> None:
    with room() as here:
        source = saved(here / "a", weights)
        parts = [part("a", source.adapter, 1.0)]
        child = combine(parts, "exact", Options(), "F32")
        written = write_child(here / "b", child, [source], exact_sum(parts), operation="combine", options={})
        assert Source.open(here / "b").digest == source.digest
        assert written.error < 1e-12  # measured in float64, which rounds too


@settings(max_examples=20, deadline=None)
@given(weights=adapters)
def test_weight_minus_one_is_its_opposite_to_the_bit(weights: AdapterWeights) -> None:
    with room() as here:
        source = saved(here / "a", weights)
        parts = [part("a", source.adapter, -1.0)]
        child = combine(parts, "exact", Options(), "F32")
        write_child(here / "b", child, [source], exact_sum(parts), operation="combine", options={})
        mine, opposite = dense_of(here / "a"), dense_of(here / "b")
        assert all(torch.equal(mine[module], -opposite[module]) for module in mine)


def smaller(source: Source) -> StoredAdapter:
    return resize(source.adapter, ranks_for(Spectra.of(source.adapter), Goal(energy=0.8)), "F32")


ALONE: dict[str, Callable[[Source], StoredAdapter]] = {
    "rescale": lambda source: rescale(source.adapter, 0.3),
    "normalize": lambda source: normal_form(source.adapter, "F32"),
    "resize": smaller,
}


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Two adapters as PEFT trained them: rsLoRA, patterns, other ranks, some modules in one only."""
    first = peft_injected(
        tiny_model("llama"),
        r=6,
        lora_alpha=9,
        use_rslora=True,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 3},
        alpha_pattern={"layers.1.mlp.down_proj": 5},
    )
    second = peft_injected(tiny_model("llama"), seed=5, r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    return [Source.open(peft_saved(model, tmp_path / name)) for name, model in (("one", first), ("two", second))]


def check(folder: Path) -> None:
    """PEFT's logits, ours and the base's with dense deltas are the same."""
    model = tiny_model("llama")
    deltas = dense_of(folder)
    with torch.no_grad():
        for module, delta in deltas.items():
            model.get_submodule(module).weight += delta.float()
    wanted = logits_of(model)
    assert (wanted - logits_of(tiny_model("llama"))).abs().max() > 1e-2
    assert torch.allclose(logits_of(peft_loaded(tiny_model("llama"), folder)), wanted, atol=2e-4)
    ours = tiny_model("llama")
    attach(ours, {"it": load_adapter(folder)})
    assert torch.allclose(logits_of(ours), wanted, atol=2e-4)


@pytest.mark.parametrize("operation", [*ALONE])
def test_peft_loads_what_an_operation_writes(operation: str, sources: list[Source], tmp_path: Path) -> None:
    source, out = sources[0], tmp_path / "out"
    child = ALONE[operation](source)
    by = 0.3 if operation == "rescale" else 1.0
    exact = lambda module: Factors.of(source.adapter, module).times(by)  # noqa: E731
    written = write_child(out, child, [source], exact, operation=operation, options={})
    assert written.error < (0.5 if operation == "resize" else 1e-6)
    check(out)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "linear"])
def test_peft_loads_what_a_combination_writes(method: str, sources: list[Source], tmp_path: Path) -> None:
    parts = [part("one", sources[0].adapter, 0.7), part("two", sources[1].adapter, -0.4)]
    child = combine(parts, method, Options(density=0.7), "F32")
    written = write_child(tmp_path / "out", child, sources, exact_sum(parts), operation="combine", options={})
    if method in ("exact", "svd"):
        assert written.error < 1e-6
    check(tmp_path / "out")


# -- at run time ---------------------------------------------------------------------------------------------------

WIDTHS = {  # of tests.tiny's Llama: module → (in, out)
    "model.layers.0.self_attn.q_proj": (32, 32),
    "model.layers.0.self_attn.v_proj": (32, 16),
    "model.layers.1.self_attn.q_proj": (32, 32),
    "model.layers.1.mlp.down_proj": (48, 32),
    "lm_head": (32, 256),
}


def over_llama(config: LoraConfig, modules: tuple[str, ...], seed: int) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for module in modules:
        rank, (width_in, width_out) = config.rank_of(module), WIDTHS[module]
        a = torch.randn(rank, width_in, generator=generator, dtype=torch.float64)
        b = torch.randn(width_out, rank, generator=generator, dtype=torch.float64)
        strength = config.scaling_of(module) * (rank * width_in) ** 0.5
        layers[module] = (a, b / strength)  # whatever the setting, logits stay of a size
    return AdapterWeights(config=config.replace(target_modules=modules, dropout=0.0), layers=layers)


fitting = st.builds(
    over_llama,
    configs,
    st.lists(st.sampled_from([*WIDTHS]), min_size=1, unique=True).map(tuple),
    st.integers(0, 10_000),
)
weights_of_a_stack = st.floats(-2, 2).filter(lambda weight: abs(weight) > 1e-3)


@settings(max_examples=25, deadline=None)
@given(
    held=st.lists(st.tuples(fitting, weights_of_a_stack, st.sampled_from([1.0, 0.5])), min_size=1, max_size=3),
    idle=fitting,
)
def test_a_stack_at_run_time_is_the_exact_combination_on_disk(
    held: list[tuple[AdapterWeights, float, float]], idle: AdapterWeights
) -> None:
    """Float64 logits. A live scale multiplies an adapter's weight; one that is resident and idle does nothing."""
    with room() as here:
        sources = [saved(here / str(i), weights) for i, (weights, _, _) in enumerate(held)]
        parts = [
            part(str(i), s.adapter, w * scale) for i, (s, (_, w, scale)) in enumerate(zip(sources, held, strict=True))
        ]
        child = combine(parts, "exact", Options(), "F64")
        write_child(here / "out", child, sources, exact_sum(parts), operation="combine", options={})
        running = tiny_model("llama", dtype=torch.float64)
        stacked = attach(running, {"idle": idle, **{str(i): load_adapter(here / str(i)) for i in range(len(held))}})
        for i, (_, _, scale) in enumerate(held):
            stacked.set_scale(str(i), scale)
        stacked.stack({str(i): weight for i, (_, weight, _) in enumerate(held)})
        combined = tiny_model("llama", dtype=torch.float64)
        attach(combined, {"out": load_adapter(here / "out")}).use("out")
        found, wanted = logits_of(running), logits_of(combined)
        assert found.dtype == torch.float64
        assert (wanted - logits_of(tiny_model("llama", dtype=torch.float64))).abs().max() > 1e-6
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
