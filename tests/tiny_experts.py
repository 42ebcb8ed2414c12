"""Tiny random mixtures of experts of six families: two layers, 32 wide, weights wide enough that routing varies."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers import PreTrainedModel

_SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
}
_DEEPSEEK = {
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_CONFIGS: dict[str, Callable[..., Any]] = {
    "mixtral": lambda **own: hf.MixtralConfig(**{**_SMALL, "num_local_experts": 4, "sliding_window": None, **own}),
    "qwen3_moe": lambda **own: hf.Qwen3MoeConfig(
        **{**_SMALL, "num_experts": 8, "moe_intermediate_size": 24, "head_dim": 8, **own}
    ),
    "olmoe": lambda **own: hf.OlmoeConfig(**{**_SMALL, "num_experts": 8, **own}),
    "gpt_oss": lambda **own: hf.GptOssConfig(
        **{**_SMALL, "num_local_experts": 8, "head_dim": 8, "layer_types": ["full_attention"] * 2, **own}
    ),
    "deepseek_v3": lambda **own: hf.DeepseekV3Config(**{**_SMALL, **_DEEPSEEK, **own}),
    "granitemoe": lambda **own: hf.GraniteMoeConfig(**{**_SMALL, "num_local_experts": 8, **own}),
}
EXPERT_FAMILIES: tuple[str, ...] = tuple(_CONFIGS)
SPARSE_LAYERS = {family: 1 if family == "deepseek_v3" else 2 for family in EXPERT_FAMILIES}


def tiny_mixture(
    family: str, dtype: torch.dtype = torch.float32, *, std: float = 0.3, **overrides: Any
) -> PreTrainedModel:
    """A causal language model of `family` in eval mode; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = hf.AutoModelForCausalLM.from_config(_CONFIGS[family](**overrides), dtype=dtype)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=std)
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # transformers' grouped product has no float64
    return model.eval()
