"""What packs and what does not is found out by trying, and the reason is said."""

import pytest
import torch
from tests.models.packed_rows import packed_rows, padded, transformers_loss
from tests.tiny import FAMILIES, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from lorawise.base.errors import ModelError
from lorawise.models import packing
from lorawise.models.attention import DOCUMENTS
from lorawise.models.batch import to_model_batch
from lorawise.models.causal_blocks import Rule
from lorawise.models.forward import causal_loss
from lorawise.models.packing import PACKED, packing_support


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    packing._supported_by_class.cache_clear()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_packs_but_falcon_whose_attention_is_its_own(family: str) -> None:
    model = tiny_model(family)
    support = packing_support(model)
    if family == "falcon":
        assert "AttentionInterface" in support
    else:
        assert support == PACKED
    assert (model.config._attn_implementation == DOCUMENTS) == (support == PACKED)


def test_a_family_that_drops_the_documents_is_found_out() -> None:
    config = AutoConfig.for_model(
        "stablelm", vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    assert "does not hand cu_seq_lens_q on" in packing_support(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_the_trial_would_see_a_window_or_a_softcap_being_ignored(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family, **({"sliding_window": 4096} if family == "mistral" else {}))
    assert packing_support(model) == PACKED
    packing._supported_by_class.cache_clear()
    monkeypatch.setattr("lorawise.models.attention.Rule", lambda scale, **_: Rule(scale=scale))
    assert "differ from the same rows alone" in packing_support(model)


def test_a_config_that_cannot_be_shrunk_has_the_model_itself_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_supported_by_class", lambda *_: None)
    for dtype in (torch.float32, torch.bfloat16):
        assert packing_support(tiny_model("llama", dtype=dtype)) == PACKED
    falcon = tiny_model("falcon")
    assert packing_support(falcon) != PACKED
    assert falcon.config._attn_implementation == "sdpa"


def test_the_model_itself_shows_documents_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_supported_by_class", lambda *_: None)
    monkeypatch.setattr("lorawise.models.attention._lengths_of_a_row", lambda offsets, n, tokens: (tokens,))
    model = tiny_model("llama", dtype=torch.bfloat16)
    assert "see each other" in packing_support(model)
    assert model.config._attn_implementation == "sdpa"


def test_trying_leaves_the_random_state_and_the_weights_alone() -> None:
    model = tiny_model("qwen2")
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    packing_support(model)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_packed_rows_without_asking_first_are_refused_with_the_cure() -> None:
    with pytest.raises(ModelError, match=r"ask packing_support\(model\) first"):
        causal_loss(tiny_model("llama"), to_model_batch(packed_rows([3, 4])))


def test_a_family_that_does_not_pack_trains_one_document_a_row_to_the_same_loss() -> None:
    model = tiny_model("falcon")
    batch = packed_rows([5, 9, 3])
    ours = causal_loss(model, to_model_batch(padded(batch)))
    torch.testing.assert_close(ours.sums.sum(), transformers_loss(model, batch), rtol=1e-5, atol=0)
