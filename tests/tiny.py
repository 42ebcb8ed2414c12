"""Tiny random models of every supported family: two layers, 32 wide, 256 tokens, built in milliseconds."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SHARED: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "phi3": {},
    "gpt2": {},
    "gpt_neox": {},
    "falcon": {"new_decoder_architecture": False, "multi_query": True},
    "olmo2": {},
    "cohere": {},
    "granite": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "smollm3": {},
}
_MODEL_TYPES = {"gemma3": "gemma3_text"}
FAMILIES: tuple[str, ...] = tuple(_OWN)


def tiny_model(
    family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **config_overrides: Any
) -> PreTrainedModel:
    """A causal language model of `family` with random weights, in eval mode; the global generator is left as it was."""
    settings = {**_SHARED, **_OWN[family], **config_overrides}
    config = AutoConfig.for_model(_MODEL_TYPES.get(family, family), **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()
