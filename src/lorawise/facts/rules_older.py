"""Decoders in the layouts before Llama's: GPT-2, GPT-J, GPT-NeoX, OPT, BLOOM, Falcon."""

from collections.abc import Iterator

from lorawise.facts.blocks import Part, embedding, linear, norm, norms, plain_mlp, split_attention
from lorawise.facts.config import Config, Dimensions
from lorawise.facts.families import family


def _all_heads(c: Config) -> None:
    """As many as query heads, whatever the config says: the class reads no such key."""


def _falcon_kv_heads(c: Config) -> int | None:
    if c.flag("new_decoder_architecture"):
        return c.number("num_kv_heads")
    return 1 if c.flag("multi_query") else None


WIDE = ("dense_h_to_4h", "dense_4h_to_h")


@family("gpt2", "GPT2LMHeadModel", tied=True, intermediate="n_inner", widening=4, defaults={"n_positions": 1024})
def gpt2(d: Dimensions, c: Config) -> Iterator[Part]:
    yield embedding("transformer.wte", d.vocab, d.hidden)
    yield embedding("transformer.wpe", d.positions or 1024, d.hidden)
    for i in range(d.layers):
        at = f"transformer.h.{i}"
        yield from norm(f"{at}.ln_1", d.hidden, bias=True)
        yield linear(f"{at}.attn.c_attn", d.hidden, 3 * d.hidden, bias=True, kind="conv1d")
        yield linear(f"{at}.attn.c_proj", d.hidden, d.hidden, bias=True, kind="conv1d")
        yield from norm(f"{at}.ln_2", d.hidden, bias=True)
        yield linear(f"{at}.mlp.c_fc", d.hidden, d.intermediate, bias=True, kind="conv1d")
        yield linear(f"{at}.mlp.c_proj", d.intermediate, d.hidden, bias=True, kind="conv1d")
    yield from norm("transformer.ln_f", d.hidden, bias=True)
    yield linear("lm_head", d.hidden, d.vocab)


@family("gptj", "GPTJForCausalLM", intermediate="n_inner", widening=4, kv_heads=_all_heads)
def gptj(d: Dimensions, c: Config) -> Iterator[Part]:
    yield embedding("transformer.wte", d.vocab, d.hidden)
    for i in range(d.layers):
        at = f"transformer.h.{i}"
        yield from norm(f"{at}.ln_1", d.hidden, bias=True)
        yield from split_attention(f"{at}.attn", d, output="out_proj", order="kvq")
        yield from plain_mlp(f"{at}.mlp", ("fc_in", "fc_out"), d.hidden, d.intermediate, bias=True)
    yield from norm("transformer.ln_f", d.hidden, bias=True)
    yield linear("lm_head", d.hidden, d.vocab, bias=True)


@family("gpt_neox", "GPTNeoXForCausalLM", defaults={"attention_bias": True}, disk="gpt_neox")
def gpt_neox(d: Dimensions, c: Config) -> Iterator[Part]:
    bias = c.flag("attention_bias", True)
    yield embedding("gpt_neox.embed_in", d.vocab, d.hidden)
    for i in range(d.layers):
        at = f"gpt_neox.layers.{i}"
        yield from norms(at, ("input_layernorm", "post_attention_layernorm"), d.hidden, bias=True)
        yield linear(f"{at}.attention.query_key_value", d.hidden, 3 * d.hidden, bias=bias)
        yield linear(f"{at}.attention.dense", d.hidden, d.hidden, bias=bias)
        yield from plain_mlp(f"{at}.mlp", WIDE, d.hidden, d.intermediate, bias=True)
    yield from norm("gpt_neox.final_layer_norm", d.hidden, bias=True)
    yield linear("lm_head", d.hidden, d.vocab)


@family(
    "opt",
    "OPTForCausalLM",
    tied=True,
    intermediate="ffn_dim",
    kv_heads=_all_heads,
    defaults={
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": None,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
    },
)
def opt(d: Dimensions, c: Config) -> Iterator[Part]:
    """Its learned positions begin at 2; a narrower embedding is projected in and out."""
    bias, affine = c.flag("enable_bias"), c.flag("layer_norm_elementwise_affine")
    width = c.number("word_embed_proj_dim") or d.hidden
    yield embedding("model.decoder.embed_tokens", d.vocab, width)
    yield embedding("model.decoder.embed_positions", (d.positions or 2048) + 2, d.hidden)
    if width != d.hidden:
        yield linear("model.decoder.project_out", d.hidden, width)
        yield linear("model.decoder.project_in", width, d.hidden)
    if affine and c.flag("do_layer_norm_before") and not c.flag("_remove_final_layer_norm"):
        yield from norm("model.decoder.final_layer_norm", d.hidden, bias=True)
    for i in range(d.layers):
        at = f"model.decoder.layers.{i}"
        yield from split_attention(f"{at}.self_attn", d, bias=bias, output="out_proj", order="kvq")
        if affine:
            yield from norm(f"{at}.self_attn_layer_norm", d.hidden, bias=True)
        yield from plain_mlp(at, ("fc1", "fc2"), d.hidden, d.intermediate, bias=bias)
        if affine:
            yield from norm(f"{at}.final_layer_norm", d.hidden, bias=True)
    yield linear("lm_head", width, d.vocab)


@family("bloom", "BloomForCausalLM", tied=True, intermediate="n_inner", widening=4)
def bloom(d: Dimensions, c: Config) -> Iterator[Part]:
    yield embedding("transformer.word_embeddings", d.vocab, d.hidden)
    yield from norm("transformer.word_embeddings_layernorm", d.hidden, bias=True)
    for i in range(d.layers):
        at = f"transformer.h.{i}"
        yield from norm(f"{at}.input_layernorm", d.hidden, bias=True)
        yield linear(f"{at}.self_attention.query_key_value", d.hidden, 3 * d.hidden, bias=True)
        yield linear(f"{at}.self_attention.dense", d.hidden, d.hidden, bias=True)
        yield from norm(f"{at}.post_attention_layernorm", d.hidden, bias=True)
        yield from plain_mlp(f"{at}.mlp", WIDE, d.hidden, 4 * d.hidden, bias=True)
    yield from norm("transformer.ln_f", d.hidden, bias=True)
    yield linear("lm_head", d.hidden, d.vocab)


@family(
    "falcon",
    "FalconForCausalLM",
    tied=True,
    intermediate="ffn_hidden_size",
    widening=4,
    kv_heads=_falcon_kv_heads,
    defaults={
        "new_decoder_architecture": False,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "num_ln_in_parallel_attn": None,
    },
)
def falcon(d: Dimensions, c: Config) -> Iterator[Part]:
    """Three layouts of the fused projection: grouped (40B), one key-value head (7B), one a head (RW)."""
    bias = c.flag("bias")
    yield embedding("transformer.word_embeddings", d.vocab, d.hidden)
    for i in range(d.layers):
        at = f"transformer.h.{i}"
        yield linear(f"{at}.self_attention.query_key_value", d.hidden, d.hidden + 2 * d.kv, bias=bias)
        yield linear(f"{at}.self_attention.dense", d.hidden, d.hidden, bias=bias)
        yield from plain_mlp(f"{at}.mlp", WIDE, d.hidden, d.intermediate, bias=bias)
        yield from norms(at, _falcon_norms(c), d.hidden, bias=True)
    yield from norm("transformer.ln_f", d.hidden, bias=True)
    yield linear("lm_head", d.hidden, d.vocab)


def _falcon_norms(c: Config) -> tuple[str, ...]:
    in_parallel = c.get("num_ln_in_parallel_attn")
    if in_parallel is None and c.flag("new_decoder_architecture"):
        in_parallel = 2
    if not c.flag("parallel_attn"):
        return ("post_attention_layernorm", "input_layernorm")
    return ("ln_attn", "ln_mlp") if in_parallel == 2 else ("input_layernorm",)
