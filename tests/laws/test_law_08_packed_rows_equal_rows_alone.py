"""Law 8: packed rows equal the same rows alone; no document sees another."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.packed_rows import alone, packed_rows, transformers_loss
from tests.tiny import FAMILIES, tiny_model
from transformers import PreTrainedModel

from lorawise.models.batch import FILL, to_model_batch
from lorawise.models.forward import causal_loss
from lorawise.models.packing import PACKED, packing_support

WINDOWS = {"mistral": {"sliding_window": 5}, "gemma2": {"sliding_window": 5}, "gemma3": {"sliding_window": 5}}
PACKING = tuple(family for family in FAMILIES if family != "falcon")
documents = st.lists(st.integers(1, 24), min_size=1, max_size=6)


def packing_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = tiny_model(family, dtype=dtype, **WINDOWS.get(family, {})).requires_grad_(False)
    assert packing_support(model) == PACKED
    return model


def loss_and_gradient(model: PreTrainedModel, batches: Sequence) -> tuple[torch.Tensor, torch.Tensor]:
    weight = model.get_input_embeddings().weight.requires_grad_()
    losses = [causal_loss(model, to_model_batch(batch), chunk=16).sums.sum() for batch in batches]
    (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), weight)
    weight.requires_grad_(False)
    return torch.stack(losses).sum().detach(), gradient


@pytest.mark.parametrize("family", PACKING)
def test_packed_rows_give_the_loss_and_gradient_that_transformers_gives_each_row_alone(family: str) -> None:
    model = packing_model(family)
    batch = packed_rows([7, 5, 30, 1, 9, 5])
    loss, gradient = loss_and_gradient(model, [batch])
    weight = model.get_input_embeddings().weight.requires_grad_()
    expected = transformers_loss(model, batch)
    (expected_gradient,) = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(loss, expected.detach(), rtol=2e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "gpt2", "opt"])
@settings(max_examples=10, deadline=None)
@given(lengths=documents, seed=st.integers(0, 99))
def test_packed_rows_equal_the_same_rows_alone_for_any_lengths(family: str, lengths: list[int], seed: int) -> None:
    model = packing_model(family, torch.float64)
    batch = packed_rows(lengths, seed=seed)
    together, gradient = loss_and_gradient(model, [batch])
    apart, expected = loss_and_gradient(model, alone(batch))
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_what_fills_a_long_row_up_changes_neither_loss_nor_gradient(family: str) -> None:
    model = packing_model(family, torch.float64)
    batch = packed_rows([40] * 13 + [7])
    filled = to_model_batch(batch)
    assert filled.ids.shape[1] % FILL == 0
    assert filled.filler == -527 % FILL
    assert filled.lengths == batch.lengths
    together, gradient = loss_and_gradient(model, [batch])
    apart, expected = loss_and_gradient(model, alone(batch))
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-11)
    assert causal_loss(model, filled).per_row.shape == (1, 14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_documents_do_not_move_a_bit_of_this_one(dtype: torch.dtype) -> None:
    model = packing_model("llama", dtype)
    first, second = packed_rows([9, 12, 9], seed=1), packed_rows([9, 12, 9], seed=2)
    for name in ("ids", "trained"):
        getattr(second, name)[:, 9:21] = getattr(first, name)[:, 9:21]
    one, other = (causal_loss(model, to_model_batch(batch)).per_row for batch in (first, second))
    assert torch.equal(one[:, 1], other[:, 1])
    assert not torch.equal(one[:, 0], other[:, 0])


def test_every_slot_of_a_bank_computes_the_same_packed_rows() -> None:
    model = packing_model("llama")
    batch = to_model_batch(packed_rows([7, 5, 9]))
    one, three = causal_loss(model, batch), causal_loss(model, batch, n=3)
    assert three.counts.tolist() == [len(batch.targets)] * 3
    torch.testing.assert_close(three.per_row, one.per_row.expand(3, -1), rtol=1e-5, atol=1e-5)
