"""Attention in blocks equals attention written out, forward and backward, in every dtype and with every rule."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorawise.models import causal_blocks
from lorawise.models.causal_blocks import Rule, causal_attention

lengths_of_documents = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def written_out(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], rule: Rule, sinks: Tensor | None) -> Tensor:
    """(n, T, H, v) with every score of every document there at once."""
    group = q.shape[1] // k.shape[1]
    documents = []
    for a, b, c in zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True):
        scores = a @ b.repeat_interleave(group, 1).mT * rule.scale
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        i, j = torch.arange(a.shape[2])[:, None], torch.arange(a.shape[2])
        hidden = (j > i) if rule.window is None else (j > i) | (j <= i - rule.window)
        scores = scores.masked_fill(hidden, -torch.inf)
        if sinks is not None:
            scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
        documents.append(scores.softmax(-1)[..., : a.shape[2]] @ c.repeat_interleave(group, 1))
    return torch.cat(documents, 2).transpose(1, 2)


def random_states(
    n: int, heads: int, key_heads: int, tokens: int, *, d: int = 8, width: int = 8, seed: int = 0
) -> list[Tensor]:
    """Query, key, value laid out (n, T, heads, d) and seen as (n, heads, T, d), as projections give them."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(n, tokens, heads, d), (n, tokens, key_heads, d), (n, tokens, key_heads, width)]
    return [torch.randn(s, generator=draw, dtype=torch.float64).transpose(1, 2).requires_grad_() for s in shapes]


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths_of_documents,
    heads=st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    n=st.integers(1, 3),
    window=st.sampled_from([None, 1, 3, 20]),
    softcap=st.sampled_from([None, 2.0]),
    with_sinks=st.booleans(),
    block=st.sampled_from([1, 7, 128]),
    width=st.sampled_from([8, 5]),
)
def test_blocks_equal_attention_written_out(
    lengths: list[int],
    heads: tuple[int, int],
    n: int,
    window: int | None,
    softcap: float | None,
    with_sinks: bool,
    block: int,
    width: int,
) -> None:
    states = random_states(n, *heads, sum(lengths), width=width)
    rule = Rule(scale=0.4, window=window, softcap=softcap)
    sinks = torch.linspace(-1, 2, heads[0], dtype=torch.float64) if with_sinks else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_blocks, "QUERY_BLOCK", block)
        ours = causal_attention(*states, lengths, rule, sinks)
        upstream = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad(ours, states, upstream)
    expected = written_out(*states, lengths, rule, sinks)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, states, upstream), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.012), (torch.float16, 0.0015)])
@pytest.mark.parametrize(
    "rule",
    [Rule(scale=0.125), Rule(scale=0.09), Rule(scale=0.125, window=40), Rule(scale=0.125, softcap=20.0)],
)
def test_sixteen_bits_stay_within_their_rounding_even_where_scores_are_large(
    dtype: torch.dtype, tolerance: float, rule: Rule
) -> None:
    lengths = [150, 3, 70, 70]
    states = random_states(1, 6, 2, 293, d=64, width=64)
    exact = [(2.5 * x.detach()).to(dtype).double().requires_grad_() for x in states]
    rounded = [x.detach().to(dtype).requires_grad_() for x in exact]
    expected, ours = written_out(*exact, lengths, rule, None), causal_attention(*rounded, lengths, rule)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = (ours, *torch.autograd.grad(ours, rounded, upstream))
    wanted = (expected, *torch.autograd.grad(expected, exact, upstream.double()))
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() / b.norm() < tolerance


def test_nan_in_one_slot_leaves_the_others_bits() -> None:
    lengths = [5, 9, 5]
    states = [x.detach().float() for x in random_states(3, 6, 2, 19)]
    sick = [x.clone() for x in states]
    sick[1][1] = torch.nan
    healthy = [0, 2]
    results = []
    for batch in (states, sick):
        leaves = [x.requires_grad_() for x in batch]
        out = causal_attention(*leaves, lengths, Rule(scale=0.4))
        results.append((out, *torch.autograd.grad(out.sum(), leaves)))
    for well, beside in zip(*results, strict=True):
        assert torch.equal(well[healthy], beside[healthy])
        assert beside[1].isnan().any()


def test_documents_of_equal_length_share_a_product_wherever_they_lie() -> None:
    batches = list(causal_blocks._batches((5, 5, 7, 5, 7, 7), n=1, key_heads=2, heads=4))
    assert [(b.length, b.runs) for b in batches] == [(5, ((0, 2), (17, 1))), (7, ((10, 1), (22, 2)))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_fused_forward_gives_what_the_blocks_give(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, rule = [150, 3, 70, 1], Rule(scale=96**-0.5)
    states = [x.detach().to(dtype).requires_grad_() for x in random_states(2, 6, 2, 224, d=96, width=96)]
    results = []
    for fused in (True, False):
        monkeypatch.setattr(causal_blocks, "has_fused_forward", lambda *_, fused=fused: fused)
        out = causal_attention(*states, lengths, rule)
        results.append((out, *torch.autograd.grad(out.square().sum(), states)))
    for a, b in zip(*results, strict=True):
        assert (a.double() - b.double()).norm() / b.double().norm() < 16 * torch.finfo(dtype).eps


def test_a_query_that_is_nan_is_answered_with_nan() -> None:
    states = [x.detach() for x in random_states(1, 6, 2, 8)]
    states[0][0, 2, 3] = torch.nan
    out = causal_attention(*states, [5, 3], Rule(scale=0.4))
    assert out[0, 3, 2].isnan().all()
    assert out.isnan().sum() == 8
