"""Into a model and out of it again."""

import pytest
import torch
from tests.laws.plain_loop import rouse, slot_losses, token_ids
from tests.tiny import FAMILIES, tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from lorawise.base.errors import AdapterError
from lorawise.lora import (
    AdapterWeights,
    LoraConfig,
    adapters_of,
    attach,
    eject,
    inject,
    merge_and_eject,
    trainable_parameters,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_ejecting_leaves_the_same_objects_in_the_same_places(family: str) -> None:
    model = tiny_model(family)
    model.get_input_embeddings().requires_grad_(False)
    modules = {name: id(module) for name, module in model.named_modules()}
    parameters = {name: (id(p), p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    base = model(token_ids()).logits
    adapters = inject(model, LoraConfig(r=2, modules_to_save=("lm_head",), bias="all"))
    rouse(adapters)
    assert not torch.equal(model(token_ids()).logits, base)
    adapters.merge()
    eject(model)
    assert {name: id(module) for name, module in model.named_modules()} == modules
    for name, p in model.named_parameters():
        identity, required, value = parameters[name]
        assert (id(p), p.requires_grad) == (identity, required)
        assert torch.equal(p, value)
    assert torch.equal(model(token_ids()).logits, base)
    with pytest.raises(AdapterError, match="carries no adapters"):
        adapters_of(model)


def test_only_adapters_ask_for_gradients_after_injection() -> None:
    model = tiny_model("llama")
    adapters = inject(model, LoraConfig(r=2, modules_to_save=("lm_head",)))
    assert {id(p) for _, p in adapters.trainable()} == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for _, p in adapters.trainable())


@pytest.mark.parametrize(("dtype", "masters"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_masters_are_fp32_over_16_bit_and_fp64_over_fp64(dtype: torch.dtype, masters: torch.dtype) -> None:
    model = tiny_model("gpt2", dtype=dtype)
    adapters = inject(model, LoraConfig(r=2, modules_to_save=("lm_head",), bias="lora_only"))
    assert {p.dtype for _, p in adapters.trainable()} == {masters}
    slot_losses(model, token_ids(), 1).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == masters for _, p in adapters.trainable())


def test_the_guides_model_is_counted_on_the_meta_device() -> None:
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=4_096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    inject(model, LoraConfig(r=16, alpha=32, target_modules=("q_proj", "k_proj", "v_proj", "o_proj")))
    assert all(p.is_meta for p in model.parameters())
    assert str(trainable_parameters(model)) == (
        "trainable params: 13,631,488 || all: 8,043,892,736 || trainable%: 0.1695"
    )


def test_padding_of_a_bank_is_not_counted() -> None:
    model = tiny_model("llama")
    inject(model, [LoraConfig(r=8), LoraConfig(r=1)])
    both = trainable_parameters(model).trainable
    eject(model)
    alone = 0
    for r in (8, 1):
        inject(model, LoraConfig(r=r))
        alone += trainable_parameters(model).trainable
        eject(model)
    assert both == alone


def test_a_shared_module_is_wrapped_wherever_it_is_held() -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.q_proj = model.model.layers[0].self_attn.q_proj
    inject(model, LoraConfig(target_modules=("q_proj",)))
    assert model.model.layers[1].self_attn.q_proj is model.model.layers[0].self_attn.q_proj
    eject(model)
    assert type(model.model.layers[1].self_attn.q_proj) is torch.nn.Linear
    assert model.model.layers[1].self_attn.q_proj is model.model.layers[0].self_attn.q_proj


@pytest.mark.parametrize(
    ("configs", "names", "says"),
    [
        ([], None, "no config"),
        ([LoraConfig(), LoraConfig()], ("a", "a"), "two adapters are called 'a'"),
        ([LoraConfig()], ("",), "empty"),
        ([LoraConfig()], ("a", "b"), "2 names for 1 configs"),
        ([LoraConfig(), LoraConfig(bias="all")], None, "2 slots cannot share"),
        ([LoraConfig(), LoraConfig(modules_to_save=("lm_head",))], None, "2 slots cannot share"),
    ],
)
def test_a_call_that_cannot_be_meant_is_refused_and_changes_nothing(configs, names, says) -> None:
    model = tiny_model("llama")
    with pytest.raises(AdapterError, match=says):
        inject(model, configs, names=names)
    assert all(p.requires_grad for p in model.parameters())


def test_injecting_twice_is_refused() -> None:
    model = tiny_model("llama")
    inject(model, LoraConfig())
    with pytest.raises(AdapterError, match="already carries adapters"):
        inject(model, LoraConfig())


def test_a_classification_head_is_saved_with_the_adapter() -> None:
    config = tiny_model("llama").config
    config.num_labels = 3
    model = AutoModelForSequenceClassification.from_config(config).eval()
    adapters = inject(model, LoraConfig(r=2, modules_to_save=("score",)))
    model(token_ids()).logits.square().sum().backward()
    assert dict(adapters.full_parameters())["score.weight"].grad.count_nonzero() > 0
    weights = adapters.weights("default")
    assert weights.task == "SEQ_CLS"
    assert list(weights.full) == ["score.weight"]


def test_attached_adapters_answer_as_they_were_trained() -> None:
    model = tiny_model("gpt2")
    adapters = inject(model, LoraConfig(r=3, rank_pattern={"c_fc": 5}, modules_to_save=("ln_f",), bias="lora_only"))
    rouse(adapters)
    wanted, weights = model(token_ids()).logits, adapters.weights("default")
    eject(model)
    base = model(token_ids()).logits
    other = attach(model, {"v1.0": weights})
    assert torch.equal(model(token_ids()).logits, wanted)
    assert not any(p.requires_grad for p in model.parameters())
    other.use(None)
    assert torch.equal(model(token_ids()).logits, base)


def test_weights_that_do_not_fit_are_refused_with_the_list() -> None:
    model = tiny_model("llama")
    before = [name for name, _ in model.named_modules()]
    wrong = AdapterWeights(
        config=LoraConfig(r=2),
        layers={
            "model.layers.0.self_attn.q_proj": (torch.zeros(2, 31), torch.zeros(32, 2)),
            "model.layers.7.self_attn.q_proj": (torch.zeros(2, 32), torch.zeros(32, 2)),
        },
        full={"lm_head.weight": torch.zeros(2, 2)},
    )
    with pytest.raises(AdapterError, match=r"(?s)layers\.7.*no such layer.*q_proj: A \(2, 31\).*lm_head\.weight"):
        attach(model, {"wrong": wrong})
    assert [name for name, _ in model.named_modules()] == before
    assert all(p.requires_grad for p in model.parameters())


def test_merging_for_good_leaves_a_plain_model() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    plain = {name: type(module) for name, module in model.named_modules()}
    adapters = inject(model, LoraConfig(r=2, modules_to_save=("lm_head",)))
    rouse(adapters)
    apart = model(token_ids()).logits
    merge_and_eject(model)
    assert {name: type(module) for name, module in model.named_modules()} == plain
    torch.testing.assert_close(model(token_ids()).logits, apart, rtol=1e-4, atol=1e-4)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings is False


@pytest.mark.parametrize("config", [None, {"r": 4}, [LoraConfig(), None], "qv"])
def test_what_is_no_config_is_refused_by_its_type(config: object) -> None:
    with pytest.raises(AdapterError, match="given as a config"):
        inject(tiny_model("llama"), config)  # type: ignore[arg-type]
