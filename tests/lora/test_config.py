"""A setting keeps its scaling, shows both numbers, and refuses nonsense at birth."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawise import LoraConfig
from lorawise.base.errors import ConfigError
from lorawise.lora.config import INIT_NAMES
from lorawise.lora.inits import INITS

ranks = st.integers(1, 512)
positive = st.floats(1e-3, 1e3)


@pytest.mark.parametrize(("alpha", "r", "scaling"), [(16, 16, 1.0), (32, 16, 2.0), (16, 8, 2.0), (8, 16, 0.5)])
def test_the_guides_table_of_configurations(alpha: int, r: int, scaling: float) -> None:
    assert LoraConfig(r=r, alpha=alpha).scaling == scaling
    assert LoraConfig(r=r, scaling=scaling).alpha == alpha


@given(r=ranks, scaling=positive, other=ranks, rslora=st.booleans())
def test_changing_the_rank_alone_keeps_the_scaling(r: int, scaling: float, other: int, rslora: bool) -> None:
    config = LoraConfig(r=r, scaling=scaling, rslora=rslora)
    changed = config.replace(r=other)
    assert changed.scaling == config.scaling
    assert math.isclose(changed.alpha, scaling * (math.sqrt(other) if rslora else other))
    assert changed.replace(r=r) == config


@given(r=ranks, alpha=positive, rslora=st.booleans())
def test_alpha_and_scaling_say_the_same_thing(r: int, alpha: float, rslora: bool) -> None:
    config = LoraConfig(r=r, alpha=alpha, rslora=rslora)
    assert math.isclose(config.scaling, alpha / (math.sqrt(r) if rslora else r))
    assert LoraConfig(r=r, alpha=config.alpha, scaling=config.scaling, rslora=rslora) == config


def test_alpha_and_scaling_in_conflict_are_refused() -> None:
    with pytest.raises(ConfigError, match="write one of the two"):
        LoraConfig(r=8, alpha=16, scaling=1.0)


def test_changing_alpha_moves_the_scaling() -> None:
    assert LoraConfig(r=8, scaling=2.0).replace(alpha=8).scaling == 1.0


def test_a_module_with_its_own_rank_keeps_alpha_as_peft_does() -> None:
    config = LoraConfig(r=8, alpha=16, rank_pattern={"q_proj": 4}, alpha_pattern={r"layers\.0\.self_attn\.v_proj": 4})
    assert (
        config.rank_of("model.layers.1.self_attn.q_proj"),
        config.scaling_of("model.layers.1.self_attn.q_proj"),
    ) == (
        4,
        4.0,
    )
    assert config.scaling_of("model.layers.0.self_attn.v_proj") == 0.5
    assert config.scaling_of("model.layers.1.self_attn.v_proj") == 2.0
    assert config.rank_of("model.layers.1.self_attn.my_q_proj") == 8


@pytest.mark.parametrize(
    "nonsense",
    [
        {"r": 0},
        {"r": -4},
        {"r": 8.5},
        {"r": True},
        {"r": 10**9},
        {"scaling": 0},
        {"scaling": -1.0},
        {"alpha": math.nan},
        {"alpha": math.inf},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"target_modules": ()},
        {"layers": (-1,)},
        {"layers": ()},
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": {"(": 4}},
        {"alpha_pattern": {"q_proj": -1}},
        {"bias": "some"},
        {"seed": -1},
        {"init": "kaimin"},
        {"rslora": "no"},
        {"target_modules": None},
        {"target_modules": 7},
        {"target_modules": ("q_proj", 7)},
        {"exclude_modules": 7},
        {"modules_to_save": "lm_head"},
        {"layers": 3},
        {"rank_pattern": None},
        {"alpha_pattern": [("q_proj", 8)]},
        {"alpha_pattern": {7: 8}},
    ],
)
def test_nonsense_is_refused_at_birth(nonsense: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LoraConfig(**nonsense)  # type: ignore[arg-type]


def test_all_problems_of_a_setting_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        LoraConfig(r=0, dropout=2.0, bias="some")  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in ("r=0", "dropout=2.0", "bias='some'"))


def test_the_inits_that_may_be_named_are_those_registered() -> None:
    assert tuple(INITS) == INIT_NAMES


def test_a_setting_prints_r_alpha_and_scaling() -> None:
    assert str(LoraConfig(r=16, scaling=2.0)) == "r=16 alpha=32 scaling=2"


def test_a_rank_of_experts_keeps_their_scaling_and_means_nobody_else() -> None:
    config = LoraConfig(r=16, scaling=2.0, expert_r=4)
    assert (config.rank_of("model.layers.0.mlp.experts.down_proj"), config.rank_of("mlp.down_proj")) == (4, 16)
    assert config.scaling_of("model.layers.0.mlp.experts.gate_up_proj") == 2.0
    assert config.alpha_of("model.layers.0.mlp.experts.gate_up_proj") == 8.0
    rooted = config.replace(rslora=True, rank_pattern={"down_proj": 9})
    assert rooted.scaling_of("a.experts.gate_up_proj") == pytest.approx(2.0)
    assert rooted.rank_of("a.experts.down_proj") == 9
    assert config.replace(r=8, scaling=0.5).alpha_of("a.experts.down_proj") == 2.0
    with pytest.raises(ConfigError, match="expert_r=0"):
        LoraConfig(expert_r=0)
