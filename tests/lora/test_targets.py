"""What is meant is what is adapted, or it is refused by name."""

import time

import peft
import pytest
from tests.parity.targets import CASES, peft_targets
from tests.peft_oracle import quiet_peft
from tests.tiny import tiny_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorawise.base.errors import AdapterError, ConfigError
from lorawise.lora import LoraConfig, inject, target_modules

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def peft_selects(model: nn.Module, **settings: object) -> list[str]:
    gpt2 = type(model).__name__.startswith("GPT2")
    with quiet_peft():
        tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=gpt2, **settings))
    return list(tuned.base_model.targeted_module_names)


def moe(family: str = "mixtral") -> nn.Module:
    own = {
        "mixtral": {"num_local_experts": 4},
        "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
        "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    }[family]
    config = AutoConfig.for_model(
        family, vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **own,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(("family", "preset"), CASES)
def test_a_preset_selects_what_peft_selects_for_its_names(family: str, preset: str) -> None:
    ours = target_modules(tiny_model(family), LoraConfig(target_modules=preset))
    assert ours == peft_selects(tiny_model(family), target_modules=peft_targets(family, preset))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"target_modules": ("q_proj", "mlp.down_proj")}, {"target_modules": ["q_proj", "mlp.down_proj"]}),
        ({"target_modules": r".*\.1\..*_proj"}, {"target_modules": r".*\.1\..*_proj"}),
        (
            {"target_modules": "attention", "exclude_modules": ("k_proj", "model.layers.0.self_attn.q_proj")},
            {"target_modules": ATTENTION, "exclude_modules": ["k_proj", "model.layers.0.self_attn.q_proj"]},
        ),
        (
            {"target_modules": "attention", "exclude_modules": r".*\.0\..*"},
            {"target_modules": ATTENTION, "exclude_modules": r".*\.0\..*"},
        ),
        ({"target_modules": "attention", "layers": (1,)}, {"target_modules": ATTENTION, "layers_to_transform": [1]}),
        ({"target_modules": ("lm_head", "q_proj")}, {"target_modules": ["lm_head", "q_proj"]}),
        (
            {"target_modules": ("lm_head", "q_proj"), "modules_to_save": ("lm_head",)},
            {"target_modules": ["lm_head", "q_proj"], "modules_to_save": ["lm_head"]},
        ),
    ],
    ids=lambda case: str(case)[:50],
)
def test_names_patterns_excludes_and_layers_mean_what_they_mean_in_peft(ours: dict, theirs: dict) -> None:
    assert target_modules(tiny_model("llama"), LoraConfig(**ours)) == peft_selects(tiny_model("llama"), **theirs)


def test_rank_and_alpha_patterns_mean_what_they_mean_in_peft() -> None:
    patterns = {"rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\..*": 5}, "alpha_pattern": {"1.self_attn.v_proj": 7.0}}
    model = tiny_model("llama")
    adapters = inject(model, LoraConfig(r=2, alpha=4, target_modules="all-linear", **patterns))
    with quiet_peft():
        tuned = peft.get_peft_model(
            tiny_model("llama"), peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", **patterns)
        )
    for name, layer in adapters.layers.items():
        theirs = tuned.base_model.model.get_submodule(name)
        assert layer.ranks == (theirs.r["default"],)
        assert layer.scaling == pytest.approx((theirs.scaling["default"],))
    assert adapters.layers["model.layers.1.mlp.up_proj"].ranks == (5,)


def test_a_classifier_head_is_not_a_target_of_all_linear() -> None:
    config = tiny_model("llama").config
    model = AutoModelForSequenceClassification.from_config(config)
    assert "score" not in target_modules(model, LoraConfig())
    assert "score" in target_modules(model, LoraConfig(target_modules=("score", "q_proj")))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target_modules": ("q_prj",)}, "q_prj.*did you mean 'q_proj'"),
        ({"target_modules": ("q_proj", "query")}, "'query', which no module is called"),
        ({"target_modules": "all_linear"}, "all_linear.*did you mean 'all-linear'"),
        ({"target_modules": "q_proj"}, r"write a list: \[q_proj\]"),
        ({"target_modules": ("mlp",)}, "LlamaMLP"),
        ({"target_modules": ("q_proj", "input_layernorm")}, "LlamaRMSNorm"),
        ({"target_modules": r".*norm"}, "LlamaRMSNorm"),
        ({"exclude_modules": ("k_prj",)}, "exclude_modules names 'k_prj'.*did you mean 'k_proj'"),
        ({"modules_to_save": ("lm_hed",)}, "modules_to_save names 'lm_hed'.*did you mean 'lm_head'"),
        ({"layers": (0, 9)}, r"names \[9\].*indices from 0 to 1"),
        ({"target_modules": "qv", "exclude_modules": ("self_attn.q_proj", "v_proj")}, "no module"),
        ({"target_modules": "(a+)+" + "x" * 5_000}, "characters"),
    ],
    ids=str,
)  # fmt: skip
def test_a_target_that_cannot_be_meant_is_refused(settings: dict, says: str) -> None:
    with pytest.raises((AdapterError, ConfigError), match=f"(?s){says}"):
        target_modules(tiny_model("llama"), LoraConfig(**settings))


def test_a_hostile_pattern_is_stopped_in_time() -> None:
    start = time.monotonic()
    with pytest.raises(ConfigError, match="backtracks without end"):
        target_modules(tiny_model("llama"), LoraConfig(target_modules=r"(?:.|..|...)+(?:.|..|...)+(?<!j)(?<=!)"))
    with pytest.raises(ConfigError, match="backtracks without end"):
        inject(tiny_model("llama"), LoraConfig(rank_pattern={r"(?:.|..|...)+(?:.|..|...)+(?<=!)": 3}))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize(
    ("target", "keys"),
    [
        ("mlp", "gate_up_proj down_proj"),
        (("q_proj", "experts"), "gate_up_proj down_proj"),
        (("gate_up_proj",), "gate_up_proj"),
        (("experts.down_proj",), "down_proj"),
        (r".*experts", "gate_up_proj down_proj"),
        (r".*\.experts\.down.*", "down_proj"),
    ],
    ids=str,
)
def test_fused_experts_are_named_by_their_parameters_and_meant_by_their_module(
    family: str, target: str, keys: str
) -> None:
    names = target_modules(moe(family), LoraConfig(target_modules=target))
    experts = [name for name in names if "experts" in name]
    assert experts == [f"model.layers.{i}.mlp.experts.{key}" for i in (0, 1) for key in keys.split()]
    assert [name for name in names if name not in experts] == [
        f"model.layers.{i}.self_attn.q_proj" for i in (0, 1) if "q_proj" in target
    ]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_all_linear_is_attention_and_experts_and_no_router(family: str) -> None:
    model = moe(family)
    assert {name.rpartition(".")[2] for name in target_modules(model, LoraConfig())} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj",
    }  # fmt: skip
    without = target_modules(model, LoraConfig(exclude_modules=("experts",)))
    assert without == target_modules(model, LoraConfig(target_modules="attention"))
    assert without == target_modules(model, LoraConfig(target_modules="all-linear", modules_to_save=("mlp",)))


@pytest.mark.parametrize(("family", "target"), [("gpt2", "wpe"), ("opt", "embed_positions")])
def test_position_embeddings_are_refused_by_name(family: str, target: str) -> None:
    with pytest.raises(AdapterError, match=rf"{target} \(position embeddings\)"):
        target_modules(tiny_model(family), LoraConfig(target_modules=(target,)))
