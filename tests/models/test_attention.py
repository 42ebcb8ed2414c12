"""The registered attention: documents where they are given, transformers' own everywhere else, nothing swallowed."""

import pytest
import torch
from tests.models.packed_rows import packed_rows
from tests.tiny import tiny_model
from torch import nn

from lorawise.base.errors import ModelError
from lorawise.models.attention import DOCUMENTS, document_attention, document_call, use_document_attention
from lorawise.models.batch import to_model_batch
from lorawise.models.forward import causal_loss
from lorawise.models.packing import packing_support

CALL = document_call(torch.tensor([[0, 1, 2, 0, 1]]), (3, 2), n=1)


class Attention(nn.Module):
    is_causal = True
    num_key_value_groups = 2


def attend(**keywords: object) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 5, 8, generator=draw) for heads in (4, 2, 2))
    out, _ = document_attention(Attention(), query, key, value, **(CALL | keywords))
    return out


@pytest.mark.parametrize(
    ("keywords", "found"),
    [
        ({"position_bias": torch.zeros(1)}, "Attention passes position_bias to its attention"),
        ({"tree_mask": 3, "alibi": True}, "Attention passes alibi, tree_mask to its attention"),
        ({"dropout": 0.1}, "has attention dropout on"),
        ({"is_causal": False}, "attends in both directions"),
        ({"cu_seq_lens_q": None}, "does not hand cu_seq_lens_q on"),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 4])}, "cu_seq_lens_q ends at 4 for 1 rows of 5 tokens"),
    ],
)
def test_what_is_set_and_not_implemented_is_refused_by_name(keywords: dict, found: str) -> None:
    with pytest.raises(ModelError, match=found):
        attend(**keywords)


def test_keywords_that_are_off_or_only_carried_along_are_no_reason_to_refuse() -> None:
    same = attend(output_attentions=False, position_bias=None, position_ids=torch.zeros(1, 5))
    assert torch.equal(same, attend())


def test_a_mask_of_the_models_own_is_refused() -> None:
    query = torch.zeros(1, 2, 5, 8)
    with pytest.raises(ModelError, match=r"makes a mask of its own, \(1, 1, 5, 5\)"):
        document_attention(
            Attention(), query, query, query, torch.ones(1, 1, 5, 5), cu_seq_lens_q=CALL["cu_seq_lens_q"]
        )


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "gpt2", "qwen3"])
def test_rows_that_are_not_packed_get_transformers_own_attention_and_masks(family: str) -> None:
    model = tiny_model(family, **({"sliding_window": 4} if family in ("mistral", "gemma2", "gemma3") else {}))
    ids = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    plain = model(input_ids=ids).logits
    expected = model(input_ids=ids, attention_mask=mask).logits
    written = model.generate(ids[1:], max_new_tokens=6, do_sample=False)
    use_document_attention(model)
    assert model.config._attn_implementation == DOCUMENTS
    torch.testing.assert_close(model(input_ids=ids).logits, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.generate(ids[1:], max_new_tokens=6, do_sample=False), written)


def test_sinks_of_rows_that_are_not_packed_equal_the_packed_ones() -> None:
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    packed = attend(s_aux=sinks, cu_seq_lens_q=torch.tensor([0, 5]))
    whole = attend(s_aux=sinks, cu_seq_lens_q=None, attention_mask=None)
    torch.testing.assert_close(packed, whole)
    assert not torch.allclose(packed, attend(cu_seq_lens_q=torch.tensor([0, 5])))


def test_a_layer_run_again_in_backward_sees_the_documents_too() -> None:
    model = tiny_model("llama").requires_grad_(False)
    packing_support(model)
    batch = to_model_batch(packed_rows([6, 9, 4]))
    weight = model.get_input_embeddings().weight.requires_grad_()
    (plain,) = torch.autograd.grad(causal_loss(model, batch).sums.sum(), weight)
    model.activation_checkpointing_enable()
    model.train()
    (again,) = torch.autograd.grad(causal_loss(model, batch).sums.sum(), weight)
    assert torch.equal(again, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 20])
def test_the_variable_length_kernel_equals_the_blocks(window: int | None) -> None:
    from lorawise.models.attention import _varlen
    from lorawise.models.causal_blocks import Rule, causal_attention

    lengths = (70, 3, 128)
    query, key, value = (torch.randn(2, 201, h, 64, device="cuda").bfloat16().transpose(1, 2) for h in (6, 2, 2))
    rule = Rule(scale=0.125, window=window)
    offsets = document_call(torch.zeros(1, 201, device="cuda"), lengths, n=2)["cu_seq_lens_q"]
    got = _varlen(query, key, value, offsets, 128, rule)
    torch.testing.assert_close(got, causal_attention(query, key, value, lengths, rule), rtol=2e-2, atol=2e-2)
