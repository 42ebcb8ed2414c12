"""What a module is for, told by its name: query, key, value, output, feed-forward, head, embedding.

One table from the last component of a module's name (with its parent where the leaf alone is ambiguous: GPT-2 calls
both its attention's and its MLP's last projection `c_proj`) to a role. Shapes and planning share it with injection.
"""

from typing import Literal

Role = Literal["q", "k", "v", "o", "qkv", "mlp", "router", "head", "embedding", "position"]

ATTENTION_ROLES: frozenset[Role] = frozenset({"q", "k", "v", "o", "qkv"})

# "qkv" holds every fused projection that contains v (and mostly q): such a projection cannot be adapted in parts.
_BY_LEAF: dict[str, Role] = {
    # Llama, Mistral, Qwen, Gemma, OLMo, Cohere, Granite, SmolLM, Phi, OPT, GPT-J
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "out_proj": "o",
    # BERT and its line
    "query": "q",
    "key": "k",
    "value": "v",
    # fused: Phi-3, GPT-NeoX and Falcon and Bloom, GPT-2, MPT and DBRX, InternLM2, StarCoder
    "qkv_proj": "qkv",
    "query_key_value": "qkv",
    "c_attn": "qkv",
    "Wqkv": "qkv",
    "wqkv": "qkv",
    "qkv": "qkv",
    "in_proj_qkvz": "qkv",
    "in_proj_qkv": "qkv",
    # multi-head latent attention (DeepSeek): low-rank q, and k and v behind one latent
    "q_a_proj": "q",
    "q_b_proj": "q",
    "kv_a_proj_with_mqa": "k",
    "kv_b_proj": "v",
    # feed-forward
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
    "gate_up_proj": "mlp",
    "fc1": "mlp",
    "fc2": "mlp",
    "fc_in": "mlp",
    "fc_out": "mlp",
    "c_fc": "mlp",
    "dense_h_to_4h": "mlp",
    "dense_4h_to_h": "mlp",
    "w1": "mlp",
    "w2": "mlp",
    "w3": "mlp",
    "input_linear": "mlp",
    "output_linear": "mlp",
    "router": "router",
    "shared_expert_gate": "router",
    # ends of the model
    "lm_head": "head",
    "embed_out": "head",
    "score": "head",
    "classifier": "head",
    "embed_tokens": "embedding",
    "embed_in": "embedding",
    "wte": "embedding",
    "word_embeddings": "embedding",
    "wpe": "position",
    "embed_positions": "position",
    "position_embeddings": "position",
    "position_embedding": "position",
}

_BY_PARENT: dict[tuple[str, str], Role] = {
    ("attn", "c_proj"): "o",
    ("mlp", "c_proj"): "mlp",
    ("attention", "dense"): "o",
    ("self_attention", "dense"): "o",
    ("self_attn", "dense"): "o",
    ("intermediate", "dense"): "mlp",
    ("feed_forward", "wo"): "mlp",
    ("attention", "wo"): "o",
    ("mlp", "gate"): "router",
    ("router", "layer"): "router",
    ("block_sparse_moe", "gate"): "router",
    ("mlp", "out_proj"): "mlp",
}


def role_of(name: str) -> Role | None:
    """The role of the module called `name` (any prefix), or None when the table does not know it."""
    parts = name.rsplit(".", 2)
    if len(parts) >= 2 and (role := _BY_PARENT.get((parts[-2], parts[-1]))):
        return role
    return _BY_LEAF.get(parts[-1])
