"""A model of any size with nothing behind its tensors, and the kernels that CUDA would run on it.

The tensors are fake CPU tensors (a CPU build of torch cannot differentiate fake CUDA ones, and meta tensors get an
attention that holds length × length). What CUDA does otherwise is put in its place for the time of the trace:

    packed rows           lorawise's own choice, `varlen_attn`, as on CUDA (`assume_device`)
    no mask, 16 bits      flash attention, head width up to 256; keys and values of shared heads are not repeated
    a mask, or fp32       memory-efficient attention, the mask made additive in the query's type, padded to 16 bytes
    else                  plain steps (fp32 with shared heads, or heads above 256)

transformers takes fakes for a graph being recorded and would build masks that a real run skips: it is told otherwise.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lorawise.lora.packed import NF4_BLOCK, SCALES_BLOCK, PackedLinear
from lorawise.models.kernels import assume_device
from lorawise.models.quiet import quiet_transformers

FLASH_HEAD = 256
_HALF = (torch.float16, torch.bfloat16)
_ALIGNED = 16  # elements of a mask's row that memory-efficient attention wants it padded to


def fake_mode() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of `config` on fake tensors, frozen, in eval mode; enter a `fake_mode` (and a ledger) around it."""
    with quiet_transformers():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    model.train(False)
    return model


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Inside, what chooses a kernel chooses as on CUDA."""
    with (
        assume_device("cuda"),
        mock.patch.object(F, "scaled_dot_product_attention", attention_on_cuda),
        mock.patch("transformers.utils.import_utils.is_fake_tensor", _never),
        mock.patch.object(torch, "bincount", _spread_evenly),
    ):
        yield


def attention_on_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` with CUDA's choice of kernel; (n, H, T, d)."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    half = query.dtype in _HALF
    if attn_mask is None and half and query.shape[-1] == value.shape[-1] <= FLASH_HEAD:
        return _flash(query, key, value, dropout_p, is_causal, scale)
    if enable_gqa and query.shape[1] != key.shape[1]:
        return _plain_steps(query, key, value, attn_mask, is_causal, scale)
    bias = None if attn_mask is None else _additive(attn_mask, query, key)
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]
    return out


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout: float, causal: bool, scale: float | None) -> Tensor:
    """Heads are padded to a multiple of 8, as torch does before the kernel."""
    width = query.shape[-1]
    short = -width % 8
    if short:
        query, key, value = (F.pad(x, (0, short)) for x in (query, key, value))
    scale = width**-0.5 if scale is None else scale
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout, causal, False, scale=scale
    )[0]
    return out[..., :width] if short else out


def _additive(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        allowed = torch.zeros((), dtype=query.dtype, device=query.device)
        mask = torch.where(mask, allowed, torch.finfo(query.dtype).min)
    short = -key.shape[2] % _ALIGNED
    if short:
        mask = F.pad(mask, (0, short))[..., : key.shape[2]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _plain_steps(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    out: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, mask, 0.0, causal, None, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )[0]
    return out


def _spread_evenly(index: Tensor, *, minlength: int) -> Tensor:
    """How often each of `minlength` experts was chosen: tensors without values cannot say, and rows are held together
    however they are spread."""
    each, rest = divmod(index.numel(), minlength)
    return torch.tensor([each + (i < rest) for i in range(minlength)])


def _never(_: Any) -> bool:
    return False


def flash_backward_workspace(_grad: Tensor, query: Tensor, key: Tensor, *_: Any, heads_at: int, **__: Any) -> int:
    """What flash attention 2 takes inside one backward: fp32 sums of dq, a row product, and dk and dv a query head.

    dq_accum (tokens, H, d rounded to 32 or 64) fp32; softmax_d (H, tokens) fp32; with shared key heads dk and dv are
    first made for every query head (flash-attention 2.7, `mha_bwd`).
    """
    heads, width = query.shape[heads_at], query.shape[-1]
    rows = query.numel() // (heads * width)
    wide = -(-width // 32) * 32 if width <= 128 else -(-width // 64) * 64
    taken = rows * heads * (4 * wide + 4)
    if key.shape[heads_at] != heads:
        taken += 2 * rows * heads * width * query.element_size()
    return taken


def workspaces() -> dict[Any, Callable[..., int]]:
    """By operation, for the ledger."""
    import torch.nn.attention.varlen

    packed = torch.ops.torch_attn._varlen_attn_backward.default
    padded = torch.ops.aten._scaled_dot_product_flash_attention_backward.default
    return {
        packed: partial(flash_backward_workspace, heads_at=1),
        padded: partial(flash_backward_workspace, heads_at=1),
    }


class Nf4Linear(PackedLinear):
    """A 4-bit layer without its values: 4-bit weights and their constants, and what unpacking them takes.

    weight (in·out / 2) uint8; absmax one a block of 64: fp32, or 8 bits with fp32 for each 256 of them (double
    quantisation). lorawise's own product unpacks it once forward and once backward; bitsandbytes' Linear4bit, which the
    stock trainer has, allocates the same.
    """

    def __init__(self, like: nn.Linear, *, double_quant: bool, compute_dtype: torch.dtype) -> None:
        size = like.in_features * like.out_features
        device = like.weight.device
        bits = torch.empty(-(-size // 2), 1, dtype=torch.uint8, device=device)
        super().__init__(like.in_features, like.out_features, bits=bits, bias=like.bias, compute_dtype=compute_dtype)
        blocks = -(-size // NF4_BLOCK)
        constants = [torch.empty(16, device=device)]
        if double_quant:
            constants += [
                torch.empty(blocks, dtype=torch.uint8, device=device),
                torch.empty(-(-blocks // SCALES_BLOCK), device=device),
                torch.empty(256, device=device),
                torch.empty((), device=device),
            ]
        else:
            constants += [torch.empty(blocks, device=device)]
        self.constants = constants
        self.double_quant = double_quant

    def _unpacked(self) -> Tensor:
        """The whole matrix in the compute type; with double quantisation its absmax is made in fp32 first."""
        absmax = torch.empty(-(-self.in_features * self.out_features // NF4_BLOCK)) if self.double_quant else None
        weight = torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype)
        del absmax
        return weight


def quantise(model: nn.Module, *, double_quant: bool, compute_dtype: torch.dtype) -> None:
    """Every linear layer but the head becomes 4-bit, as transformers does with a BitsAndBytesConfig."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                setattr(parent, name, Nf4Linear(child, double_quant=double_quant, compute_dtype=compute_dtype))
