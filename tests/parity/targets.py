"""What each preset means in each family, written by hand: PEFT gets these names, we get the preset's."""

_LLAMA = {
    "qv": ["q_proj", "v_proj"],
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
}
_FUSED = {"qv": ["query_key_value"], "mlp": ["dense_h_to_4h", "dense_4h_to_h"]}
_BY_FAMILY = {
    "phi3": {"qv": ["qkv_proj"], "attention": ["qkv_proj", "o_proj"], "mlp": ["gate_up_proj", "down_proj"]},
    "gpt2": {"qv": ["c_attn"], "attention": ["c_attn", "attn.c_proj"], "mlp": ["c_fc", "mlp.c_proj"]},
    "gpt_neox": _FUSED | {"attention": ["query_key_value", "attention.dense"]},
    "falcon": _FUSED | {"attention": ["query_key_value", "self_attention.dense"]},
    "opt": {"qv": ["q_proj", "v_proj"], "attention": ["q_proj", "k_proj", "v_proj", "out_proj"], "mlp": ["fc1", "fc2"]},
}
_LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "cohere", "granite", "smollm3")
PRESETS = ("qv", "attention", "mlp", "all-linear")
CASES = [(family, preset) for family in (*_LIKE_LLAMA, *_BY_FAMILY) for preset in PRESETS]


def peft_targets(family: str, preset: str) -> list[str] | str:
    """Names for PEFT; its own `all-linear` for ours."""
    if preset == "all-linear":
        return preset
    return list(_BY_FAMILY.get(family, _LLAMA)[preset])
