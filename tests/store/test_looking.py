"""`show` and `diff` tell what dense float64 arithmetic tells."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save_file
from tests.store.made_adapters import NAMES, SHAPES, adapters, dense, draw, saved
from tests.store.test_algebra import room

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError, ModelError
from lorawise.lora.weights import AdapterWeights
from lorawise.report.adapter_page import place, render_map
from lorawise.store.algebra.diff import diff
from lorawise.store.algebra.inspect import inspect


@settings(max_examples=15, deadline=None)
@given(weights=adapters)
def test_norms_shares_and_effective_ranks_are_the_dense_ones(weights: AdapterWeights) -> None:
    with room() as here:
        shown = inspect(saved(here / "a", weights))
    deltas = dense(weights)
    whole = sum(float(delta.square().sum()) for delta in deltas.values())
    assert [layer.name for layer in shown.layers] == list(deltas)
    for layer in shown.layers:
        delta = deltas[layer.name]
        assert layer.norm == pytest.approx(float(delta.norm()), rel=1e-9)
        assert layer.share == pytest.approx(float(delta.square().sum()) / whole, rel=1e-9)
        assert layer.scaling == weights.config.scaling_of(layer.name)
        held = torch.linalg.svdvals(delta).square().cumsum(0)
        for energy, rank in ((0.9, layer.rank_90), (0.99, layer.rank_99)):
            assert held[rank - 1] >= energy * held[-1] * (1 - 1e-9)
            assert rank == 1 or held[rank - 2] < energy * held[-1] * (1 + 1e-9)
    assert sum(layer.share for layer in shown.layers) == pytest.approx(1)


def test_norms_are_told_against_the_base_where_it_has_the_module(tmp_path: Path) -> None:
    source = saved(tmp_path / "a", draw(LoraConfig(r=2), NAMES[:2], torch.float32, 0))
    base = tmp_path / "base"
    base.mkdir()
    weight = torch.randn(*reversed(SHAPES[NAMES[0]])).to(torch.bfloat16)
    save_file({f"{NAMES[0]}.weight": weight}, base / "model-00001-of-00002.safetensors")
    found, other = inspect(source, base).layers
    assert found.of_base == pytest.approx(found.norm / float(weight.float().norm()), rel=1e-4)
    assert other.of_base is None
    with pytest.raises(ModelError, match="no weights"):
        inspect(source, tmp_path)


@settings(max_examples=15, deadline=None)
@given(one=adapters, other=adapters)
def test_distance_cosine_and_interference_are_the_dense_ones(one: AdapterWeights, other: AdapterWeights) -> None:
    with room() as here:
        pair = [saved(here / name, weights).adapter for name, weights in (("a", one), ("b", other))]
        if not one.layers.keys() & other.layers.keys():
            with pytest.raises(AdapterError, match="no module in common"):
                diff(*pair)
            return
        found = diff(*pair)
    mine, theirs = dense(one), dense(other)
    for layer in found.layers:
        a, b = mine.get(layer.name), theirs.get(layer.name)
        if a is None or b is None:
            assert layer.cosine is None
            continue
        assert layer.distance == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-9)
        assert layer.cosine == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())), abs=1e-9)
        _, s, vt = torch.linalg.svd(a, full_matrices=False)
        held = s.square().cumsum(0) / s.square().sum()
        reads = vt[: int((held < 0.99 * (1 - 1e-12)).sum()) + 1]
        assert layer.interference is not None
        assert layer.interference[0] == pytest.approx(float((b @ reads.T).norm() / a.norm()), rel=1e-6)


def test_an_adapter_lies_in_its_own_directions_and_apart_from_others(tmp_path: Path) -> None:
    module = NAMES[0]
    a, b = torch.eye(24)[:2], torch.eye(40)[:, :2]
    same = AdapterWeights(config=LoraConfig(r=2), layers={module: (a, b)})
    apart = AdapterWeights(config=LoraConfig(r=2), layers={module: (torch.eye(24)[5:7], torch.eye(40)[:, 8:10])})
    kept = [saved(tmp_path / str(i), each).adapter for i, each in enumerate((same, apart))]
    alone, crossed = diff(kept[0], kept[0]), diff(kept[0], kept[1])
    assert (alone.distance, alone.cosine) == (0, pytest.approx(1))
    layer = alone.layers[0]
    assert layer.reads is not None
    assert layer.writes is not None
    assert max(layer.reads.mean, layer.writes.mean) < 1e-4
    assert layer.interference == pytest.approx((1, 1))
    other = crossed.layers[0]
    assert other.reads is not None
    assert other.reads.smallest == pytest.approx(90)
    assert other.interference == pytest.approx((0, 0))


def test_the_map_holds_every_module_and_nothing_of_it_is_markup(tmp_path: Path) -> None:
    source = saved(tmp_path / "<b>a", draw(LoraConfig(r=2), NAMES, torch.float32, 0))
    page = render_map(inspect(source))
    assert "<b>a" not in page
    assert page.count('<td title="') == len(NAMES)
    assert "<script" not in page
    assert "http://" not in page + page.replace("http-equiv", "")
    assert page.index('<th scope="row">1</th>') < page.index('<th scope="row">10</th>')


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.layers.3.self_attn.q_proj", ("3", "self_attn.q_proj")),
        ("transformer.h.11.attn.c_attn", ("11", "attn.c_attn")),
        ("layers.2.mlp.experts.5.w1", ("2", "mlp.experts.5.w1")),
        ("lm_head", ("–", "lm_head")),
    ],
)
def test_a_module_has_its_place_on_the_map(name: str, found: tuple[str, str]) -> None:
    assert place(name) == found
