"""Every fast path equals the plain one, whatever the shapes, masks and packings.

Fast: packed rows, banks of slots, low rank first, the loss in chunks, layers computed again, 16 and 4 bits. Plain: one
unpadded row at a time, eager attention, full logits, s·B·A·x written out, torch's own autograd, all in fp64 (but for
transformers' norms, which round to fp32). Equal means within what the fast path's type can hold.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quantised_layers import packed_linear
from tests.tiny import tiny_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorawise.data.batches import MicroBatch
from lorawise.lora import Adapters, LoraConfig, inject
from lorawise.lora.injection import eject
from lorawise.lora.packed import PackedLinear
from lorawise.lora.wrapping import base_modules
from lorawise.models.batch import to_model_batch
from lorawise.models.forward import causal_loss
from lorawise.models.packing import PACKED, packing_support
from lorawise.training.memory import keep_activations

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "nf4": torch.float32, "int8": torch.float32}
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.06}  # of the gradient's norm; bf16 has 8 bits of mantissa
FAMILIES = ("llama", "qwen3", "mistral", "gemma2", "gpt_neox")
OWN = {"mistral": {"sliding_window": 6}, "gemma2": {"sliding_window": 5}}


class Written(nn.Module):
    """W·x + s·B·A·x, as the guide writes it."""

    def __init__(self, base: nn.Module, weight: Tensor, A: Tensor, B: Tensor, s: float) -> None:
        super().__init__()
        self.weight, self.bias, self.s = weight, getattr(base, "bias", None), s
        self.A, self.B = (nn.Parameter(value.detach().double().clone()) for value in (A, B))

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.double()
        return F.linear(x, self.weight, bias) + self.s * (x @ self.A.mT) @ self.B.mT


@lru_cache(maxsize=8)
def base_model(family: str, form: str) -> PreTrainedModel:
    model = tiny_model(family, dtype=TYPES[form], **OWN.get(family, {}))
    if form in ("nf4", "int8"):
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and module is not model.get_output_embeddings():
                packed, _ = packed_linear(
                    "nf4-double" if form == "nf4" else form, *module.weight.shape, seed=len(name), scale=0.1
                )
                place, _, key = name.rpartition(".")
                packed.bias = module.bias
                setattr(model.get_submodule(place), key, packed)
    assert packing_support(model) == PACKED
    return model


def plain_model(fast: PreTrainedModel, adapters: Adapters, slot: int, family: str) -> PreTrainedModel:
    """The same weights and one slot's adapter, written out in fp64."""
    plain = tiny_model(family, dtype=torch.float64, attn_implementation="eager", **OWN.get(family, {}))
    modules = dict(base_modules(fast))
    for name, module in list(plain.named_modules()):
        for key, parameter in module.named_parameters(recurse=False):
            own = modules[name]
            whole = own.unpack() if isinstance(own, PackedLinear) and key == "weight" else own.get_parameter(key)
            parameter.data.copy_(whole)
    plain.requires_grad_(False)
    for name, bank in adapters.layers.items():
        pair, (place, _, key) = bank.slot(slot), name.rpartition(".")
        if pair is not None:
            base = plain.get_submodule(name)
            written = Written(base, base.weight.detach(), *pair, bank.scaling[slot])
            setattr(plain.get_submodule(place), key, written)
    return plain


def plain_loss(model: PreTrainedModel, ids: Sequence[Tensor], trained: Sequence[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for row, marks in zip(ids, trained, strict=True):
        if marks.any():
            logits = model(input_ids=row[None]).logits[0, :-1].double()
            total = total + F.cross_entropy(logits[marks[1:]], row[1:][marks[1:]], reduction="sum")
    return total


def micro_batch(ids: Sequence[Tensor], trained: Sequence[Tensor], layout: str) -> MicroBatch:
    lengths = tuple(len(row) for row in ids)
    if layout == "packed":
        arrays = [torch.cat(list(each))[None].numpy() for each in (ids, trained)]
        places = np.concatenate([np.arange(length) for length in lengths])[None]
    else:
        arrays = [nn.utils.rnn.pad_sequence(list(each), batch_first=True).numpy() for each in (ids, trained)]
        places = np.tile(np.arange(max(lengths)), (len(lengths), 1))
    return MicroBatch(
        ids=arrays[0],
        trained=arrays[1],
        position_ids=places,
        lengths=lengths,
        layout=layout,
        rows=tuple(range(len(lengths))),
    )


@pytest.mark.parametrize("form", TYPES)
@settings(max_examples=15, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    lengths=st.lists(st.integers(2, 24), min_size=1, max_size=4),
    layout=st.sampled_from(["packed", "padded"]),
    share=st.sampled_from([0.2, 0.7, 1.0]),
    n=st.integers(1, 3),
    chunk=st.integers(1, 40),
    memory=st.sampled_from(["speed", "balanced", "frugal"]),
    targets=st.sampled_from(["qv", "attention", "all-linear"]),
    seed=st.integers(0, 999),
)
def test_loss_and_gradients(form, family, lengths, layout, share, n, chunk, memory, targets, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 256, (length,), generator=generator) for length in lengths]
    trained = [torch.rand(length, generator=generator) < share for length in lengths]
    for marks in trained:
        marks[0] = False
    trained[0][-1] = True
    model = base_model(family, form)
    configs = [LoraConfig(r=2 + i, scaling=0.5 + i, target_modules=targets, seed=i) for i in range(n)]
    adapters = inject(model, configs)
    try:
        for bank in adapters.layers.values():
            for i, rank in enumerate(bank.ranks):
                bank.lora_B.data[i, :, :rank].normal_(std=0.1, generator=generator)
        keep_activations(model, memory)
        batch = to_model_batch(micro_batch(ids, trained, layout))
        sums = causal_loss(model.train(), batch, n=n, chunk=chunk).sums
        sums.sum().backward()
        for slot in range(n):
            plain = plain_model(model, adapters, slot, family)
            expected = plain_loss(plain, ids, trained)
            expected.backward()
            bound = BOUNDS[TYPES[form]]
            assert abs(sums[slot].item() - expected.item()) <= bound * expected.item()
            found, meant = [], []
            for name, bank in adapters.layers.items():
                written = plain.get_submodule(name)
                rank = bank.ranks[slot]
                found += [bank.lora_A.grad[slot, :rank].flatten(), bank.lora_B.grad[slot, :, :rank].flatten()]
                meant += [written.A.grad.flatten(), written.B.grad.flatten()]
            mine, its = torch.cat(found).double(), torch.cat(meant)
            assert its.norm() > 0
            assert (mine - its).norm() <= bound * its.norm()
    finally:
        model.eval()
        model.activation_checkpointing_disable()
        eject(model)
