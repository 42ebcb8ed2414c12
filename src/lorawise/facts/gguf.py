"""A GGUF file's facts: its settings as the config.json that they came from, its tensors as the proof.

llama.cpp's names are not the modules' names, so the family's rule gives those; the file's tensors tell what the
settings leave open (biases, a tied head), and their number of values must be the rule's.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorawise.base.errors import ModelError
from lorawise.base.findings import Finding
from lorawise.base.gguf import GGUFHeader, GGUFTensor
from lorawise.facts.families import family_of
from lorawise.facts.layout import facts_of, layout_of
from lorawise.facts.model import ModelFacts

MODEL_TYPES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text",
    "phi3": "phi3", "gpt2": "gpt2", "gptneox": "gpt_neox", "falcon": "falcon", "olmo2": "olmo2", "command-r": "cohere",
    "granite": "granite", "stablelm": "stablelm", "starcoder2": "starcoder2", "smollm3": "smollm3", "olmo": "olmo",
    "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "olmoe": "olmoe", "gpt-oss": "gpt_oss", "bloom": "bloom",
}  # fmt: skip
_SIZES = {
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.sliding_window": ("sliding_window",),
    "context_length": ("max_position_embeddings", "n_positions"),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
}
_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NAMES = {0: "F32", 1: "F16", 30: "BF16"}  # ggml's numbers of the types that are not quantised
_COMPUTED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")  # no parameters


def read_gguf(path: Path, source: str) -> ModelFacts:
    """`TensorFileError` for a file that is torn or no GGUF; `ModelError` for an architecture without a rule."""
    header = GGUFHeader.open(path)
    refuse_adapter(header)
    name = header.settings.get("general.architecture")
    family = family_of(_model_type(header, str(name)))
    if not header.tensors or family is None:
        raise ModelError(
            f"{path} is of GGUF architecture '{name}', which has no rule here"
            if header.tensors
            else f"{path} holds no tensors",
            expected=f"a whole model of one of: {', '.join(sorted(MODEL_TYPES))}",
            cure="use the model's original folder or hub id",
        )
    facts = facts_of(
        layout_of(family, {**_config(header, str(name)), "model_type": family.model_type}, str(path)), source
    )
    held = sum(_values(t.shape) for n, t in header.tensors.items() if n not in _COMPUTED)
    notes: tuple[Finding, ...] = ()
    if held != facts.parameters:
        notes = (
            Finding(
                code="facts-gguf-count",
                level="warning",
                path=str(path),
                message=f"it holds {held:,} values, a {facts.architecture} of its settings {facts.parameters:,}",
                cure="use the model's original folder or hub id for exact counts",
            ),
        )
    return facts.replace(
        exact=not notes, dtype=opened_dtype(_NAMES.get(t.type, "quantised") for t in _matrices(header)), notes=notes
    )


def refuse_adapter(header: GGUFHeader) -> None:
    """`ModelError` for a GGUF file that holds an adapter."""
    if header.settings.get("general.type") == "adapter":
        raise ModelError(
            f"{header.path} holds an adapter, not a model",
            expected="a GGUF file of a whole model",
            cure="name the base model here; the adapter is read from the folder that it was exported from",
        )


def opened_dtype(types: Iterable[str]) -> str:
    """The plain type that a model of these ggml types is opened as: its own, or bfloat16 for anything quantised."""
    found = set(types)
    names = {_PLAIN.get(name, "bfloat16") for name in found}
    if not found <= set(_PLAIN) or names == {"bfloat16", "float16"}:
        return "bfloat16"
    return "float32" if "float32" in names else names.pop()


def _model_type(header: GGUFHeader, name: str) -> str:
    if name == "llama" and header.settings.get("llama.expert_count"):
        return "mixtral"
    return MODEL_TYPES.get(name, name)


def _config(header: GGUFHeader, name: str) -> dict[str, Any]:
    """The settings under config.json's names, and what the tensors tell beside them."""
    values: dict[str, Any] = {}
    for setting, keys in _SIZES.items():
        found = header.settings.get(f"{name}.{setting}")
        number = found[0] if isinstance(found, list) and len(set(found)) == 1 else found
        if isinstance(number, int) and number > 0:
            values |= dict.fromkeys(keys, number)
    tensors = header.tensors
    if embedding := tensors.get("token_embd.weight"):
        values["vocab_size"] = embedding.shape[-1]
    values["tie_word_embeddings"] = "output.weight" not in tensors
    return values | _flags(tensors)


def _flags(tensors: Mapping[str, object]) -> dict[str, Any]:
    qkv = "blk.0.attn_q.bias" in tensors
    heads = {"attention_bias": qkv or "blk.0.attn_qkv.bias" in tensors, "qkv_bias": qkv, "use_qkv_bias": qkv}
    return heads | {
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors,
        "new_decoder_architecture": "blk.0.attn_norm_2.weight" in tensors,
    }


def _matrices(header: GGUFHeader) -> list[GGUFTensor]:
    return [tensor for tensor in header.tensors.values() if len(tensor.shape) > 1]


def _values(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
