"""Adapters on experts merged into folders where experts lie apart, fused, or fused under another name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.laws.plain_loop import rouse
from tests.tiny import tiny_model
from tests.tiny_experts import EXPERT_FAMILIES, SPARSE_LAYERS, tiny_mixture
from tests.workbench import byte_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError
from lorawise.lora import attach, eject, inject
from lorawise.merging.base import is_linear
from lorawise.merging.merge import merge
from lorawise.merging.verify import verify
from lorawise.store import load_adapter, save_adapter

IDS = torch.randint(4, 64, (2, 10), generator=torch.Generator().manual_seed(0))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def opened(folder: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    return model


def case(
    folder: Path, family: str, dtype: torch.dtype = torch.float32, *, shard: str = "40KB", **config: object
) -> Tensor:
    """A sharded base and an adapter over it; the logits of the base with the adapter beside it."""
    model = tiny_mixture(family, dtype)
    model.save_pretrained(folder / "base", max_shard_size=shard)
    adapters = inject(model, LoraConfig(**({"r": 3, "scaling": 1.5} | config)))  # type: ignore[arg-type]
    rouse(adapters)
    save_adapter(folder / "adapter", adapters.weights("default"), base="b")
    return logits(model)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize("targets", ["all-linear", ("gate_up_proj",), ("experts.down_proj",)])
def test_a_merged_mixture_answers_as_the_adapter_beside_it(family: str, targets: str, tmp_path: Path) -> None:
    expected = case(tmp_path, family, target_modules=targets, rank_pattern={r"experts\.down_proj": 2})
    result = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    torch.testing.assert_close(logits(opened(tmp_path / "out")), expected, atol=2e-4, rtol=2e-4)
    assert result.retention == pytest.approx(1, abs=1e-5)
    experts = [layer.name for layer in result.layers if ".experts." in layer.name]
    assert len(experts) == len(set(experts)) == SPARSE_LAYERS[family] * (2 if targets == "all-linear" else 1)
    names = [{p.name: sorted(load_file(p)) for p in (tmp_path / f).glob("*.safetensors")} for f in ("base", "out")]
    assert names[0] == names[1]
    assert len(names[0]) > 2


def test_two_adapters_on_experts_are_merged_as_their_weighted_sum(tmp_path: Path) -> None:
    case(tmp_path, "gpt_oss", target_modules=("experts",))
    (tmp_path / "adapter").rename(tmp_path / "one")
    model = tiny_mixture("gpt_oss")
    adapters = inject(model, LoraConfig(r=2, target_modules="all-linear"))
    rouse(adapters, seed=5)
    other = adapters.weights("default")
    save_adapter(tmp_path / "two", other, base="b")
    eject(model)
    adapters = attach(model, {"one": load_adapter(tmp_path / "one"), "two": other})
    adapters.stack({"one": 0.5, "two": -1.0})
    merge(tmp_path / "base", {tmp_path / "one": 0.5, tmp_path / "two": -1.0}, tmp_path / "out")
    torch.testing.assert_close(logits(opened(tmp_path / "out")), logits(model), atol=2e-4, rtol=2e-4)


def test_a_16_bit_mixture_keeps_what_rounding_leaves_and_says_it_by_layer(tmp_path: Path) -> None:
    case(tmp_path, "qwen3_moe", torch.bfloat16, target_modules="all-linear")
    result = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert 0.9 < result.retention < 1.01
    model = tiny_mixture("qwen3_moe", torch.bfloat16)
    attach(model, {"a": load_adapter(tmp_path / "adapter")}).merge()
    tensors: dict[str, Tensor] = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        tensors |= load_file(path)
    fused = next(
        p for name, p in model.named_parameters() if name.endswith("0.mlp.experts.base_layer.base_layer.gate_up_proj")
    )
    for expert in range(8):
        halves = [tensors[f"model.layers.0.mlp.experts.{expert}.{leaf}.weight"] for leaf in ("gate_proj", "up_proj")]
        assert torch.equal(torch.cat(halves), fused[expert])  # fp32 sums rounded once, on disk and in memory


def test_verify_tells_a_merged_mixture_from_the_base(tmp_path: Path) -> None:
    case(tmp_path, "olmoe", target_modules="mlp")
    byte_tokenizer(tmp_path / "base")
    model = tiny_mixture("olmoe", vocab_size=260)
    model.save_pretrained(tmp_path / "base")
    adapters = inject(model, LoraConfig(r=2, target_modules="mlp"))
    rouse(adapters)
    save_adapter(tmp_path / "a", adapters.weights("default"), base="b")
    for path in (tmp_path / "base").glob("*.safetensors*"):
        if path.name != "model.safetensors":
            path.unlink()
    merge(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    assert verify(tmp_path / "base", tmp_path / "a", tmp_path / "out").same
    assert not verify(tmp_path / "base", tmp_path / "a", tmp_path / "base").same


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"num_experts": 4}, "the base has no model.layers.0.mlp.experts.4.gate_proj.weight"),
        ({"num_experts": 16}, "the adapter is for 8 experts, the base has more"),
        ({"moe_intermediate_size": 20}, r"is F32 \[20, 32\], expected plain \[24, 32\]"),
    ],
    ids=str,
)
def test_another_mixture_is_refused_before_a_byte_is_written(other: dict[str, int], says: str, tmp_path: Path) -> None:
    case(tmp_path, "qwen3_moe", target_modules=("experts",))
    tiny_mixture("qwen3_moe", **other).save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError, match=says):
        merge(tmp_path / "other", tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dense_base_is_refused_by_the_name_of_the_experts(tmp_path: Path) -> None:
    case(tmp_path, "mixtral", target_modules=("experts",))
    tiny_model("llama").save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError, match=r"mlp\.experts\.gate_up_proj: the base has no such experts"):
        merge(tmp_path / "other", tmp_path / "adapter", tmp_path / "out")


def test_nf4_is_never_applied_to_experts_or_routers_which_bitsandbytes_leaves_alone(tmp_path: Path) -> None:
    for family in ("mixtral", "qwen3_moe", "granitemoe"):
        tiny_mixture(family).save_pretrained(tmp_path / family)
        tensors = load_file(tmp_path / family / "model.safetensors")
        rounded = {name for name, tensor in tensors.items() if is_linear(name, tuple(tensor.shape))}
        assert {name.rpartition(".self_attn.")[2] for name in rounded} == {f"{leaf}_proj.weight" for leaf in "qkvo"}, (
            json.dumps(sorted(rounded))
        )
