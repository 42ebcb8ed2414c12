"""From micro-batch to loss, equal to transformers' own, with adapters in the model and on its head."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.packed_rows import packed_rows, padded, transformers_loss
from tests.tiny import FAMILIES, tiny_model
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from lorawise import LoraConfig
from lorawise.base.errors import DataError, ModelError
from lorawise.lora.injection import inject
from lorawise.models.batch import to_model_batch
from lorawise.models.forward import causal_loss, classification_loss
from lorawise.models.head import Head, decoder_of, decoder_path
from lorawise.models.packing import packing_support

LENGTHS = (7, 12, 1, 9)


def with_random_adapters(model: PreTrainedModel, config: LoraConfig | list[LoraConfig], seed: int = 0) -> list:
    """Adapters whose B is not zero; the trained parameters, in a fixed order."""
    adapters = inject(model, config)
    draw = torch.Generator().manual_seed(seed)
    parameters = [p for _, p in adapters.trainable()]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_alone_gives_the_models_own_logits(family: str) -> None:
    model = tiny_model(family)
    ids = torch.arange(10)[None] + 3
    decoded = decoder_of(model)(input_ids=ids, use_cache=False)
    before = dict(model.named_modules())
    logits = Head(model, type(decoded))(decoded.last_hidden_state)
    torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=0, atol=0)
    assert dict(model.named_modules()) == before
    assert type(model.get_submodule(decoder_path(model))) is type(decoder_of(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_give_the_loss_of_transformers(family: str) -> None:
    model = tiny_model(family)
    batch = packed_rows(LENGTHS)
    ours = causal_loss(model, to_model_batch(padded(batch)), chunk=6)
    torch.testing.assert_close(ours.sums.sum(), transformers_loss(model, batch), rtol=2e-6, atol=0)
    torch.testing.assert_close(ours.sums, ours.per_row.sum(1))
    assert ours.counts.tolist() == [batch.trained_tokens]


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj", "lm_head")])
@pytest.mark.parametrize("family", ["llama", "granite", "cohere"])
def test_adapters_get_the_gradient_that_plain_logits_would_give(family: str, targets: str | tuple[str, ...]) -> None:
    model = tiny_model(family, tie_word_embeddings=False)
    packing_support(model)
    parameters = with_random_adapters(model, LoraConfig(r=4, target_modules=targets))
    batch = packed_rows(LENGTHS)
    loss = causal_loss(model, to_model_batch(batch), chunk=6).sums.sum()
    got = torch.autograd.grad(loss, parameters)
    wanted = torch.autograd.grad(transformers_loss(model, batch), parameters)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_head_trained_in_full_gets_its_gradient() -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    packing_support(model)
    parameters = with_random_adapters(model, LoraConfig(r=4, modules_to_save=("lm_head",)))
    batch = packed_rows(LENGTHS)
    got = torch.autograd.grad(causal_loss(model, to_model_batch(batch), chunk=6).sums.sum(), parameters)
    wanted = torch.autograd.grad(transformers_loss(model, batch), parameters)
    assert any(p.shape == (256, 32) for p in parameters)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_each_slot_of_a_bank_has_the_loss_and_gradient_it_has_alone() -> None:
    configs = [LoraConfig(r=r, target_modules=("q_proj", "down_proj", "lm_head"), seed=r) for r in (2, 4, 3)]
    batch = to_model_batch(packed_rows(LENGTHS))
    bank = tiny_model("llama", dtype=torch.float64)
    packing_support(bank)
    adapters = inject(bank, configs)
    parts = causal_loss(bank, batch, n=3, chunk=6)
    factors = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    (parts.sums * factors).sum().backward()
    for slot, config in enumerate(configs):
        single = tiny_model("llama", dtype=torch.float64)
        packing_support(single)
        alone = inject(single, config)
        loss = causal_loss(single, batch).sums
        (loss * factors[slot]).sum().backward()
        torch.testing.assert_close(parts.sums[slot], loss[0], rtol=1e-12, atol=0)
        banked = {name: p.grad[slot] for name, p in adapters.trainable()}
        for name, parameter in alone.trainable():
            wanted = parameter.grad[0]
            got = banked[name][tuple(slice(size) for size in wanted.shape)]
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)


def test_without_gradients_the_loss_is_the_same_bits_and_holds_no_graph() -> None:
    model = tiny_model("llama")
    packing_support(model)
    with_random_adapters(model, LoraConfig(r=4))
    batch = to_model_batch(packed_rows(LENGTHS))
    training = causal_loss(model, batch)
    with torch.no_grad():
        evaluated = causal_loss(model, batch)
    assert torch.equal(training.sums, evaluated.sums)
    assert training.sums.requires_grad
    assert not evaluated.sums.requires_grad


def test_the_same_step_twice_gives_the_same_bits() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    packing_support(model)
    parameters = with_random_adapters(model, LoraConfig(r=4, target_modules=("q_proj", "lm_head")))
    batch = to_model_batch(packed_rows((40, 7, 40)))
    runs = []
    for _ in range(3):
        parts = causal_loss(model, batch)
        runs.append([parts.sums, *torch.autograd.grad(parts.sums.sum(), parameters)])
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_a_trained_token_that_nothing_predicts_is_refused() -> None:
    batch = packed_rows((4, 5))
    batch.trained[0, 4] = True
    with pytest.raises(DataError, match="the first token of document 1 of a batch is marked as trained"):
        to_model_batch(batch)


def test_a_batch_without_trained_tokens_has_a_loss_of_zero_and_gradients_of_zero() -> None:
    model = tiny_model("llama")
    packing_support(model)
    parameters = with_random_adapters(model, LoraConfig(r=4))
    parts = causal_loss(model, to_model_batch(packed_rows((4, 5), trained=0.0)))
    assert (parts.sums.item(), parts.counts.item()) == (0.0, 0)
    assert all(not g.any() for g in torch.autograd.grad(parts.sums.sum(), parameters))


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="LlamaModel has no decoder apart from its head"):
        causal_loss(decoder_of(tiny_model("llama")), to_model_batch(padded(packed_rows((4, 5)))))


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "mistral", "gpt2", "opt"])
def test_classification_equals_transformers_own_on_rows_alone(family: str, layout: str) -> None:
    config: AutoConfig = tiny_model(family).config
    config.num_labels = 3
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    packing_support(model)
    packed = packed_rows(LENGTHS)
    labels = torch.tensor([0, 2, 1, 1])
    batch = to_model_batch(packed if layout == "packed" else padded(packed))
    ours = classification_loss(model, batch, labels)
    ids = torch.split(torch.from_numpy(packed.ids), list(LENGTHS), dim=1)
    expected = torch.cat([model(input_ids=row).logits for row in ids])
    torch.testing.assert_close(ours.logits[0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.loss.sums[0], F.cross_entropy(expected, labels, reduction="sum"))
    assert ours.loss.counts.tolist() == [4]
    (gradient,) = torch.autograd.grad(ours.loss.sums.sum(), model.score.weight)
    assert gradient.any()


def test_documents_of_a_padded_batch_end_where_they_end() -> None:
    batch = to_model_batch(padded(packed_rows((3, 5, 2))))
    assert batch.last.tolist() == [2, 9, 11]
    assert batch.attention_mask().sum(1).tolist() == [3, 5, 2]
    assert to_model_batch(padded(packed_rows((4, 4)))).attention_mask() is None
    marked = replace(packed_rows((3, 2)), trained=np.array([[False, True, True, False, True]]))
    packed = to_model_batch(marked)
    assert (packed.positions.tolist(), packed.documents.tolist()) == ([0, 1, 3], [0, 0, 1])
    assert packed.targets.tolist() == marked.ids[0, [1, 2, 4]].tolist()


def test_dropout_of_an_adapter_on_the_head_does_not_depend_on_the_slots_beside_it() -> None:
    """Its masks are drawn a chunk of logits at a time, and more slots would mean smaller chunks."""
    config = LoraConfig(r=2, target_modules=("lm_head",), dropout=0.5)
    losses = {}
    for n in (1, 2, 3):
        model = tiny_model("llama", vocab_size=100_000, tie_word_embeddings=False)
        adapters = inject(model, [config] * n)
        adapters.draw(3)
        with torch.no_grad():
            adapters.layers["lm_head"].lora_B.copy_(torch.randn(100_000, 2, generator=torch.Generator().manual_seed(1)))
        model.train()
        losses[n] = causal_loss(model, to_model_batch(padded(packed_rows((60, 90)))), n=n).sums[0]
    torch.testing.assert_close(losses[2], losses[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[3], losses[1], rtol=1e-5, atol=0)
