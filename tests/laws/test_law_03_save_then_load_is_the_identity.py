"""Law 3: what is saved is what is loaded, tensors and setting to the last bit."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.store.samples import DOWN, EMBED, Q, V, assert_identical, sample_weights

from lorawise import LoraConfig
from lorawise.store import adapter_digest, load_adapter, save_adapter

dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
strengths = st.one_of(
    st.builds(lambda scaling: {"scaling": scaling}, st.floats(1e-3, 1e3)),
    st.builds(lambda alpha: {"alpha": alpha}, st.floats(1e-2, 1e3)),
    st.builds(lambda alpha: {"alpha": alpha}, st.integers(1, 512)),
)
keys = st.sampled_from(["q_proj", r".*layers\.1\..*", "mlp.down_proj", r"self_attn\.(q|v)_proj", Q, "nothing_here"])
settings_of_adapters = st.builds(
    lambda strength, **rest: LoraConfig(**strength, **rest),
    strengths,
    r=st.integers(1, 9),
    rslora=st.booleans(),
    dropout=st.sampled_from([0.0, 0.05, 0.3]),
    target_modules=st.sampled_from(["all-linear", "qv", r".*_proj", ("q_proj", "v_proj", "down_proj", "embed_tokens")]),
    exclude_modules=st.sampled_from([(), ("k_proj",), r".*\.7\..*"]),
    layers=st.sampled_from([None, (0, 1)]),
    rank_pattern=st.dictionaries(keys, st.integers(1, 9), max_size=3),
    alpha_pattern=st.dictionaries(keys, st.floats(0.1, 64), max_size=3),
    init=st.sampled_from(["kaiming", "gaussian"]),
    seed=st.integers(0, 2**31),
)


def _round_trip(weights: Any, **options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(Path(folder) / "adapter", weights, base="somebody/base", **options)
        return load_adapter(Path(folder) / "adapter")


@settings(max_examples=60, deadline=None)
@given(
    config=settings_of_adapters,
    modules=st.lists(st.sampled_from([Q, V, DOWN, EMBED]), min_size=1, unique=True).map(tuple),
    dtype=dtypes,
    known=st.sampled_from([(), (Q, V, DOWN, EMBED, "model.layers.1.self_attn.q_proj", "lm_head")]),
)
def test_what_is_saved_is_what_is_loaded(
    config: LoraConfig, modules: tuple[str, ...], dtype: torch.dtype, known: tuple[str, ...]
) -> None:
    weights = sample_weights(config, modules, dtype=dtype)
    loaded = _round_trip(weights, modules=known)
    assert_identical(weights, loaded)
    assert adapter_digest(weights) == adapter_digest(loaded)


@settings(max_examples=40, deadline=None)
@given(config=settings_of_adapters)
def test_every_module_keeps_its_rank_and_scaling_without_our_record(config: LoraConfig) -> None:
    weights = sample_weights(config, (Q, V, DOWN))
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(Path(folder) / "adapter", weights, base="somebody/base")
        (Path(folder) / "adapter" / "provenance.json").unlink()
        loaded = load_adapter(Path(folder) / "adapter")
    for module in weights.layers:
        assert loaded.config.rank_of(module) == config.rank_of(module)
        assert loaded.config.scaling_of(module) == pytest.approx(config.scaling_of(module), rel=1e-15)
    again = _round_trip(loaded)
    assert_identical(loaded, again)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_and_modules_trained_in_full_come_back(bias: Any) -> None:
    config = LoraConfig(r=2, bias=bias, modules_to_save=("score",), target_modules=("q_proj",))
    full = {f"{Q}.bias": torch.randn(8), "model.norm.bias": torch.randn(6), "score.weight": torch.randn(3, 6)}
    weights = sample_weights(config, (Q,), full=full, task="SEQ_CLS")
    assert_identical(weights, _round_trip(weights))


def test_saving_over_an_adapter_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "old.txt").write_text("old")
    weights = sample_weights(LoraConfig(r=2))
    save_adapter(tmp_path / "adapter", weights, base="b")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "provenance.json")
    ]
    assert_identical(weights, load_adapter(tmp_path / "adapter"))
