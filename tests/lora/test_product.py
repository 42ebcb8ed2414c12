"""The hand-written gradient: against finite differences, and against plain autograd."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorawise.lora.dropout import Masks, kept_share
from lorawise.lora.product import add_lora, lora_linear

DROPOUT = {"without dropout": 0.0, "with dropout": 0.4}


def _parts(m: int, dtype: torch.dtype, shape: tuple[int, ...] = (6, 3, 5)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    A = torch.randn(m, 2, shape[-1], generator=generator, dtype=torch.float64)
    B = torch.randn(m, 4, 2, generator=generator, dtype=torch.float64)
    masters = torch.float64 if dtype == torch.float64 else torch.float32
    return x.requires_grad_(), A.to(masters).requires_grad_(), B.to(masters).requires_grad_()


def _layer(dtype: torch.dtype, width: int = 5) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(width, 4, dtype=dtype).requires_grad_(False)


def _masks(m: int, dropout: float) -> Masks | None:
    return Masks(seeds=tuple(range(m)), keep=(kept_share(dropout),) * m) if dropout else None


def _scale(m: int) -> float | torch.Tensor:
    return 1.5 if m == 1 else torch.tensor([1.5, -0.5, 2.0], dtype=torch.float64).view(3, 1, 1)


@pytest.mark.parametrize("dropout", DROPOUT.values(), ids=DROPOUT)
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("path", ["plain", "general"])
def test_gradients_equal_finite_differences(path: str, m: int, dropout: float) -> None:
    layer, masks, s = _layer(torch.float64), _masks(m, dropout), _scale(m)

    def product(x: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        if path == "plain":
            return lora_linear(layer, layer.weight, x, A, B, s, masks)
        return add_lora(layer(x), x, A, B, s, masks)

    assert torch.autograd.gradcheck(product, _parts(m, torch.float64))


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 5), (6, 1, 2, 5)], ids=str)
@pytest.mark.parametrize("m", [1, 3])
def test_inputs_of_any_rank_equal_the_formula(m: int, shape: tuple[int, ...]) -> None:
    x, A, B = _parts(m, torch.float64, shape)
    layer, s = _layer(torch.float64), torch.as_tensor(_scale(m))
    y = lora_linear(layer, layer.weight, x, A, B, _scale(m), None)
    rows = x.reshape(m, -1, 5)
    expected = layer(rows) + s * (rows @ A.mT @ B.mT)
    torch.testing.assert_close(y, expected.view(y.shape))
    assert y.shape == (*shape[:-1], 4)


@pytest.mark.parametrize("m", [1, 3])
def test_rows_that_are_not_contiguous_give_the_same(m: int) -> None:
    x, A, B = _parts(m, torch.float64)
    layer = _layer(torch.float64)
    strided = x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    assert not strided.is_contiguous()
    results = []
    for each in (x, strided):
        y = lora_linear(layer, layer.weight, each, A, B, _scale(m), None)
        results.append((y, *torch.autograd.grad(y.square().sum(), (each, A, B))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_bases_compute_in_their_dtype_and_return_fp32_gradients(dtype: torch.dtype) -> None:
    x, A, B = _parts(1, dtype)
    layer = _layer(dtype)
    y = lora_linear(layer, layer.weight, x, A, B, 1.5, None)
    assert y.dtype == dtype
    dx, dA, dB = torch.autograd.grad(y.float().square().sum(), (x, A, B))
    assert (dx.dtype, dA.dtype, dB.dtype) == (dtype, torch.float32, torch.float32)
    exact = tuple(part.detach().double().requires_grad_() for part in (x, A, B))
    z = layer.double()(exact[0]) + 1.5 * exact[0] @ exact[1][0].mT @ exact[2][0].mT
    for got, wanted in zip((dA, dB), torch.autograd.grad(z.square().sum(), exact[1:]), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=0.05, atol=0.05 * wanted.abs().max().item())


@pytest.mark.parametrize("dropout", DROPOUT.values(), ids=DROPOUT)
def test_the_only_large_thing_saved_is_x_itself(dropout: float) -> None:
    x, A, B = _parts(1, torch.float64, (64, 8, 5))
    layer = _layer(torch.float64)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        lora_linear(layer, layer.weight, x, A, B, 2.0, _masks(1, dropout))
    assert sum(t.data_ptr() == x.data_ptr() for t in saved) == 1
    others = [t for t in saved if t.data_ptr() != x.data_ptr()]
    assert sum(t.numel() for t in others) <= 64 * 8 * 2 + A.numel() + B.numel() + layer.weight.numel()


def test_no_gradient_of_x_is_computed_when_none_is_wanted() -> None:
    x, A, B = _parts(1, torch.float64)
    layer = _layer(torch.float64)
    y = lora_linear(layer, layer.weight, x.detach(), A, B, 1.0, None)
    assert y.grad_fn is not None
    assert y.grad_fn.next_functions[0][0] is None
    assert all(grad is not None for grad in torch.autograd.grad(y.sum(), (A, B)))


def test_the_result_may_be_changed_in_place_by_its_reader() -> None:
    x, A, B = _parts(1, torch.float64)
    layer = _layer(torch.float64)
    plain = lora_linear(layer, layer.weight, x, A, B, 1.0, None)
    changed = lora_linear(layer, layer.weight, x, A, B, 1.0, None)
    changed.mul_(2.0)
    torch.testing.assert_close(changed, 2 * plain)
    torch.testing.assert_close(torch.autograd.grad(changed.sum(), A)[0], 2 * torch.autograd.grad(plain.sum(), A)[0])


@pytest.mark.parametrize("dropout", DROPOUT.values(), ids=DROPOUT)
def test_activation_checkpointing_gives_the_same_gradients(dropout: float) -> None:
    x, A, B = _parts(1, torch.float64)
    layer, masks = _layer(torch.float64), _masks(1, dropout)

    def product(x: torch.Tensor) -> torch.Tensor:
        return lora_linear(layer, layer.weight, x, A, B, 1.5, masks).tanh()

    kept = torch.autograd.grad(product(x).sum(), (x, A, B))
    again = torch.autograd.grad(checkpoint(product, x, use_reentrant=False).sum(), (x, A, B))
    frozen = torch.autograd.grad(checkpoint(product, x.detach(), use_reentrant=False).sum(), (A, B))
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(kept[1:], frozen, strict=True))


def test_a_mask_belongs_to_its_seed_and_keeps_its_share() -> None:
    like = torch.empty(2, 400, 101)
    masks = Masks(seeds=(5, 9), keep=(kept_share(0.3), 1.0)).draw(like)
    alone = Masks(seeds=(5,), keep=(kept_share(0.3),)).draw(like[:1])
    assert torch.equal(masks[0], alone[0])
    assert masks[1].all()
    assert abs(masks[0].double().mean().item() - 0.7) < 0.01
    assert not torch.equal(masks[0], Masks(seeds=(6,), keep=(kept_share(0.3),)).draw(like[:1])[0])
