"""A rule gives what transformers' own model of the same config has, parameter by parameter."""

from pathlib import Path

import pytest
import torch
from tests.facts.shapes import SETTINGS, config_of, meta_model, write_config
from torch import nn
from transformers import AutoConfig

from lorawise.facts import ModelFacts, read_model
from lorawise.facts.families import families
from lorawise.facts.model import Matrix
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
        (name, expected_kind(module)) for name, module in model.named_modules() if bank_kind(module)
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
