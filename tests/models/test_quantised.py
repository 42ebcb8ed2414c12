"""A base in nf4 or int8: every linear layer but the head packed, the rest as it was, little memory on the way."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.workbench import tiny_folder
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from lorawise.base.errors import ModelError
from lorawise.lora import LoraConfig, inject
from lorawise.models import quantised
from lorawise.models.files import resolve_model
from lorawise.models.open import open_model
from lorawise.models.quantised import packed_layers
from lorawise.training.trace.ledger import Ledger

IDS = torch.tensor([[5, 17, 200, 3, 44, 91, 8, 130]])
FAMILIES = ("llama", "qwen2", "gemma3", "phi3", "gpt2", "gpt_neox", "falcon", "opt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Callable[[str], Path]:
    """A saved model of a family, made once."""
    root = tmp_path_factory.mktemp("bases")
    return lambda family: root / family if (root / family).exists() else tiny_folder(root / family, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_it_computes_what_the_plain_model_computes_with_those_weights(folder, family, dtype):
    files = resolve_model(folder(family))
    packed, plain = open_model(files, dtype=dtype), open_model(files, dtype="float32")
    layers = packed_layers(packed)
    heads = {name for name, module in plain.named_modules() if module is plain.get_output_embeddings()}
    linear = {name for name, module in plain.named_modules() if type(module).__name__ in ("Linear", "Conv1D")}
    assert set(layers) == linear - heads
    for name, layer in layers.items():
        weight, whole = plain.get_parameter(f"{name}.weight"), layer.unpack()
        whole = (
            whole.mT if weight.shape != whole.shape or type(plain.get_submodule(name)).__name__ == "Conv1D" else whole
        )
        error = (whole - weight).norm() / weight.norm()
        assert 1e-4 < error < (0.11 if dtype == "nf4" else 0.02), name
        weight.data.copy_(whole)
    torch.testing.assert_close(packed(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-4)


def test_what_is_not_packed_stays_in_the_compute_type_and_nothing_is_left_of_the_loading(folder):
    model = open_model(resolve_model(folder("llama")), dtype="nf4", compute_dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16, torch.uint8}
    assert not any(p.requires_grad for p in model.parameters())
    assert "quantization_config" not in model.config.to_dict()
    inject(model, LoraConfig(r=2))


def test_a_classifiers_head_is_left_whole(folder):
    model = open_model(resolve_model(folder("llama")), dtype="nf4", labels=("a", "b"))
    assert type(model.score) is torch.nn.Linear
    assert len(packed_layers(model)) == 14


def test_the_whole_16_bit_model_is_never_in_memory(tmp_path, monkeypatch):
    """Stored in fp32, so that every 16-bit tensor is made, and counted, rather than mapped from the file."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # a ledger counts what its own thread makes
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 4}
    files = resolve_model(tiny_folder(tmp_path, **wide))
    plain, model, ledger = _traced_load(files, "bfloat16")[1], *_traced_load(files, "nf4")
    held = sum(t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers()))
    whole = 2 * sum(layer.in_features * layer.out_features for layer in packed_layers(model).values())
    largest = 512 * 256
    assert held < 0.35 * whole
    assert ledger.peak.bytes < held + 16 * largest, "one matrix at a time, and what quantising it takes"
    assert ledger.peak.bytes < 0.6 * whole <= 0.6 * plain.peak.bytes


def _traced_load(files, dtype):
    ledger = Ledger()
    with ledger, ledger.during("loading", phase="loading"):
        return open_model(files, dtype=dtype, compute_dtype="bfloat16"), ledger


def test_without_bitsandbytes_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="not installed") as refused:
        open_model(resolve_model(folder("llama")), dtype="nf4")
    assert "lorawise[qlora]" in refused.value.cure
    assert importlib.util.find_spec("bitsandbytes") is not None, "the other tests need it"


def test_fused_experts_are_refused_by_name_and_share_before_anything_is_read(tmp_path, monkeypatch):
    config = AutoConfig.for_model(
        "mixtral", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.experts .*\(gate_up_proj, down_proj\).*leaves in 16.* 7\d%"):
        open_model(resolve_model(tmp_path), dtype="nf4")


def test_a_model_that_transformers_quantised_can_still_be_adapted(folder):
    """The guide's own QLoRA script, with our `inject` in place of PEFT's."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(folder("llama"), quantization_config=config, device_map={"": "cpu"})
    adapters = inject(model, LoraConfig(r=2))
    model.train()(IDS, labels=IDS).loss.backward()
    moved = [parameter.grad is not None and bool(parameter.grad.any()) for name, parameter in adapters.trainable()]
    assert any(moved)
