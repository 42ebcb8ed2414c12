"""A rule gives what transformers' own model of the same config has, parameter by parameter."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.facts.shapes import SETTINGS, config_of, meta_model, write_config
from torch import nn
from transformers import AutoConfig

from lorawise.base.errors import ModelError
from lorawise.facts import ModelFacts, read_model
from lorawise.facts.families import families
from lorawise.facts.model import Matrix
from lorawise.lora.experts_bank import ExpertsBank
from lorawise.lora.targets import bank_kind


def real_parameters(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Every parameter by name and shape, a tied head under its own name too."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: tuple(parameter.shape) for name, parameter in named}


def facts_parameters(facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {parameter.name: parameter.shape for parameter in facts.others}
    for m in facts.matrices:
        found[m.name if m.kind == "experts" else f"{m.name}.weight"] = weight_shape(m)
        if m.bias:
            key = f"{m.name}_bias" if m.kind == "experts" else f"{m.name}.bias"
            found[key] = (m.experts, m.out_features) if m.kind == "experts" else (m.out_features,)
    return found


def weight_shape(m: Matrix) -> tuple[int, ...]:
    if m.kind == "experts":
        return (m.experts, m.out_features, m.in_features)
    return (m.out_features, m.in_features) if m.kind == "linear" else (m.in_features, m.out_features)


def expected_kind(module: nn.Module) -> str:
    kind = bank_kind(module)
    assert kind is not None
    return {"LinearBank": "linear", "Conv1DBank": "conv1d", "EmbeddingBank": "embedding"}[kind.__name__]


def test_every_rule_is_held_against_transformers() -> None:
    assert {case.split(" ")[0] for case in SETTINGS} == set(families())


@pytest.mark.parametrize("case", SETTINGS)
def test_a_rule_gives_the_parameters_of_transformers_own_model(case: str, tmp_path: Path) -> None:
    config = config_of(case)
    facts = read_model(write_config(tmp_path, config))
    model = meta_model(config)
    real, ours = real_parameters(model), facts_parameters(facts)
    if case.startswith("gpt_oss"):  # its experts are kept (in, out)
        real = {k: (v[0], v[2], v[1]) if len(v) == 3 else v for k, v in real.items()}
    assert ours == real
    assert facts.parameters == model.num_parameters()
    assert facts.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert facts.architecture == type(model).__name__
    kinds = {m.name: m.kind for m in facts.matrices if m.kind != "experts"}
    assert list(kinds.items()) == [
        (name, expected_kind(module))
        for name, module in model.named_modules()
        if bank_kind(module) not in (None, ExpertsBank)
    ]


@pytest.mark.parametrize("name", families())
def test_what_a_config_leaves_out_is_what_transformers_takes(name: str) -> None:
    family, own = families()[name], AutoConfig.for_model(name)
    for key, value in family.defaults.items():
        assert getattr(own, key) == value or (value is None and key in own.to_dict()), key
    assert own.tie_word_embeddings == family.tied


@pytest.mark.parametrize("name", families())
def test_a_family_of_default_size_has_the_parameters_of_transformers(name: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(name)
    if name == "olmoe":
        config.num_experts = 64
    facts = read_model(write_config(tmp_path, config))
    model = meta_model(config)
    assert facts.parameters == model.num_parameters()
    assert all(parameter.device == torch.device("meta") for parameter in model.parameters())


@given(
    case=st.sampled_from(
        ["llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "falcon", "olmo2", "cohere", "opt", "mixtral"]
    ),
    layers=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    width=st.integers(1, 6),
    inner=st.integers(1, 90),
    vocab=st.integers(1, 300),
    tied=st.booleans(),
)
def test_sizes_of_every_kind_give_transformers_parameters(
    case: str, layers: int, groups: int, width: int, inner: int, vocab: int, tied: bool, tmp_path_factory: Any
) -> None:
    sizes = {
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": groups, "hidden_size": 8 * width,
        "intermediate_size": inner, "vocab_size": vocab, "tie_word_embeddings": tied, "pad_token_id": None,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    sizes |= {"ffn_dim": inner, "word_embed_proj_dim": 8 * width} if case == "opt" else {}
    config = AutoConfig.for_model(case, **{**SETTINGS[case], **sizes})
    facts = read_model(write_config(tmp_path_factory.mktemp("sizes"), config))
    model = meta_model(config)
    assert facts.parameters == model.num_parameters()
    assert facts.num_layers == layers
    assert sum(m.layer == layers - 1 for m in facts.matrices) == len(facts.decoder) / layers


JUNK: tuple[Any, ...] = (
    None,
    "x",
    "",
    [],
    [1],
    ["a"],
    {},
    {"a": 1},
    -1,
    0,
    1,
    2.5,
    True,
    10**12,
    1e308,
    "4096",
    [None],
)
ALSO = ("quantization_config", "architectures", "tie_word_embeddings", "dtype", "sliding_window", "vision_config")
CONFIGS = {
    case: json.loads(config_of(case).to_json_string()) for case in ("llama", "falcon", "qwen3_moe", "deepseek_v2")
}


@given(case=st.sampled_from(sorted(CONFIGS)), data=st.data())
def test_no_value_in_a_config_gives_a_traceback(case: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    values = CONFIGS[case]
    keys = st.sampled_from([*values, *ALSO])
    changes = data.draw(st.dictionaries(keys, st.sampled_from(JUNK), min_size=1, max_size=3))
    folder = tmp_path_factory.mktemp("junk")
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    with contextlib.suppress(ModelError):
        assert read_model(folder).parameters > 0
