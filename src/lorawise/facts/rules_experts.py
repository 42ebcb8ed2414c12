"""Mixtures of experts. In memory a layer's experts are two 3-D parameters; routers are parameters, no linear layers."""

from collections.abc import Iterator

from lorawise.facts.blocks import Part, fused_experts, gated_mlp, linear, norm, norms, query_key_norms, split_attention
from lorawise.facts.config import Config, Dimensions
from lorawise.facts.families import family
from lorawise.facts.model import Parameter
from lorawise.facts.rules_llama import AROUND, decoder


def router(at: str, experts: int, d: Dimensions) -> Parameter:
    return Parameter(name=f"{at}.weight", shape=(experts, d.hidden))


@family(
    "mixtral",
    "MixtralForCausalLM",
    defaults={"num_key_value_heads": 8, "head_dim": None, "num_local_experts": 8, "num_experts_per_tok": 2},
    disk="mixtral",
)
def mixtral(d: Dimensions, c: Config) -> Iterator[Part]:
    experts = c.need("num_local_experts", "num_experts")

    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d)
        yield router(f"{at}.mlp.gate", experts, d)
        yield from fused_experts(f"{at}.mlp.experts", experts, d.hidden, d.intermediate)
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


def _is_sparse(c: Config, at: str) -> bool:
    """Qwen's rule: every `decoder_sparse_step`-th layer has experts, but for those named in `mlp_only_layers`."""
    i = int(at.rpartition(".")[2])
    step = c.number("decoder_sparse_step") or 1
    return i not in c.numbers("mlp_only_layers") and (i + 1) % step == 0


@family(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    defaults={
        "num_key_value_heads": 16,
        "qkv_bias": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
    },
    disk="experts",
)
def qwen2_moe(d: Dimensions, c: Config) -> Iterator[Part]:
    experts, inner = c.need("num_experts", "num_local_experts"), c.need("moe_intermediate_size")

    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("qkv_bias"), output_bias=False)
        if _is_sparse(c, at):
            yield router(f"{at}.mlp.gate", experts, d)
            yield from fused_experts(f"{at}.mlp.experts", experts, d.hidden, inner)
            yield from gated_mlp(f"{at}.mlp.shared_expert", d.hidden, c.need("shared_expert_intermediate_size"))
            yield linear(f"{at}.mlp.shared_expert_gate", d.hidden, 1)
        else:
            yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate)
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


@family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    defaults={
        "num_key_value_heads": 4,
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
    disk="experts",
)
def qwen3_moe(d: Dimensions, c: Config) -> Iterator[Part]:
    experts, inner = c.need("num_experts", "num_local_experts"), c.need("moe_intermediate_size")

    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("attention_bias"))
        yield from query_key_norms(f"{at}.self_attn", d, "head")
        if _is_sparse(c, at):
            yield from fused_experts(f"{at}.mlp.experts", experts, d.hidden, inner)
            yield router(f"{at}.mlp.gate", experts, d)
        else:
            yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate)
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


@family(
    "olmoe",
    "OlmoeForCausalLM",
    defaults={"attention_bias": False, "num_experts": 64, "num_experts_per_tok": 8},
    disk="experts",
)
def olmoe(d: Dimensions, c: Config) -> Iterator[Part]:
    experts = c.need("num_experts", "num_local_experts")

    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("attention_bias"))
        yield from query_key_norms(f"{at}.self_attn", d, "all")
        yield router(f"{at}.mlp.gate", experts, d)
        yield from fused_experts(f"{at}.mlp.experts", experts, d.hidden, d.intermediate)
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


@family(
    "granitemoe",
    "GraniteMoeForCausalLM",
    defaults={"attention_bias": False, "num_local_experts": 8, "num_experts_per_tok": 2},
    disk="granitemoe",
)
def granitemoe(d: Dimensions, c: Config) -> Iterator[Part]:
    experts = c.need("num_local_experts", "num_experts")

    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("attention_bias"))
        yield router(f"{at}.block_sparse_moe.router", experts, d)
        yield from fused_experts(f"{at}.block_sparse_moe.experts", experts, d.hidden, d.intermediate)
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


@family(
    "gpt_oss",
    "GptOssForCausalLM",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 64,
        "attention_bias": True,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
    },
)
def gpt_oss(d: Dimensions, c: Config) -> Iterator[Part]:
    """Attention sinks are a parameter of attention; router and experts have biases."""
    experts = c.need("num_local_experts", "num_experts")

    def layer(at: str) -> Iterator[Part]:
        yield Parameter(name=f"{at}.self_attn.sinks", shape=(d.heads,))
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("attention_bias"))
        yield router(f"{at}.mlp.router", experts, d)
        yield Parameter(name=f"{at}.mlp.router.bias", shape=(experts,))
        yield from fused_experts(f"{at}.mlp.experts", experts, d.hidden, d.intermediate, bias=True)
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


@family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    defaults={
        "attention_bias": False,
        "mlp_bias": False,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
    },
    disk="experts",
)
@family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    defaults={
        "attention_bias": False,
        "first_k_dense_replace": 3,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "moe_intermediate_size": 2048,
        "num_experts_per_tok": 8,
    },
    disk="experts",
)
def deepseek(d: Dimensions, c: Config) -> Iterator[Part]:
    """The first `first_k_dense_replace` layers are dense; the rest have routed and shared experts."""
    experts, inner = c.need("n_routed_experts", "num_experts"), c.need("moe_intermediate_size")
    dense, bias = _dense_layers(c), c.flag("mlp_bias")

    def layer(at: str) -> Iterator[Part]:
        yield from _latent_attention(f"{at}.self_attn", d, c)
        if int(at.rpartition(".")[2]) >= dense:
            yield from fused_experts(f"{at}.mlp.experts", experts, d.hidden, inner)
            yield router(f"{at}.mlp.gate", experts, d)
            shared = inner * c.need("n_shared_experts")
            yield from gated_mlp(f"{at}.mlp.shared_experts", d.hidden, shared, bias=bias)
        else:
            yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate, bias=bias)
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


def _dense_layers(c: Config) -> int:
    return 0 if c.get("first_k_dense_replace") == 0 else c.number("first_k_dense_replace") or 0


def _latent_attention(at: str, d: Dimensions, c: Config) -> Iterator[Part]:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): queries, keys and values through narrow latents."""
    bias = c.flag("attention_bias")
    latent, rope = c.need("kv_lora_rank"), c.need("qk_rope_head_dim")
    nope, value = c.need("qk_nope_head_dim"), c.need("v_head_dim")
    queries = d.heads * (nope + rope)
    if narrow := c.number("q_lora_rank"):
        yield linear(f"{at}.q_a_proj", d.hidden, narrow, bias=bias)
        yield from norm(f"{at}.q_a_layernorm", narrow)
        yield linear(f"{at}.q_b_proj", narrow, queries)
    else:
        yield linear(f"{at}.q_proj", d.hidden, queries)
    yield linear(f"{at}.kv_a_proj_with_mqa", d.hidden, latent + rope, bias=bias)
    yield from norm(f"{at}.kv_a_layernorm", latent)
    yield linear(f"{at}.kv_b_proj", latent, d.heads * (nope + value))
    yield linear(f"{at}.o_proj", d.heads * value, d.hidden, bias=bias)
