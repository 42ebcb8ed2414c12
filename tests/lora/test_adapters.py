"""Several adapters resident at once: swap, stack, rescale, merge."""

import time

import pytest
import torch
from tests.laws.plain_loop import rouse, token_ids
from tests.tiny import tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from lorawise.base.errors import AdapterError
from lorawise.lora import AdapterWeights, LoraConfig, attach, eject, inject


def trained(seed: int, **settings: object) -> AdapterWeights:
    adapters = inject(tiny_model("llama", dtype=torch.float64), LoraConfig(**{"r": 2, "seed": seed, **settings}))
    rouse(adapters, seed=seed)
    return adapters.weights("default")


def dense(weights: AdapterWeights, name: str) -> Tensor:
    A, B = weights.layers[name]
    return weights.config.scaling_of(name) * B @ A


def answer_of(parts: dict[str, Tensor]) -> Tensor:
    """The base with these dense deltas in its weights."""
    model = tiny_model("llama", dtype=torch.float64)
    with torch.no_grad():
        for name, delta in parts.items():
            model.get_parameter(f"{name}.weight").add_(delta)
    return model(token_ids()).logits


LEGAL = trained(1, target_modules="attention", scaling=4.0)
MEDICAL = trained(2, r=5, target_modules="all-linear", rslora=True)
STYLE = trained(3, target_modules=("lm_head", "q_proj"))


@pytest.fixture
def model() -> nn.Module:
    return tiny_model("llama", dtype=torch.float64)


def test_a_switch_answers_as_that_adapter_alone(model: nn.Module) -> None:
    adapters = attach(model, {"legal": LEGAL, "medical": MEDICAL})
    adapters.add("style", STYLE)
    for name, weights in {"style": STYLE, "medical": MEDICAL, "legal": LEGAL}.items():
        adapters.use(name)
        wanted = answer_of({layer: dense(weights, layer) for layer in weights.layers})
        torch.testing.assert_close(model(token_ids()).logits, wanted)
    adapters.use(None)
    assert torch.equal(model(token_ids()).logits, tiny_model("llama", dtype=torch.float64)(token_ids()).logits)


def test_a_stack_is_the_exact_sum_of_the_deltas(model: nn.Module) -> None:
    adapters = attach(model, {"legal": LEGAL, "medical": MEDICAL, "style": STYLE})
    adapters.set_scale("legal", 0.5)
    adapters.stack({"legal": 0.7, "style": -0.3, "medical": 0.0})
    parts = {layer: 0.35 * dense(LEGAL, layer) for layer in LEGAL.layers}
    for layer in STYLE.layers:
        parts[layer] = parts.get(layer, torch.zeros(())) - 0.3 * dense(STYLE, layer)
    torch.testing.assert_close(model(token_ids()).logits, answer_of(parts))
    adapters.stack({"medical": 1.0})
    stacked = model(token_ids()).logits
    adapters.use("medical")
    assert torch.equal(model(token_ids()).logits, stacked)


def test_a_scale_stays_when_others_come_and_go(model: nn.Module) -> None:
    adapters = attach(model, {"style": STYLE, "legal": LEGAL})
    adapters.use("legal")
    adapters.set_scale("legal", 0.5)
    halved = model(token_ids()).logits
    adapters.add("medical", MEDICAL)
    adapters.remove("style")
    torch.testing.assert_close(model(token_ids()).logits, halved)
    adapters.set_scale("legal", 1.0)
    assert not torch.allclose(model(token_ids()).logits, halved)


def test_merging_one_adapter_while_another_is_in_use_merges_its_whole_modules(model: nn.Module) -> None:
    whole, other = trained(5, modules_to_save=("lm_head",)), trained(6, modules_to_save=("lm_head",))
    adapters = attach(model, {"whole": whole, "other": other})
    wanted = model(token_ids()).logits
    adapters.use("other")
    adapters.merge({"whole": 1.0})
    torch.testing.assert_close(model(token_ids()).logits, wanted)


def test_removing_an_adapter_leaves_the_others_as_they_were(model: nn.Module) -> None:
    adapters = attach(model, {"legal": LEGAL, "style": STYLE, "medical": MEDICAL})
    adapters.use("medical")
    medical = model(token_ids()).logits
    adapters.remove("legal")
    assert adapters.names == ("style", "medical")
    torch.testing.assert_close(model(token_ids()).logits, medical)
    adapters.remove("medical")
    assert torch.equal(model(token_ids()).logits, tiny_model("llama", dtype=torch.float64)(token_ids()).logits)
    assert set(adapters.layers) == set(STYLE.layers)
    adapters.use("style")
    torch.testing.assert_close(
        model(token_ids()).logits, answer_of({layer: dense(STYLE, layer) for layer in STYLE.layers})
    )


def test_weights_come_back_as_they_went_in(model: nn.Module) -> None:
    adapters = attach(model, {"legal": LEGAL, "medical": MEDICAL})
    for name, weights in {"legal": LEGAL, "medical": MEDICAL}.items():
        back = adapters.weights(name)
        assert back.config == weights.config
        assert set(back.layers) == set(weights.layers)
        assert all(
            torch.equal(x, y) for n in back.layers for x, y in zip(back.layers[n], weights.layers[n], strict=True)
        )


def test_loading_into_a_slot_keeps_its_parameters_and_goes_on(model: nn.Module) -> None:
    adapters = inject(model, [MEDICAL.config.replace(seed=9), LEGAL.config], names=("a", "b"))
    before = {name: id(p) for name, p in adapters.trainable()}
    other = adapters.weights("b")
    adapters.load("a", MEDICAL)
    assert {name: id(p) for name, p in adapters.trainable()} == before
    assert all(p.requires_grad for _, p in adapters.trainable())
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(adapters.weights("a").layers[name][0], MEDICAL.layers[name][0])
    kept = adapters.weights("b")
    assert all(torch.equal(kept.layers[n][0], other.layers[n][0]) for n in other.layers)
    with pytest.raises(AdapterError, match=r"(?s)not by the slot.*rank 5 in the weights, 2 in the slot.*scaling"):
        adapters.load("b", MEDICAL)


def test_whole_modules_follow_the_adapter_in_use(model: nn.Module) -> None:
    whole = trained(5, modules_to_save=("lm_head",))
    norms = trained(6, modules_to_save=("norm",))
    base = model(token_ids()).logits
    adapters = attach(model, {"legal": LEGAL, "whole": whole, "norms": norms})
    adapters.use("whole")
    assert torch.equal(model.lm_head.weight, whole.full["lm_head.weight"])
    with_head = model(token_ids()).logits
    adapters.use("legal")
    torch.testing.assert_close(
        model(token_ids()).logits, answer_of({layer: dense(LEGAL, layer) for layer in LEGAL.layers})
    )
    adapters.stack({"legal": 1.0, "whole": 0.0})
    adapters.stack({"legal": 0.0, "whole": 1.0})
    assert torch.equal(model(token_ids()).logits, with_head)
    with pytest.raises(AdapterError, match="'whole', 'norms' each train whole modules"):
        adapters.stack({"whole": 0.5, "norms": 0.5})
    with pytest.raises(AdapterError, match="3 slots cannot share"):
        adapters.bank()
    adapters.use(None)
    assert torch.equal(model(token_ids()).logits, base)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda adapters: adapters.use("legl"), "did you mean 'legal'"),
        (lambda adapters: adapters.stack({"legal": float("nan")}), "not a finite number"),
        (lambda adapters: adapters.set_scale("legal", float("inf")), "not a finite number"),
        (lambda adapters: adapters.add("legal", LEGAL), "two adapters are called 'legal'"),
        (lambda adapters: adapters.remove("x"), "no adapter is called 'x'"),
        (lambda adapters: adapters.weights("x"), "no adapter is called 'x'"),
        (lambda adapters: adapters.unmerge(), "nothing is merged"),
    ],
)
def test_a_call_that_cannot_be_meant_is_refused(act, says: str, model: nn.Module) -> None:
    adapters = attach(model, {"legal": LEGAL})
    with pytest.raises(AdapterError, match=says):
        act(adapters)


def test_what_is_merged_must_be_unmerged_before_anything_changes(model: nn.Module) -> None:
    adapters = attach(model, {"legal": LEGAL, "style": STYLE})
    adapters.merge({"legal": 1.0})
    assert adapters.merged == {"legal": 1.0}
    for act in (adapters.bank, adapters.merge, lambda: adapters.use("style"), lambda: adapters.remove("style")):
        with pytest.raises(AdapterError, match=r"(?s)hold 'legal' merged.*unmerge"):
            act()
    adapters.unmerge()
    adapters.use("style")


def test_merging_one_end_of_a_tied_pair_leaves_the_other_alone() -> None:
    model = tiny_model("llama", dtype=torch.float64, tie_word_embeddings=True)
    tied = model.get_input_embeddings().weight
    adapters = inject(model, LoraConfig(r=2, target_modules=("lm_head",)))
    rouse(adapters)
    apart, before = model(token_ids()).logits, tied.clone()
    adapters.merge()
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert model.config.tie_word_embeddings is False
    torch.testing.assert_close(model(token_ids()).logits, apart)
    adapters.unmerge()
    assert model.config.tie_word_embeddings is True
    eject(model)
    assert model.lm_head.weight is tied


def test_a_merge_that_overflows_leaves_the_base_as_it_was() -> None:
    model = tiny_model("llama", dtype=torch.float16)
    base = model(token_ids()).logits
    adapters = inject(model, LoraConfig(r=2, target_modules="attention"))
    rouse(adapters)
    with torch.no_grad():
        adapters.layers["model.layers.1.self_attn.o_proj"].lora_B.fill_(1e7)
    with pytest.raises(AdapterError, match=r"1\.self_attn\.o_proj.*not finite"):
        adapters.merge()
    assert adapters.merged is None
    adapters.use(None)
    assert torch.equal(model(token_ids()).logits, base)


def test_every_switch_of_a_135m_model_takes_under_a_millisecond_and_copies_no_base() -> None:
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1_536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        fresh = inject(model, LoraConfig(r=16)).weights
    base = {id(p) for name, p in model.named_parameters() if ".lora_" not in name}
    del fresh
    eject(model)
    with torch.device("meta"):
        adapters = inject(model, [LoraConfig(r=16), LoraConfig(r=8)], names=("a", "b"))
    assert len(adapters.layers) == 210
    assert {id(p) for name, p in model.named_parameters() if ".lora_" not in name} == base
    acts = [
        lambda: adapters.use("a"), lambda: adapters.use(None), lambda: adapters.stack({"a": 0.7, "b": 0.3}),
        lambda: adapters.set_scale("b", 0.5), adapters.bank,
    ]  # fmt: skip
    for act in acts:
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - start)
        assert sorted(seconds)[10] < 1e-3
