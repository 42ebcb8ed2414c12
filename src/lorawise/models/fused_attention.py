"""The forward of plain causal attention by torch's fused CPU kernel, document by document.

    out = softmax(s·QKᵀ)·V      L = logΣexp(s·QKᵀ)

On two cores three to four times as fast as products and passes over blocks, from 48 to 1,024 tokens (bf16). The kernel
reads strided views and knows key heads that several query heads share, so nothing is copied on the way in. It has no
window, softcap or sinks, wants values as wide as keys, and answers a row whose scores are all NaN as one with no key to
look at: zeros. Here such a row is NaN, as everywhere else, so that a run that diverged is seen.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorawise.models.kernels import kernel_device


def has_fused_forward(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel serves these states: on a CPU, value heads as wide as query heads."""
    return kernel_device(query) == query.device.type == "cpu" and query.shape[-1] == value.shape[-1]


def fused_forward(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float, *, out: Tensor, norm: Tensor
) -> None:
    """Fill out (n, T, H, d) and norm (n, T, H) of query (n, H, T, d), key and value (n, K, T, d)."""
    start = 0
    for length in lengths:
        here = slice(start, start := start + length)
        part, part_norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[:, :, here], key[:, :, here], value[:, :, here], 0.0, True, scale=scale
        )
        out[:, here] = part.transpose(1, 2)
        norm[:, here] = part_norm.transpose(1, 2)
    silent = norm == 0  # what the kernel says of a row of NaN, and almost never of another
    if silent.any():
        group = query.shape[1] // key.shape[1]
        sick_keys = key.isnan().any(-1).any(-1).repeat_interleave(group, 1)  # (n, H)
        silent &= query.transpose(1, 2).isnan().any(-1) | sick_keys.unsqueeze(1)
        out.masked_fill_(silent.unsqueeze(-1), torch.nan)
        norm.masked_fill_(silent, torch.nan)
