"""The loss in chunks equals the loss of all logits at once, for the hidden states and for what trains in the head."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lorawise.models.loss import CHUNK_BYTES, chunk_of, chunked_loss


class TinyHead(nn.Module):
    """A head with everything models do to logits: bias, scale, cap; for n slots a bank with a matrix each."""

    def __init__(self, n: int, width: int, vocabulary: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, width, vocabulary, dtype=dtype))
        self.bias = nn.Parameter(torch.randn(n, 1, vocabulary, dtype=dtype))
        self.sizes: list[int] = []

    def trained_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def forward(self, hidden: Tensor) -> Tensor:
        self.sizes.append(hidden.shape[1])
        return 5 * torch.tanh((torch.bmm(hidden, self.weight) + self.bias) / 5)


def plain(hidden: Tensor, positions: Tensor, targets: Tensor, head: TinyHead) -> Tensor:
    """(n, P) losses from all logits."""
    logits = head(hidden[:, positions])
    return F.cross_entropy(logits.flatten(0, 1), targets.repeat(len(hidden)), reduction="none").view(len(hidden), -1)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 3),
    tokens=st.integers(1, 20),
    vocabulary=st.integers(2, 30),
    chunk=st.integers(1, 25),
    seed=st.integers(0, 999),
    trains_head=st.booleans(),
)
def test_chunks_equal_all_logits_at_once(
    n: int, tokens: int, vocabulary: int, chunk: int, seed: int, trains_head: bool
) -> None:
    torch.manual_seed(seed)
    head = TinyHead(n, 6, vocabulary, torch.float64).requires_grad_(trains_head)
    hidden = torch.randn(n, tokens, 6, dtype=torch.float64, requires_grad=True)
    positions = torch.arange(tokens)[torch.rand(tokens) < 0.5]
    targets = torch.randint(vocabulary, positions.shape)
    upstream = torch.rand(n, dtype=torch.float64)
    inputs = [hidden, *head.trained_parameters()]
    sums, each = chunked_loss(hidden, positions, targets, head, chunk)
    expected = plain(hidden, positions, targets, head)
    torch.testing.assert_close(sums, expected.sum(1), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(each, expected, rtol=1e-12, atol=1e-13)
    got = torch.autograd.grad(sums @ upstream, inputs)
    wanted = torch.autograd.grad(expected.sum(1) @ upstream, inputs)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert max(head.sizes[:-1], default=0) <= chunk
    with torch.no_grad():
        torch.testing.assert_close(chunked_loss(hidden, positions, targets, head, chunk)[0], sums)


def test_only_the_head_may_train() -> None:
    head = TinyHead(1, 6, 9, torch.float64)
    hidden, positions, targets = torch.randn(1, 5, 6, dtype=torch.float64), torch.tensor([0, 3]), torch.tensor([1, 8])
    got = torch.autograd.grad(chunked_loss(hidden, positions, targets, head, 1)[0].sum(), head.weight)
    wanted = torch.autograd.grad(plain(hidden, positions, targets, head).sum(), head.weight)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_sixteen_bit_logits_are_reduced_in_fp32(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    rounded = TinyHead(1, 32, 5000, dtype).requires_grad_(False)
    exact = TinyHead(1, 32, 5000, torch.float64).requires_grad_(False)
    exact.load_state_dict(rounded.state_dict())
    hidden = torch.randn(1, 40, 32).to(dtype).requires_grad_()
    positions, targets = torch.arange(40), torch.randint(5000, (40,))
    sums, _ = chunked_loss(hidden, positions, targets, rounded, 16)
    wide = hidden.detach().double().requires_grad_()
    expected = plain(wide, positions, targets, exact).sum()
    assert sums.dtype == torch.float32
    assert abs(float(sums.detach() / expected.detach()) - 1) < 2e-4
    (got,), (wanted,) = torch.autograd.grad(sums.sum() * 1e-3, hidden), torch.autograd.grad(expected * 1e-3, wide)
    assert got.dtype == dtype
    assert (got.double() - wanted).norm() / wanted.norm() < tolerance


def test_a_target_of_vanishing_probability_has_a_finite_loss() -> None:
    class Given:
        def trained_parameters(self) -> list[nn.Parameter]:
            return []

        def __call__(self, hidden: Tensor) -> Tensor:
            return hidden

    logits = torch.tensor([[[0.0, 500.0, -500.0]]], requires_grad=True)
    sums, _ = chunked_loss(logits, torch.tensor([0]), torch.tensor([2]), Given(), 4)
    assert sums.item() == 1000.0
    assert torch.equal(torch.autograd.grad(sums.sum(), logits)[0], torch.tensor([[[0.0, 1.0, -1.0]]]))


def test_nan_in_one_slot_leaves_the_others_bits() -> None:
    torch.manual_seed(0)
    head = TinyHead(3, 6, 9, torch.float32)
    positions, targets = torch.arange(7), torch.randint(9, (7,))
    hidden = torch.randn(3, 7, 6)
    results = []
    for sick in (False, True):
        x = hidden.clone()
        if sick:
            x[1, 2] = torch.nan
        x.requires_grad_()
        sums, each = chunked_loss(x, positions, targets, head, 3)
        upstream = torch.where(sums.isnan(), torch.nan, torch.ones(3))
        results.append((sums, each, *torch.autograd.grad(sums, [x, head.weight], upstream)))
    for well, beside in zip(*results, strict=True):
        assert torch.equal(well[[0, 2]], beside[[0, 2]])
        assert beside[1].isnan().any()


def test_a_chunk_keeps_to_its_memory_and_never_shrinks_to_nothing() -> None:
    positions = chunk_of(49_152, 1, 2)
    assert positions * 49_152 * (2 + 2) <= CHUNK_BYTES < (positions + 1) * 49_152 * 4
    assert chunk_of(49_152, 2, 2) == positions // 2
    assert (chunk_of(10**9, 1, 2), chunk_of(10**9, 3, 2), chunk_of(10**9, 100, 2)) == (64, 22, 1)
