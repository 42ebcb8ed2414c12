"""Banks over each kind of frozen layer."""

import copy

import pytest
import torch
from tests.tiny import tiny_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorawise.base.errors import AdapterError
from lorawise.lora import LoraConfig, adapters_of, eject, inject
from lorawise.lora.bank import LinearBank


class Net(nn.Module):
    """Two linear layers under names that presets do not know."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Linear(6, 8, dtype=dtype)
            self.second = nn.Linear(8, 5, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def config(**changes: object) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ("first", "second"), **changes})  # type: ignore[arg-type]


def roused(net: nn.Module, seed: int = 1) -> nn.Module:
    """Every live entry of A and B random; padding untouched."""
    generator = torch.Generator().manual_seed(seed)
    for layer in adapters_of(net).layers.values():
        with torch.no_grad():
            for i, rank in enumerate(layer.ranks):
                layer.lora_A[i, :rank].normal_(generator=generator)
                layer.lora_B[i, :, :rank].normal_(generator=generator)
    return net


def rows(n: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return (
        torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype).repeat(n, 1, 1)
    )


def test_padding_of_short_ranks_and_absent_slots_stays_zero() -> None:
    net = Net()
    adapters = inject(net, [config(r=4), config(r=1), config(r=2, target_modules=("first",))])
    roused(net)
    optimizer = torch.optim.AdamW([p for _, p in adapters.trainable()], lr=0.1, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        net(rows(3)).square().sum().backward()
        optimizer.step()
    assert adapters.layers["first"].ranks == (4, 1, 2)
    assert adapters.layers["second"].ranks == (4, 1, 0)
    for layer in adapters.layers.values():
        for i, rank in enumerate(layer.ranks):
            assert layer.lora_A[i, rank:].count_nonzero() == 0
            assert layer.lora_B[i, :, rank:].count_nonzero() == 0
            assert rank == 0 or layer.lora_A[i, :rank].count_nonzero() > 0


def test_each_slot_takes_its_own_share_of_the_rows() -> None:
    net = Net()
    adapters = inject(net, [config(r=4), config(r=1, scaling=3.0), config(target_modules=("first",))])
    together = roused(net)(rows(3)).chunk(3)
    for name, share in zip(adapters.names, together, strict=True):
        adapters.use(name)
        torch.testing.assert_close(net(rows()), share)


def test_rows_that_do_not_part_into_slots_are_refused() -> None:
    net = Net()
    inject(net, [config(), config(seed=1)])
    with pytest.raises(AdapterError, match="got 3 rows for 2 slots"):
        net(rows()[:3])


def test_dropout_is_drawn_by_step_and_slot_and_not_by_the_global_generator() -> None:
    settings = [config(dropout=0.3), config(dropout=0.5, seed=4)]
    bank = Net().train()
    adapters = inject(bank, settings)
    alone = Net().train()
    one = inject(alone, settings[1])
    for layer, other in zip(adapters.layers.values(), one.layers.values(), strict=True):
        with torch.no_grad():
            layer.lora_B.fill_(0.5)
            other.lora_B.fill_(0.5)
    adapters.draw(3, 1)
    one.draw(3, 1)
    state = torch.get_rng_state()
    share = bank(rows(2))[4:]
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(share, alone(rows()))
    first = alone(rows())
    assert torch.equal(alone(rows()), first)
    one.draw(3, 2)
    assert not torch.equal(alone(rows()), first)
    alone.eval()
    still = alone(rows())
    one.draw(9, 9)
    assert torch.equal(alone(rows()), still)


def test_dropout_keeps_the_mean() -> None:
    net = Net().train()
    adapters = inject(net, config(dropout=0.5, target_modules=("second",)))
    roused(net)
    adapters.use(None)
    base = net(rows())
    adapters.use("default")
    wanted = net.eval()(rows()) - base
    net.train()
    total = torch.zeros_like(base)
    for step in range(2000):
        adapters.draw(step)
        total += net(rows()).detach() - base
    assert (total / 2000 - wanted).norm() < 0.1 * wanted.norm()


def test_dropout_without_a_draw_is_refused() -> None:
    net = Net().train()
    inject(net, config(dropout=0.1))
    with pytest.raises(AdapterError, match=r"adapters\.draw"):
        net(rows())


def test_recomputed_activations_see_the_same_masks() -> None:
    net = Net().train()
    adapters = inject(net, config(dropout=0.5))
    roused(net)
    adapters.draw(0)
    parameters = [p for _, p in adapters.trainable()]
    kept = torch.autograd.grad(net(rows()).square().sum(), parameters)
    again = torch.autograd.grad(checkpoint(net, rows(), use_reentrant=False).square().sum(), parameters)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


class Rounded(nn.Linear):
    """Stands for a quantised layer: integer weights, a forward of its own."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out)
        self.weight = nn.Parameter(torch.randint(-9, 9, (out, width), dtype=torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x.dtype) / 9).mT


def test_a_quantised_layer_is_called_never_read() -> None:
    net = Net(torch.float32)
    net.first = Rounded(6, 8)
    x = rows(dtype=torch.float32)
    base = net(x)
    adapters = inject(net, config())
    assert adapters.layers["first"].lora_A.dtype == torch.float32
    assert torch.equal(net(x), base)
    roused(net)
    x.requires_grad_()
    dx, dA = torch.autograd.grad(net(x).sum(), (x, adapters.layers["first"].lora_A))
    layer = adapters.layers["first"]
    h = net.first.base_layer(x) + 2.0 * x @ layer.lora_A[0].mT @ layer.lora_B[0].mT
    second = adapters.layers["second"]
    y = second.base_layer(h.tanh()) + 2.0 * h.tanh() @ second.lora_A[0].mT @ second.lora_B[0].mT
    for got, wanted in zip((dx, dA), torch.autograd.grad(y.sum(), (x, layer.lora_A)), strict=True):
        torch.testing.assert_close(got, wanted)
    with pytest.raises(AdapterError, match="first is quantised"):
        adapters.merge()


@pytest.mark.parametrize("change", ["hook", "own forward"])
def test_what_is_done_to_a_base_layer_is_in_the_answer_and_in_the_gradient(change: str) -> None:
    net = Net()
    adapters = inject(net, config())
    roused(net)
    first, second = adapters.layers.values()
    base = second.base_layer
    if change == "hook":
        base.register_forward_hook(lambda module, args, y: 3 * y)
    else:
        base.forward = lambda x, forward=base.forward: 3 * forward(x)
    y = net(rows())
    h = torch.tanh(first(rows()))
    expected = 3 * (h @ base.weight.mT + base.bias) + 2.0 * h @ second.lora_A[0].mT @ second.lora_B[0].mT
    torch.testing.assert_close(y, expected)
    grads = [torch.autograd.grad(each.square().sum(), first.lora_A)[0] for each in (y, expected)]
    torch.testing.assert_close(*grads)


def test_a_base_weight_that_someone_thaws_gets_its_gradient() -> None:
    net = Net()
    adapters = inject(net, config())
    base = adapters.layers["second"].base_layer
    base.weight.requires_grad_()
    assert torch.autograd.grad(net(rows()).sum(), base.weight)[0].count_nonzero() > 0


def test_autocast_computes_in_its_dtype() -> None:
    net = Net(torch.float32)
    adapters = inject(net, config())
    roused(net)
    exact = net(rows(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        y = net(rows(dtype=torch.float32))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for _, p in adapters.trainable())
    torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.5)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("n", [1, 2])
def test_token_embeddings_adapt_as_the_dense_delta(family: str, n: int) -> None:
    target = "wte" if family == "gpt2" else "embed_tokens"
    model = tiny_model(family, dtype=torch.float64)
    name = next(name for name, _ in model.named_modules() if name.endswith(target))
    adapters = inject(model, [config(r=2 + i, target_modules=(target,), seed=i) for i in range(n)])
    layer = adapters.layers[name]
    assert layer.lora_A.count_nonzero() == 0
    with torch.no_grad():
        layer.lora_A.normal_()
        for i, rank in enumerate(layer.ranks):
            layer.lora_A[i, rank:] = 0
    ids = torch.arange(12).view(2, 6) + 3
    share = model(ids.repeat(n, 1)).logits.chunk(n)[-1]
    i = n - 1
    delta = layer.delta_weight([(i, 1.0)])
    eject(model)
    tied = model.get_input_embeddings()
    tied.weight = nn.Parameter(tied.weight.detach() + delta)
    torch.testing.assert_close(model(ids).logits, share)


def test_the_padding_row_of_an_embedding_gets_no_gradient() -> None:
    net = nn.Sequential(nn.Embedding(9, 4, padding_idx=2))
    adapters = inject(net, config(target_modules=("0",)))
    net(torch.tensor([[1, 2, 3]])).sum().backward()
    grad = adapters.layers["0"].lora_A.grad
    assert grad is not None
    assert grad[0, :, 2].count_nonzero() == 0
    assert grad[0, :, 1].count_nonzero() > 0


def test_a_wrapper_answers_for_the_attributes_of_its_layer() -> None:
    net = Net()
    inject(net, config())
    assert isinstance(net.first, LinearBank)
    assert net.first.weight is net.first.base_layer.weight
    assert net.first.in_features == 6
    with pytest.raises(AttributeError):
        net.first.no_such_thing  # noqa: B018


def test_a_copied_or_pickled_model_has_adapters_of_its_own(tmp_path) -> None:
    net = Net()
    inject(net, [config(), config(seed=1)], names=("a.b", "c"))
    roused(net)
    twin = copy.deepcopy(net)
    torch.save(net, tmp_path / "net.pt")
    reread = torch.load(tmp_path / "net.pt", weights_only=False)
    for other in (twin, reread):
        adapters_of(net).use("a.b")
        adapters_of(other).use("c")
        wanted = other(rows())
        adapters_of(net).use("c")
        assert torch.equal(net(rows()), wanted)
        with torch.no_grad():
            other.first.lora_B.zero_()
        assert net.first.lora_B.count_nonzero() > 0
    fresh = Net()
    inject(fresh, [config(), config(seed=1)])
    fresh.load_state_dict(net.state_dict())
    adapters_of(fresh).use("1")
    assert torch.equal(fresh(rows()), net(rows()))
