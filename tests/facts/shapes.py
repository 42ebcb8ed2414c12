"""Small configs of every family that has a rule, and transformers' own model of each."""

import json
from pathlib import Path
from typing import Any

import torch
from tests.tiny import _MODEL_TYPES, _OWN, _SHARED
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_NO_MLP = {key: value for key, value in _SHARED.items() if key != "intermediate_size"}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
_LATENT = {
    "n_routed_experts": 4, "moe_intermediate_size": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 6, "first_k_dense_replace": 1, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip

# model type → settings over the shared ones; a suffix after a space tells variants of one family apart
SETTINGS: dict[str, dict[str, Any]] = {
    **{_MODEL_TYPES.get(family, family): own for family, own in _OWN.items()},
    "llama biased": {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "tie_word_embeddings": True},
    "mistral wide": {"head_dim": 16},
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen3 tied": {"attention_bias": True, "head_dim": 12, "tie_word_embeddings": True},
    "gemma": {"head_dim": 8},
    "gemma2 untied": {"head_dim": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": False},
    "gpt2 wide": {"n_inner": 80, "tie_word_embeddings": False},
    "gpt_neox plain": {"attention_bias": False, "tie_word_embeddings": True},
    "falcon grouped": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon grouped one norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon rw": {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True, "ffn_hidden_size": 72},
    "cohere normed": {"use_qk_norm": True, "tie_word_embeddings": False},
    "cohere2": {},
    "granite biased": {"attention_bias": True, "mlp_bias": True},
    "opt projected": {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "opt plain": {"ffn_dim": 48, "enable_bias": False, "layer_norm_elementwise_affine": False},
    "olmo": {},
    "olmo3": {},
    "phi": {},
    "phi normed": {"qk_layernorm": True},
    "starcoder2": {},
    "starcoder2 plain": {"use_bias": False},
    "stablelm": {},
    "stablelm normed": {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True},
    "bloom": {},
    "gptj": {"rotary_dim": 4},
    "gptj wide": {"rotary_dim": 4, "n_inner": 80},
    "mixtral": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4, "attention_bias": True},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3_moe": _EXPERTS,
    "qwen3_moe some": {**_EXPERTS, "decoder_sparse_step": 2, "attention_bias": True},
    "qwen3_moe mlp": {**_EXPERTS, "mlp_only_layers": [0]},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "deepseek_v2": {**_LATENT, "q_lora_rank": 16},
    "deepseek_v2 biased": {**_LATENT, "q_lora_rank": None, "attention_bias": True, "mlp_bias": True},
    "deepseek_v3": {**_LATENT, "q_lora_rank": 16, "attention_bias": True},
}  # fmt: skip


def config_of(case: str) -> Any:
    return AutoConfig.for_model(case.split(" ")[0], **{**_SHARED, **SETTINGS[case]})


def meta_model(config: Any) -> PreTrainedModel:
    """Without memory behind it."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def write_config(folder: Path, config: Any, **changes: Any) -> Path:
    """config.json as save_pretrained writes it, with changes; a change to None takes the key out."""
    values = {**json.loads(config.to_json_string()), **changes}
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in values.items() if k not in changes or v is not None})
    )
    return folder
