"""Decoders in Llama's layout: `model.layers.N` with split projections, a gated feed-forward, RMS norms."""

from collections.abc import Callable, Iterator

from lorawise.facts.blocks import (
    Part,
    embedding,
    gated_mlp,
    linear,
    norm,
    norms,
    plain_mlp,
    query_key_norms,
    split_attention,
)
from lorawise.facts.config import Config, Dimensions
from lorawise.facts.families import family
from lorawise.facts.model import Parameter

Layer = Callable[[str], Iterator[Part]]

AROUND = ("input_layernorm", "post_attention_layernorm")
AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
SANDWICH = (*AROUND, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def decoder(
    d: Dimensions,
    layer: Layer,
    *,
    final: str = "norm",
    affine: bool = True,
    norm_bias: bool = False,
    head_bias: bool = False,
) -> Iterator[Part]:
    """Embedding, layers, last norm (none when not `affine`: it holds no parameters), head."""
    yield embedding("model.embed_tokens", d.vocab, d.hidden)
    for i in range(d.layers):
        yield from layer(f"model.layers.{i}")
    if affine:
        yield from norm(f"model.{final}", d.hidden, bias=norm_bias)
    yield linear("lm_head", d.hidden, d.vocab, bias=head_bias)


@family("llama", "LlamaForCausalLM", defaults={"attention_bias": False, "mlp_bias": False, "head_dim": None})
@family("granite", "GraniteForCausalLM", defaults={"attention_bias": False, "mlp_bias": False})
@family(
    "smollm3",
    "SmolLM3ForCausalLM",
    tied=True,
    defaults={"attention_bias": False, "mlp_bias": False, "num_key_value_heads": 4},
)
def llama(d: Dimensions, c: Config) -> Iterator[Part]:
    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("attention_bias"))
        yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate, bias=c.flag("mlp_bias"))
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


@family("mistral", "MistralForCausalLM", defaults={"num_key_value_heads": 8, "head_dim": None})
def mistral(d: Dimensions, c: Config) -> Iterator[Part]:
    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d)
        yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate)
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


@family("qwen2", "Qwen2ForCausalLM", defaults={"num_key_value_heads": 32})
def qwen2(d: Dimensions, c: Config) -> Iterator[Part]:
    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=True, output_bias=False)
        yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate)
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


@family("qwen3", "Qwen3ForCausalLM", defaults={"attention_bias": False, "head_dim": 128, "num_key_value_heads": 32})
def qwen3(d: Dimensions, c: Config) -> Iterator[Part]:
    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("attention_bias"))
        yield from query_key_norms(f"{at}.self_attn", d, "head")
        yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate)
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


@family(
    "gemma",
    "GemmaForCausalLM",
    tied=True,
    defaults={"attention_bias": False, "head_dim": 256, "num_key_value_heads": 16},
)
def gemma(d: Dimensions, c: Config) -> Iterator[Part]:
    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("attention_bias"))
        yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate)
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


@family(
    "gemma2",
    "Gemma2ForCausalLM",
    tied=True,
    defaults={"attention_bias": False, "head_dim": 256, "num_key_value_heads": 4},
)
def gemma2(d: Dimensions, c: Config) -> Iterator[Part]:
    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("attention_bias"))
        yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate)
        yield from norms(at, SANDWICH, d.hidden)

    return decoder(d, layer)


@family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    tied=True,
    defaults={"attention_bias": False, "head_dim": 256, "num_key_value_heads": 4},
)
def gemma3(d: Dimensions, c: Config) -> Iterator[Part]:
    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("attention_bias"))
        yield from query_key_norms(f"{at}.self_attn", d, "head")
        yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate)
        yield from norms(at, SANDWICH, d.hidden)

    return decoder(d, layer)


@family("phi3", "Phi3ForCausalLM")
def phi3(d: Dimensions, c: Config) -> Iterator[Part]:
    def layer(at: str) -> Iterator[Part]:
        yield linear(f"{at}.self_attn.o_proj", d.q, d.hidden)
        yield linear(f"{at}.self_attn.qkv_proj", d.hidden, d.q + 2 * d.kv)
        yield linear(f"{at}.mlp.gate_up_proj", d.hidden, 2 * d.intermediate)
        yield linear(f"{at}.mlp.down_proj", d.intermediate, d.hidden)
        yield from norms(at, AROUND, d.hidden)

    return decoder(d, layer)


@family("olmo", "OlmoForCausalLM", defaults={"attention_bias": False})
def olmo(d: Dimensions, c: Config) -> Iterator[Part]:
    """Its layer norms hold no parameters."""

    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("attention_bias"))
        yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate)

    return decoder(d, layer, affine=False)


@family("olmo2", "Olmo2ForCausalLM", defaults={"attention_bias": False})
@family("olmo3", "Olmo3ForCausalLM", defaults={"attention_bias": False})
def olmo2(d: Dimensions, c: Config) -> Iterator[Part]:
    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("attention_bias"))
        yield from query_key_norms(f"{at}.self_attn", d, "all")
        yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate)
        yield from norms(at, AFTER, d.hidden)

    return decoder(d, layer)


@family("cohere", "CohereForCausalLM", tied=True, defaults={"attention_bias": False, "use_qk_norm": False})
@family("cohere2", "Cohere2ForCausalLM", tied=True, defaults={"attention_bias": False})
def cohere(d: Dimensions, c: Config) -> Iterator[Part]:
    """One norm a layer; attention and feed-forward side by side."""

    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=c.flag("attention_bias"))
        if c.flag("use_qk_norm"):
            yield Parameter(name=f"{at}.self_attn.q_norm.weight", shape=(d.heads, d.head_dim))
            yield Parameter(name=f"{at}.self_attn.k_norm.weight", shape=(d.kv_heads, d.head_dim))
        yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate)
        yield from norm(f"{at}.input_layernorm", d.hidden)

    return decoder(d, layer)


@family(
    "stablelm",
    "StableLmForCausalLM",
    defaults={
        "num_key_value_heads": 32,
        "use_qkv_bias": False,
        "qk_layernorm": False,
        "use_parallel_residual": False,
    },
)
def stablelm(d: Dimensions, c: Config) -> Iterator[Part]:
    """With `qk_layernorm`, every head has a norm of its own."""

    def layer(at: str) -> Iterator[Part]:
        attention = f"{at}.self_attn"
        yield from split_attention(attention, d, bias=c.flag("use_qkv_bias"), output_bias=False, width=d.hidden)
        if c.flag("qk_layernorm"):
            for letter, heads in (("q", d.heads), ("k", d.kv_heads)):
                for i in range(heads):
                    yield from norm(f"{attention}.{letter}_layernorm.norms.{i}", d.head_dim)
        yield from gated_mlp(f"{at}.mlp", d.hidden, d.intermediate)
        yield from norms(at, AROUND[: 1 if c.flag("use_parallel_residual") else 2], d.hidden, bias=True)

    return decoder(d, layer, norm_bias=True)


@family("starcoder2", "Starcoder2ForCausalLM", tied=True, defaults={"num_key_value_heads": 2, "use_bias": True})
def starcoder2(d: Dimensions, c: Config) -> Iterator[Part]:
    bias = c.flag("use_bias")

    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=bias)
        yield from plain_mlp(f"{at}.mlp", ("c_fc", "c_proj"), d.hidden, d.intermediate, bias=bias)
        yield from norms(at, AROUND, d.hidden, bias=True)

    return decoder(d, layer, norm_bias=True)


@family("phi", "PhiForCausalLM", defaults={"qk_layernorm": False})
def phi(d: Dimensions, c: Config) -> Iterator[Part]:
    """Biases everywhere, the head's too; one norm a layer."""

    def layer(at: str) -> Iterator[Part]:
        yield from split_attention(f"{at}.self_attn", d, bias=True, output="dense")
        if c.flag("qk_layernorm"):
            yield from norms(f"{at}.self_attn", ("q_layernorm", "k_layernorm"), d.hidden // d.heads, bias=True)
        yield from plain_mlp(f"{at}.mlp", ("fc1", "fc2"), d.hidden, d.intermediate, bias=True)
        yield from norm(f"{at}.input_layernorm", d.hidden, bias=True)

    return decoder(d, layer, final="final_layernorm", norm_bias=True, head_bias=True)
