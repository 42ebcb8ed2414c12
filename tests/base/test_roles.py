"""What a module is for, told by its name."""

import pytest

from lorawise.base.roles import role_of


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.0.self_attn.q_proj", "q"),
        ("transformer.h.3.attn.c_proj", "o"),
        ("transformer.h.3.mlp.c_proj", "mlp"),
        ("gpt_neox.layers.1.attention.dense", "o"),
        ("gpt_neox.layers.1.mlp.dense_4h_to_h", "mlp"),
        ("model.layers.0.self_attn.qkv_proj", "qkv"),
        ("model.layers.0.mlp.shared_expert_gate", "router"),
        ("lm_head", "head"),
        ("q_proj", "q"),
        ("transformer.wpe", "position"),
        ("model.norm", None),
        ("", None),
    ],
)
def test_a_name_tells_the_role(name: str, role: str | None) -> None:
    assert role_of(name) == role
