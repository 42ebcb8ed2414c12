"""Attention document by document, as an implementation that transformers knows by name.

A packed row carries its documents in `cu_seq_lens_q`, transformers' own keyword for packed rows: (D + 1,) offsets into
the n·T tokens of all rows, one after the other. The mask beside it is `NO_MASK`, one True that stands for "nothing but
the documents": being 4-D, transformers hands it on untouched, and a model that drops the offsets on the way is found
out. Any other call (padded rows, generation) gets transformers' own attention and masks, so a model can keep this
implementation; and because the offsets travel with the layer's arguments, a layer run again in backward sees them too.

A keyword that is set and not implemented is refused by name: swallowing one is silently wrong.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lorawise.base.errors import ModelError
from lorawise.models.causal_blocks import Rule, causal_attention
from lorawise.models.kernels import kernel_device

DOCUMENTS = "lorawise_documents"
NO_MASK = (1, 1, 1, 1)
_CARRIED = frozenset({"position_ids", "position_embeddings", "cu_seq_lens_k", "max_length_k"})
_VARLEN_DTYPES = (torch.float16, torch.bfloat16)
_VARLEN_HEAD_DIM = 256


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query (n, H, T, d), key and value (n, K, T, d) → (n, T, H, d); the signature is transformers' contract."""
    rule = Rule(scale=query.shape[-1] ** -0.5 if scaling is None else scaling, window=sliding_window, softcap=softcap)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if cu_seq_lens_q is None:
        if attention_mask is not None and attention_mask.shape == NO_MASK and query.shape[2] > 1:
            raise _refused(module, "does not hand cu_seq_lens_q on to its attention")
        if rule.softcap is None and s_aux is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
            )
        return _capped_rows(module, query, key, value, attention_mask, rule, dropout, causal, s_aux), None
    unknown = sorted(name for name, it in others.items() if name not in _CARRIED and it is not None and it is not False)
    if unknown:
        raise _refused(module, f"passes {', '.join(unknown)} to its attention, which is not implemented here")
    if attention_mask is not None and attention_mask.shape != NO_MASK:
        raise _refused(module, f"makes a mask of its own, {tuple(attention_mask.shape)}, for packed rows")
    if dropout:
        raise _refused(module, f"has attention dropout on ({dropout:g}); packed rows know none")
    if not causal:
        raise _refused(module, "attends in both directions")
    if kernel_device(query) == "cuda" and _fits_varlen(query, value, rule, s_aux):
        assert max_length_q is not None
        return _varlen(query, key, value, cu_seq_lens_q, max_length_q, rule), None
    lengths = _lengths_of_a_row(cu_seq_lens_q, query.shape[0], query.shape[2])
    return causal_attention(query, key, value, lengths, rule, s_aux), None


def use_document_attention(model: PreTrainedModel) -> None:
    """Set the implementation on the model and its parts; rows that are not packed go on as before."""
    if model.config._attn_implementation != DOCUMENTS:
        model.set_attn_implementation(DOCUMENTS)


def document_call(position_ids: Tensor, lengths: Sequence[int], *, n: int) -> dict[str, Any]:
    """The keywords that tell a decoder where the documents of one row (1, T) start, for n rows of the same."""
    ends = (0, *accumulate(tuple(lengths) * n))
    offsets = torch.tensor(ends, dtype=torch.int32, device=position_ids.device)
    return {
        "position_ids": position_ids.repeat(n, 1),
        "attention_mask": torch.ones(NO_MASK, dtype=torch.bool, device=position_ids.device),
        "cu_seq_lens_q": offsets,
        "cu_seq_lens_k": offsets,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def _lengths_of_a_row(offsets: Tensor, n: int, tokens: int) -> tuple[int, ...]:
    """The documents of the first of n rows, which all hold the same."""
    marks = offsets.tolist()
    documents = (len(marks) - 1) // n
    if len(marks) != n * documents + 1 or marks[documents] != tokens or marks[-1] != n * tokens:
        raise ModelError(
            f"cu_seq_lens_q ends at {marks[-1]} for {n} rows of {tokens} tokens",
            expected="the same documents in every row, covering it",
        )
    return tuple(stop - start for start, stop in pairwise(marks[: documents + 1]))


def _fits_varlen(query: Tensor, value: Tensor, rule: Rule, sinks: Tensor | None) -> bool:
    return (
        query.dtype in _VARLEN_DTYPES
        and query.shape[-1] == value.shape[-1] <= _VARLEN_HEAD_DIM
        and rule.softcap is None
        and sinks is None
    )


def _varlen(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int, rule: Rule) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rows, _, tokens, _ = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    offsets = offsets.to(torch.int32)
    window = (-1 if rule.window is None else rule.window - 1, 0)
    out = varlen_attn(
        q, k, v, offsets, offsets, longest, longest, scale=rule.scale, window_size=window, enable_gqa=True
    )
    assert isinstance(out, Tensor)
    return out.view(rows, tokens, *out.shape[1:])


def _capped_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rule: Rule,
    dropout: float,
    causal: bool,
    sinks: Tensor | None,
) -> Tensor:
    """Softcap and sinks, which transformers' scaled dot product attention lacks, in plain steps under its mask."""
    if dropout:
        raise _refused(module, f"has attention dropout on ({dropout:g}) beside a softcap or sinks")
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query.float() @ key.float().mT * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if mask is None and causal and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return (weights.to(value.dtype) @ value).transpose(1, 2)


def _refused(module: nn.Module, what: str) -> ModelError:
    return ModelError(
        f"{type(module).__name__} {what}",
        expected="causal attention, with a sliding window, a softcap or sinks at most",
        cure="train one document a row: train.packing: false",
    )


AttentionInterface.register(DOCUMENTS, document_attention)
AttentionMaskInterface.register(DOCUMENTS, sdpa_mask)
