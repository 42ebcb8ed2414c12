"""Tiny models as GGUF files, as llama.cpp's converter writes them: names, row orders and settings by family."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tests.models.saved_models import SPECIAL, TEMPLATE, tiny_tokenizer

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3", "cohere": "command-r", "gpt_neox": "gptneox"}
WHOLE = ("gpt2", "gpt_neox")  # whose heads all have keys and values of their own
PAIRED = ("llama", "mistral", "granite", "smollm3")  # families whose q and k rows change places
SHIFTED = ("gemma", "gemma2", "gemma3_text")  # whose norms multiply by 1 + weight


def write_gguf(
    path: Path, model: torch.nn.Module, kind: gguf.GGMLQuantizationType, *, template: str = TEMPLATE
) -> None:
    """Matrices as `kind`, norms and biases as F32."""
    config = model.config
    name = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, name)
    _write_settings(writer, config)
    _write_tokenizer(writer, config.vocab_size, template)
    known = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[name], config.num_hidden_layers)
    for parameter, tensor in model.state_dict().items():
        if parameter in ("lm_head.weight", "embed_out.weight") and config.tie_word_embeddings:
            continue
        stored = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        assert stored is not None, parameter
        value = _as_stored(parameter, tensor.float().numpy(), config)
        if value.ndim == 1 or kind == gguf.GGMLQuantizationType.F32 or stored == "position_embd.weight":
            writer.add_tensor(stored, value.astype(np.float32))
        else:
            writer.add_tensor(stored, gguf.quants.quantize(value.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_settings(writer: gguf.GGUFWriter, config: Any) -> None:
    told = config.to_dict()
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = told.get("head_dim") or width // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(4 * width if config.model_type == "gpt2" else config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads if config.model_type in WHOLE else config.num_key_value_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type != "gpt2":
        rope = told.get("rope_parameters") or {}
        rope = rope.get("full_attention", rope)
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
        writer.add_rope_freq_base(rope["rope_theta"])
    _write_own(writer, told)


def _write_own(writer: gguf.GGUFWriter, told: dict[str, Any]) -> None:
    """What only some families have."""
    adders = {
        "rms_norm_eps": writer.add_layer_norm_rms_eps,
        "layer_norm_eps": writer.add_layer_norm_eps,
        "layer_norm_epsilon": writer.add_layer_norm_eps,
        "sliding_window": writer.add_sliding_window,
        "attn_logit_softcapping": writer.add_attn_logit_softcapping,
        "final_logit_softcapping": writer.add_final_logit_softcapping,
        "attention_multiplier": writer.add_attention_scale,
        "embedding_multiplier": writer.add_embedding_scale,
        "residual_multiplier": writer.add_residual_scale,
        "logits_scaling": writer.add_logit_scale,
        "logit_scale": writer.add_logit_scale,
        "use_parallel_residual": writer.add_parallel_residual,
    }
    for field, add in adders.items():
        if told.get(field) is not None and not (field == "sliding_window" and told["model_type"] == "qwen2"):
            add(told[field])


def _as_stored(parameter: str, value: np.ndarray, config: Any) -> np.ndarray:
    module = parameter.rpartition(".")[0]
    if config.model_type in SHIFTED and module.endswith("norm"):
        return value + 1
    if config.model_type == "gpt2" and value.ndim == 2 and module.rpartition(".")[2] in ("c_attn", "c_proj", "c_fc"):
        return value.T.copy()
    if config.model_type == "gpt_neox" and module.endswith("query_key_value"):
        return np.concatenate(
            list(value.reshape(config.num_attention_heads, 3, -1, *value.shape[1:]).swapaxes(0, 1))
        ).reshape(value.shape)
    if config.model_type in PAIRED and module.endswith(("q_proj", "k_proj")):
        heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
        return _interleaved(value, heads)
    return value


def _interleaved(value: np.ndarray, heads: int) -> np.ndarray:
    """Halves of each head's rows in turn."""
    rows = value.shape[0]
    return value.reshape(heads, 2, rows // heads // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape).copy()


def _write_tokenizer(writer: gguf.GGUFWriter, size: int, template: str) -> None:
    tokenizer = tiny_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].__getitem__)
    tokens += [f"[PAD{i}]" for i in range(len(tokens), size)]  # llama.cpp counts the vocabulary by its tokens
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 5 if token.startswith("[PAD") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<pad>"))
    writer.add_chat_template(template)
