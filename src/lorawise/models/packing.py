"""Whether a model's packed rows equal the same rows alone (law 8), found out by trying.

The trial is a tiny fp32 decoder of the same class and config, shrunk: every kind of attention layer, windows shorter
than the documents. There equal means 1e-4, and windows, softcaps and positions all show, which no trial on a
16-bit model of full size could do. A config that cannot be shrunk has the model itself tried, in two ways that rounding
cannot hide: exchanging the documents beside it must not move one bit of a document's hidden states, and these must lie
near those of the document alone.
"""

import json
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lorawise.base.errors import ModelError
from lorawise.models.attention import DOCUMENTS, document_call, use_document_attention
from lorawise.models.head import decoder_of
from lorawise.models.quiet import quiet_transformers

PACKED = "packed"
_LENGTHS = (7, 5, 9)
_EXACT, _NEAR = 1e-4, 0.05
_WINDOW = 4
_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "query_pre_attn_scalar": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "vocab_size_per_layer_input": 64,
}
_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
_FAILURES = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, AssertionError, ArithmeticError)


def packing_support(model: PreTrainedModel) -> str:
    """`"packed"`, the model being set up for packed rows from then on, or the reason why rows must be trained alone.

    Ask before adapters go in: a bank of several slots does not take the trial's single rows.
    """
    decoder = decoder_of(model)
    assert isinstance(decoder, PreTrainedModel)
    decoder_class: Any = type(decoder)
    with quiet_transformers():
        reason = _supported_by_class(decoder_class, json.dumps(decoder.config.to_dict(), sort_keys=True, default=str))
        if reason is None:
            reason = _try_itself(decoder)
        if reason == PACKED:
            use_document_attention(model)
    return reason


@lru_cache(maxsize=256)
def _supported_by_class(decoder_class: type[Any], config: str) -> str | None:
    """`"packed"` or a reason; None where no tiny model of this config can be built."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            tiny = decoder_class(_shrunk(decoder_class.config_class, json.loads(config))).to(torch.float32)
            tiny.train(False)
            for parameter in tiny.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.3)
            documents = _documents(_SMALL["vocab_size"])
            alone = [_states(tiny, document) for document in documents]
        except _FAILURES:
            return None
        packed = _packed_states(tiny, documents)
    if isinstance(packed, str):
        return packed
    return _verdict(tiny, torch.cat(alone), packed, _EXACT)


def _try_itself(decoder: PreTrainedModel) -> str:
    *others, mine = (ids.to(decoder.device) for ids in _documents(min(decoder.config.vocab_size, 1000)))
    before = decoder.config._attn_implementation
    with torch.no_grad():
        alone = _states(decoder, mine)
        packed = _packed_states(decoder, (*others, mine))
        beside_others = _packed_states(decoder, (*(document.flip(0) for document in others), mine))
    decoder.set_attn_implementation(before)
    if isinstance(packed, str) or isinstance(beside_others, str):
        return str(packed)
    here = slice(-len(mine), None)
    if not torch.equal(packed[here], beside_others[here]):
        return f"{type(decoder).__name__} lets packed documents see each other"
    return _verdict(decoder, alone, packed[here], _EXACT if packed.dtype == torch.float32 else _NEAR)


def _verdict(decoder: nn.Module, alone: Tensor, packed: Tensor, tolerance: float) -> str:
    away = float((packed - alone).float().norm() / alone.float().norm())
    if math.isfinite(away) and away <= tolerance:
        return PACKED
    return f"packed rows differ from the same rows alone in {type(decoder).__name__} (by {away:.0e} of their size)"


def _states(decoder: PreTrainedModel, document: Tensor) -> Tensor:
    """(t, width) of a document alone, under transformers' own attention."""
    states: Tensor = decoder(input_ids=document[None], use_cache=False).last_hidden_state
    return states[0]


def _packed_states(decoder: PreTrainedModel, documents: tuple[Tensor, ...]) -> Tensor | str:
    """(Σ t, width) of the documents in one row, or why there are none."""
    device = documents[0].device
    lengths = tuple(len(document) for document in documents)
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
    use_document_attention(decoder)
    if decoder.config._attn_implementation != DOCUMENTS:
        return f"{type(decoder).__name__} does not take its attention from transformers' AttentionInterface"
    try:
        states: Tensor = decoder(
            input_ids=torch.cat(documents)[None], use_cache=False, **document_call(positions, lengths, n=1)
        ).last_hidden_state
    except ModelError as problem:
        return problem.found
    except _FAILURES as problem:
        return f"{type(decoder).__name__} does not take packed rows ({type(problem).__name__}: {problem})"
    return states[0]


def _documents(vocabulary: int) -> tuple[Tensor, ...]:
    tokens = torch.arange(sum(_LENGTHS)).mul_(37).remainder_(vocabulary - 8).add_(8)
    return torch.split(tokens, list(_LENGTHS))


def _shrunk(config_class: type[PreTrainedConfig], settings: dict[str, Any]) -> PreTrainedConfig:
    """The same config at a few thousand parameters; what it says of attention stays, with windows of four tokens."""
    kinds = list(dict.fromkeys(settings.get("layer_types") or ()))
    layers = 2 * max(1, len(kinds))
    wanted = _SMALL | {"num_hidden_layers": layers, "num_key_value_heads": _key_heads(config_class, settings)}
    names = {name: config_class.attribute_map.get(name, name) for name in wanted}
    small = {names[name]: value for name, value in wanted.items() if settings.get(names[name]) is not None}
    settings = settings | small
    if kinds:
        settings["layer_types"] = kinds * 2
    for window in ("sliding_window", "attention_chunk_size", "window_size"):
        if settings.get(window) is not None:
            settings[window] = _WINDOW
    for token in _SPECIAL_TOKENS:
        settings[token] = None
    for absent in ("quantization_config", "dtype", "_attn_implementation", "num_labels", "id2label", "label2id"):
        settings.pop(absent, None)
    return config_class.from_dict(settings)


def _key_heads(config_class: type[PreTrainedConfig], settings: dict[str, Any]) -> int:
    """Of four query heads: as many where the config has one each, else two, or one."""
    own = config_class.attribute_map
    heads, key_heads = (settings.get(own.get(name, name)) for name in ("num_attention_heads", "num_key_value_heads"))
    return 4 if key_heads in (heads, None) else min(2, key_heads)
