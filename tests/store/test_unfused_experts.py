"""Adapters of transformers 4, an expert at a time, are the fused ones that PEFT and a dense reference make of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.peft_oracle import peft_loaded
from tests.tiny_experts import tiny_mixture
from torch import Tensor, nn

from lorawise.base.errors import AdapterError
from lorawise.lora import attach, eject
from lorawise.store import load_adapter, save_adapter

LEAVES = {"mixtral": ("w1", "w3", "w2"), "qwen3_moe": ("gate_proj", "up_proj", "down_proj")}
OWNERS = {"mixtral": "block_sparse_moe", "qwen3_moe": "mlp"}
COUNTS = {"mixtral": 4, "qwen3_moe": 8}
IDS = torch.randint(4, 64, (2, 10), generator=torch.Generator().manual_seed(0))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def old_adapter(folder: Path, family: str, leaves: tuple[str, ...], *, inner: int = 24, **fields: Any) -> Path:
    """As PEFT saved it under transformers 4: a pair for each linear layer of each expert, and for q_proj."""
    draw = torch.Generator().manual_seed(3)
    tensors = {}
    widths = dict(zip(LEAVES[family], ((32, inner), (32, inner), (inner, 32)), strict=True))
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 5, "lora_dropout": 0.0, "bias": "none",
        "target_modules": ["q_proj", *leaves], "base_model_name_or_path": "b",
    } | fields  # fmt: skip

    def add(module: str, width: int, out: int) -> None:
        r = next((r for key, r in config.get("rank_pattern", {}).items() if module.endswith(key)), 3)
        tensors[f"base_model.model.{module}.lora_A.weight"] = 0.3 * torch.randn(r, width, generator=draw)
        tensors[f"base_model.model.{module}.lora_B.weight"] = 0.3 * torch.randn(out, r, generator=draw)

    for layer in (0, 1):
        add(f"model.layers.{layer}.self_attn.q_proj", 32, 32)
        for expert in range(COUNTS[family]):
            for leaf in leaves:
                add(f"model.layers.{layer}.{OWNERS[family]}.experts.{expert}.{leaf}", *widths[leaf])
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def dense(model: nn.Module, folder: Path, family: str) -> Tensor:
    """Logits of the model with every expert's s·B·A added where transformers 5 keeps that expert."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    gate, up, down = LEAVES[family]
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, a in tensors.items():
            if "lora_A" not in key:
                continue
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            scale = config["lora_alpha"] / (len(a) ** 0.5 if config.get("use_rslora") else len(a))
            delta = scale * tensors[key.replace("lora_A", "lora_B")] @ a
            if "experts" not in module:
                parameters[f"{module}.weight"].add_(delta)
                continue
            owner, _, rest = module.replace("block_sparse_moe", "mlp").partition(".experts.")
            expert, _, leaf = rest.partition(".")
            if leaf == down:
                parameters[f"{owner}.experts.down_proj"][int(expert)].add_(delta)
            else:
                half = parameters[f"{owner}.experts.gate_up_proj"][int(expert)].chunk(2)[(gate, up).index(leaf)]
                half.add_(delta)
    return logits(model)


CASES: dict[str, dict[str, Any]] = {
    "all three": {},
    "down alone": {"keep": 1},
    "gate and up": {"keep": 2},
    "gate alone": {"keep": 3},
    "rsLoRA": {"use_rslora": True},
    "hidden = 2 inner": {"inner": 16},
    "hidden = inner": {"inner": 32},
}


@pytest.mark.parametrize("family", LEAVES)
@pytest.mark.parametrize("case", CASES)
def test_experts_apart_are_read_as_the_fused_experts_they_are(family: str, case: str, tmp_path: Path) -> None:
    fields = dict(CASES[case])
    gate, up, down = LEAVES[family]
    leaves = {0: (gate, up, down), 1: (down,), 2: (gate, up), 3: (gate,)}[fields.pop("keep", 0)]
    inner = fields.get("inner", 24)
    sizes = {"intermediate_size": inner} | ({"moe_intermediate_size": inner} if family == "qwen3_moe" else {})
    folder = old_adapter(tmp_path / "old", family, leaves, **fields)
    expected = dense(tiny_mixture(family, **sizes), folder, family)
    ours = tiny_mixture(family, **sizes)
    base = logits(ours)
    weights = load_adapter(folder)
    attach(ours, {"old": weights})
    assert (expected - base).abs().max() > 1e-2
    torch.testing.assert_close(logits(ours), expected, atol=2e-4, rtol=2e-4)
    eject(ours)

    save_adapter(tmp_path / "new", weights, base="b")
    attach(ours, {"new": load_adapter(tmp_path / "new")})
    torch.testing.assert_close(logits(ours), expected, atol=2e-4, rtol=2e-4)


@pytest.mark.filterwarnings("ignore:.*_pattern keys did not match any targeted module")
@pytest.mark.parametrize("family", LEAVES)
def test_peft_makes_the_same_of_the_old_file(family: str, tmp_path: Path) -> None:
    folder = old_adapter(tmp_path / "old", family, LEAVES[family])
    theirs = peft_loaded(tiny_mixture(family), folder)
    ours = tiny_mixture(family)
    attach(ours, {"old": load_adapter(folder)})
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-4, rtol=2e-4)


def test_an_expert_that_is_missing_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = old_adapter(tmp_path / "old", "mixtral", LEAVES["mixtral"])
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    at = "base_model.model.model.layers.0.block_sparse_moe.experts"
    save_file({k: v for k, v in tensors.items() if not k.startswith(f"{at}.2.w1.")}, path)
    with pytest.raises(AdapterError, match=r"experts\.\*\.w1: not every expert"):
        load_adapter(folder)
    save_file(tensors | {f"{at}.2.w1.lora_A.weight": torch.zeros(3, 30)}, path)
    with pytest.raises(AdapterError, match=r"experts\.\*\.w1: A "):
        load_adapter(folder)
    wrong = {k: v for k, v in tensors.items() if ".w2." not in k}
    wrong |= {f"{at}.{e}.w2.lora_A.weight": torch.zeros(3, 20) for e in range(4)}
    save_file(wrong | {f"{at}.{e}.w2.lora_B.weight": torch.zeros(32, 3) for e in range(4)}, path)
    with pytest.raises(AdapterError, match=r"mlp\.experts: gate 24 × 32, up 24 × 32, down 32 × 20"):
        load_adapter(folder)


def test_a_router_that_was_adapted_is_refused_by_name_where_it_is_a_bare_parameter_now(tmp_path: Path) -> None:
    folder = old_adapter(tmp_path / "old", "qwen3_moe", LEAVES["qwen3_moe"])
    path = folder / "adapter_model.safetensors"
    gate = "base_model.model.model.layers.0.mlp.gate"
    save_file(
        load_file(path) | {f"{gate}.lora_A.weight": torch.ones(3, 32), f"{gate}.lora_B.weight": torch.ones(8, 3)}, path
    )
    fields = json.loads((folder / "adapter_config.json").read_text())
    fields["target_modules"].append("gate")
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.raises(AdapterError, match=r"model\.layers\.0\.mlp\.gate: not adaptable"):
        attach(tiny_mixture("qwen3_moe"), {"old": load_adapter(folder)})
