"""What shapes alone say of an adapter is what PEFT and the real model say."""

import json

import peft
import pytest
import torch
from tests.facts.shapes import SETTINGS, config_of, meta_model, write_config
from tests.parity.targets import PRESETS, peft_targets
from tests.peft_oracle import quiet_peft
from tests.tiny import FAMILIES
from transformers import AutoModelForSequenceClassification

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError, ConfigError, ModelError, UsageError
from lorawise.facts import read_model, selected, trainable
from lorawise.lora import eject, inject, target_modules, trainable_parameters

EXPERTS = ("mixtral", "granitemoe", "olmoe", "gpt_oss", "deepseek_v2", "deepseek_v2 biased", "deepseek_v3")
CASE_OF = {"gemma3": "gemma3_text"}
LLAMA_31_8B = {
    "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4_096, "intermediate_size": 14_336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_trainable_and_total_are_pefts_own_count(family: str, preset: str, tmp_path) -> None:
    config = config_of(CASE_OF.get(family, family))
    facts = read_model(write_config(tmp_path, config))
    for r in (3, 8):
        wanted = {"target_modules": peft_targets(family, preset), "fan_in_fan_out": family == "gpt2"}
        with quiet_peft():
            theirs = peft.get_peft_model(meta_model(config), peft.LoraConfig(r=r, task_type="CAUSAL_LM", **wanted))
        ours = trainable(facts, LoraConfig(r=r, target_modules=preset))
        assert (ours, facts.parameters + ours) == theirs.get_nb_trainable_parameters()


@pytest.mark.parametrize("case", [case for case in SETTINGS if "moe" not in case and case not in EXPERTS])
def test_all_linear_of_every_rule_is_pefts_own_count(case: str, tmp_path) -> None:
    config = config_of(case)
    facts = read_model(write_config(tmp_path, config))
    with quiet_peft():
        setting = peft.LoraConfig(
            r=5, task_type="CAUSAL_LM", target_modules="all-linear", fan_in_fan_out="gpt2" in case
        )
        theirs = peft.get_peft_model(meta_model(config), setting)
    ours = trainable(facts, LoraConfig(r=5))
    assert (ours, facts.parameters + ours) == theirs.get_nb_trainable_parameters()


@pytest.mark.parametrize("case", SETTINGS)
def test_a_preset_selects_what_it_selects_on_the_real_model(case: str, tmp_path) -> None:
    config = config_of(case)
    facts, model = read_model(write_config(tmp_path, config)), meta_model(config)
    for preset in PRESETS:
        setting = LoraConfig(r=3, target_modules=preset, rank_pattern={r"experts\.down_proj": 2})
        assert [m.name for m in selected(facts, setting)] == target_modules(model, setting)
        inject(model, setting)
        assert trainable(facts, setting) == trainable_parameters(model).trainable
        eject(model)


SPELLED = [
    {"target_modules": ("q_proj", "mlp.down_proj")},
    {"target_modules": r".*\.1\..*_proj"},
    {"target_modules": "attention", "exclude_modules": ("k_proj", "model.layers.0.self_attn.q_proj")},
    {"target_modules": "attention", "exclude_modules": r".*\.0\..*"},
    {"target_modules": "all-linear", "layers": (1,)},
    {"target_modules": ("lm_head", "q_proj", "embed_tokens")},
    {"target_modules": ("q_proj",), "modules_to_save": ("lm_head", "embed_tokens")},
    {"target_modules": ("q_proj",), "modules_to_save": ("mlp",)},
    {"target_modules": ("lm_head", "q_proj"), "modules_to_save": ("lm_head",)},
    {"target_modules": (), "modules_to_save": ("norm",)},
    {"target_modules": "attention", "bias": "all"},
    {"target_modules": "attention", "bias": "lora_only"},
    {"target_modules": "attention", "bias": "all", "modules_to_save": ("self_attn",)},
    {"rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\..*": 5}},
]


@pytest.mark.parametrize("setting", SPELLED, ids=str)
@pytest.mark.parametrize("case", ["llama biased", "qwen2", "gemma2", "qwen3 tied"])
def test_names_patterns_and_whole_modules_count_as_on_the_real_model(case: str, setting: dict, tmp_path) -> None:
    config, wanted = config_of(case), LoraConfig(r=2, **setting)
    facts, model = read_model(write_config(tmp_path, config)), meta_model(config)
    assert [m.name for m in selected(facts, wanted)] == target_modules(model, wanted)
    inject(model, wanted)
    assert trainable(facts, wanted) == trainable_parameters(model).trainable


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"target_modules": ("q_prj",)}, "q_prj.*did you mean 'q_proj'"),
        ({"target_modules": "all_linear"}, "did you mean 'all-linear'"),
        ({"target_modules": ("q_proj", "input_layernorm")}, "input_layernorm .*no linear layer"),
        ({"target_modules": ("mlp",)}, "layers.0.mlp "),
        ({"target_modules": r".*norm"}, "no linear layer"),
        ({"layers": (0, 9)}, r"names \[9\].*indices from 0 to 1"),
        ({"modules_to_save": ("lm_hed",)}, "did you mean 'lm_head'"),
        ({"target_modules": "qv", "exclude_modules": ("q_proj", "v_proj")}, "selects no module of LlamaForCausalLM"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_as_on_the_real_model(setting: dict, says: str, tmp_path) -> None:
    config, wanted = config_of("llama"), LoraConfig(**setting)
    facts, model = read_model(write_config(tmp_path, config)), meta_model(config)
    with pytest.raises((AdapterError, ConfigError), match=f"(?s){says}") as ours:
        selected(facts, wanted)
    with pytest.raises(UsageError) as theirs:
        target_modules(model, wanted)
    assert type(ours.value) is type(theirs.value)


@pytest.mark.parametrize(("case", "target"), [("gpt2", "wpe"), ("opt", "embed_positions")])
def test_position_embeddings_are_refused_by_name(case: str, target: str, tmp_path) -> None:
    facts = read_model(write_config(tmp_path, config_of(case)))
    with pytest.raises(AdapterError, match=rf"{target} \(position embeddings\)"):
        selected(facts, LoraConfig(target_modules=(target,)))


@pytest.mark.parametrize(
    ("r", "preset", "count"),
    [(16, "attention", 13_631_488), (8, "qv", 3_407_872), (16, "all-linear", 41_943_040), (64, "mlp", 113_246_208)],
)
def test_the_guides_llama_has_the_guides_count(r: int, preset: str, count: int, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_31_8B))
    facts = read_model(tmp_path)
    assert trainable(facts, LoraConfig(r=r, target_modules=preset)) == count
    assert facts.parameters == 8_030_261_248
    assert facts.parameters + 13_631_488 == 8_043_892_736


CLASSIFIED = ("llama", "qwen2 tied", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "falcon", "mixtral")


@pytest.mark.parametrize("case", CLASSIFIED)
def test_a_classifier_has_the_parameters_and_targets_of_the_real_one(case: str, tmp_path) -> None:
    config = config_of(case)
    facts = read_model(write_config(tmp_path, config)).as_classifier(3)
    config.num_labels = 3
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert facts.parameters == model.num_parameters()
    assert facts.architecture == type(model).__name__.replace("Gemma3Text", "Gemma3")
    for preset in ("attention", "all-linear"):
        wanted = LoraConfig(target_modules=preset, modules_to_save=("score",))
        assert [m.name for m in selected(facts, wanted)] == target_modules(model, wanted)
        if case == "llama":
            adapted = trainable(facts, wanted) - 3 * 32
            assert adapted == trainable(facts, wanted.replace(modules_to_save=()))


def test_one_label_is_no_classifier(tmp_path) -> None:
    with pytest.raises(ModelError, match="two or more"):
        read_model(write_config(tmp_path, config_of("llama"))).as_classifier(1)
