"""Packed layers: bitsandbytes' own values, and an adapter over one computes what it does over the unpacked weight."""

import pytest
import torch
from bitsandbytes import functional as bnb
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quantised_layers import FORMS, packed_linear
from torch import Tensor, nn

from lorawise.lora import LoraConfig, inject
from lorawise.lora.count import trainable_parameters
from lorawise.lora.packed import PackedLinear

WIDTHS = st.integers(1, 40).map(lambda n: 2 * n)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def plain_like(layer: PackedLinear, whole: Tensor) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, dtype=layer.compute_dtype)
    plain.weight.data = whole.clone()
    if layer.bias is not None:
        plain.bias.data = layer.bias.data.clone()
    return plain


class Model(nn.Module):
    """Two layers in a row, so that one of them has an input that wants a gradient."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def pair(form: str, dtype: torch.dtype, *, bias: bool = True) -> tuple[Model, Model]:
    """The same model over packed layers, and over the weights they stand for."""
    made = [packed_linear(form, 24, 32, dtype=dtype, bias=bias), packed_linear(form, 16, 24, dtype=dtype, seed=1)]
    return Model(*(layer for layer, _ in made)), Model(*(plain_like(layer, whole) for layer, whole in made))


def stepped(model: Model, x: Tensor, n: int, dropout: float) -> list[Tensor]:
    configs = [LoraConfig(r=2 + i, scaling=1.0 + i, target_modules=["first", "second"], dropout=dropout, seed=i)
               for i in range(n)]  # fmt: skip
    adapters = inject(model, configs)
    generator = torch.Generator().manual_seed(5)
    for layer in adapters.layers.values():
        for i, rank in enumerate(layer.ranks):
            layer.lora_B.data[i, :, :rank].normal_(generator=generator)
    adapters.draw(1, 0)
    x = x.clone().requires_grad_()
    y = model.train()(x)
    (y.float() ** 2).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for _, parameter in adapters.trainable())]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(out=st.integers(1, 40), width=WIDTHS, seed=st.integers(0, 99))
def test_an_unpacked_weight_is_bitsandbytes_own(form, dtype, out, width, seed):
    layer, whole = packed_linear(form, out, width, dtype=dtype, seed=seed)
    assert layer.unpack().shape == (out, width)
    assert layer.unpack().dtype == dtype
    assert layer.unpack().equal(whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_bitsandbytes_kernel_is_right_it_agrees(dtype):
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    bits, state = bnb.quantize_4bit(weight, quant_type="nf4")
    layer, _ = packed_linear("nf4", 48, 128, dtype=dtype)
    assert layer.weight.equal(bits)
    assert layer.unpack().equal(bnb.dequantize_4bit(bits, state))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "dropout"), [(1, 0.0), (1, 0.3), (3, 0.0), (3, 0.3)])
def test_an_adapter_over_a_packed_layer_equals_it_over_the_unpacked_one_to_the_bit(form, dtype, n, dropout):
    packed, plain = pair(form, dtype)
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    for mine, its in zip(stepped(packed, x, n, dropout), stepped(plain, x, n, dropout), strict=True):
        assert mine.equal(its)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_fp64_autograd(form):
    """Against the formula itself, in fp64, within what fp32 products lose."""
    layer, whole = packed_linear(form, 24, 32, bias=True)
    model = Model(layer, nn.Identity())
    adapters = inject(model, LoraConfig(r=4, scaling=2.0, target_modules=["first"]))
    bank = adapters.layers["first"]
    bank.lora_B.data.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(2), requires_grad=True)
    torch.tanh(model(x)).sum().backward()
    wide = [t.detach().double().requires_grad_() for t in (x, bank.lora_A, bank.lora_B)]
    X, A, B = wide
    y = X @ whole.double().mT + layer.bias.double() + 2.0 * (X @ A[0].mT) @ B[0].mT
    torch.tanh(torch.tanh(y)).sum().backward()
    for mine, its in zip((x.grad, bank.lora_A.grad, bank.lora_B.grad), (t.grad for t in wide), strict=True):
        torch.testing.assert_close(mine.double(), its, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [1, 3])
def test_nothing_as_large_as_the_weight_is_saved_and_it_is_unpacked_once_each_way(form, n, monkeypatch):
    packed, _ = pair(form, torch.bfloat16)
    unpacked: list[str] = []
    real = type(packed.first).unpack
    monkeypatch.setattr(type(packed.first), "unpack", lambda self: (unpacked.append("once"), real(self))[1])
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.untyped_storage().nbytes()), t)[1], _same):
        stepped(packed, torch.randn(n, 1, 32).bfloat16(), n, 0.0)
    assert len(unpacked) == 4, "two layers, forward and backward"
    assert saved
    assert max(saved) < 24 * 32 * 2


def _same(tensor: Tensor) -> Tensor:
    return tensor


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_layer_alone_passes_its_gradient_after_it_has_answered(form):
    layer, whole = packed_linear(form, 16, 32, dtype=torch.bfloat16)
    layer.eval()
    with torch.no_grad():
        layer(torch.randn(3, 32).bfloat16())
    x = torch.randn(3, 32).bfloat16().requires_grad_()
    layer.train()(x).sum().backward()
    assert x.grad.equal(torch.ones(3, 16).bfloat16() @ whole)


def test_it_computes_in_its_own_type_and_answers_in_the_type_it_was_asked_in():
    layer, whole = packed_linear("nf4", 16, 32, dtype=torch.bfloat16)
    x = torch.randn(3, 32)
    assert layer(x).equal((x.bfloat16() @ whole.mT).float())
    model = Model(layer, nn.Identity())
    inject(model, LoraConfig(r=2, target_modules=["first"]))
    assert model(x).dtype == torch.float32


@pytest.mark.parametrize("form", FORMS)
def test_packed_weights_are_counted_as_what_they_stand_for(form):
    packed, plain = pair(form, torch.float32)
    for model in (packed, plain):
        inject(model, LoraConfig(r=2, target_modules=["first"]))
    assert trainable_parameters(packed) == trainable_parameters(plain)
