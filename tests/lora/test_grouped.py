"""The product over sorted experts equals each expert's dense weight W + s·B·A, values and gradients, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorawise.lora.grouped import grouped_lora_linear

IN, OUT, R = 5, 7, 3


def _dense(x: Tensor, counts: list[int], W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, s: float) -> Tensor:
    parts = x.split(counts)
    dense = W + s * B @ A
    return torch.cat([rows @ dense[e].mT + (0 if bias is None else bias[e]) for e, rows in enumerate(parts)])


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any),
    s=st.sampled_from([0.25, 1.0, 3.0]),
    transposed=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients_equal_the_dense_experts(
    counts: list[int], s: float, transposed: bool, biased: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    E = len(counts)
    W = random(E, IN, OUT).mT if transposed else random(E, OUT, IN)
    bias = random(E, OUT) if biased else None
    leaves = [t.requires_grad_() for t in (random(sum(counts), IN), random(E, R, IN), random(E, OUT, R))]
    x, A, B = leaves
    ours = grouped_lora_linear(x, counts, W, bias, A, B, s)
    theirs = _dense(x, counts, W, bias, A, B, s)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    dy = random(*ours.shape)
    for mine, reference in zip(
        torch.autograd.grad(ours, leaves, dy), torch.autograd.grad(theirs, leaves, dy), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-11)


def test_an_expert_that_no_row_reached_gets_a_zero_gradient() -> None:
    A, B = torch.randn(3, R, IN, requires_grad=True), torch.randn(3, OUT, R, requires_grad=True)
    y = grouped_lora_linear(torch.randn(4, IN), [3, 0, 1], torch.randn(3, OUT, IN), None, A, B, 2.0)
    y.sum().backward()
    assert A.grad is not None
    assert B.grad is not None
    assert not A.grad[1].any()
    assert not B.grad[1].any()
    assert all(A.grad[e].any() and B.grad[e].any() for e in (0, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_come_back_in_the_masters_dtype_and_no_dense_delta_is_kept(dtype: torch.dtype) -> None:
    A, B = torch.randn(2, R, IN, requires_grad=True), torch.randn(2, OUT, R, requires_grad=True)
    W = torch.randn(2, OUT, IN, dtype=dtype)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        y = grouped_lora_linear(torch.randn(6, IN, dtype=dtype, requires_grad=True), [2, 4], W, None, A, B, 1.0)
    y.sum().backward()
    assert y.dtype == dtype
    assert A.grad is not None
    assert A.grad.dtype == torch.float32
    new = [t for t in kept if t.data_ptr() != W.data_ptr()]
    assert sum(t.numel() for t in new) == 6 * IN + 6 * R + 2 * R * (IN + OUT)
