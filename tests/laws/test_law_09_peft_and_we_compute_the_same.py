"""Law 9: PEFT given our adapter, and we given PEFT's, compute the same logits (fp32, 1e-5)."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.peft_oracle import (
    adapted_by_peft,
    logits_of,
    peft_injected,
    peft_loaded,
    peft_saved,
    tiny_classifier,
)
from tests.tiny import tiny_model
from transformers import PreTrainedModel

from lorawise import LoraConfig
from lorawise.lora import adapters_of, attach, inject
from lorawise.lora.wrapping import base_modules
from lorawise.store import load_adapter, save_adapter

LLAMA = tiny_model("llama", num_hidden_layers=3)
THE_SAME = {"atol": 1e-5, "rtol": 1e-5}
Build = Callable[[], PreTrainedModel]


@pytest.fixture(autouse=True)
def _llama_is_left_as_it_was() -> Iterator[None]:
    before = logits_of(LLAMA)
    yield
    torch.testing.assert_close(logits_of(LLAMA), before, rtol=0, atol=0)


def llama() -> PreTrainedModel:
    return tiny_model("llama", num_hidden_layers=3)


def classifier() -> PreTrainedModel:
    return tiny_classifier()


def family(name: str, **overrides: Any) -> Build:
    return lambda: tiny_model(name, **overrides)


def _randomised(model: PreTrainedModel, config: LoraConfig) -> None:
    """Ours, injected, with everything that trains moved at random."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in inject(model, config).trainable():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def _peft_reads_ours(build: Build, config: LoraConfig, folder: Path, *, named: bool = True) -> None:
    ours = build()
    base = logits_of(ours)
    _randomised(ours, config)
    expected = logits_of(ours)
    assert (expected - base).abs().max() > 1e-3
    names = [name for name, _ in base_modules(ours)] if named else ()
    save_adapter(folder, adapters_of(ours).weights("default"), base="b", modules=names)
    theirs = peft_loaded(build(), folder)
    torch.testing.assert_close(logits_of(theirs), expected, **THE_SAME)
    layers = adapters_of(ours).layers
    assert adapted_by_peft(theirs) == pytest.approx({name: layer.scaling[0] for name, layer in layers.items()})


def _we_read_pefts(build: Build, folder: Path, **fields: Any) -> None:
    theirs = peft_injected(build(), **fields)
    ours = build()
    base = logits_of(ours)
    expected = logits_of(theirs)
    assert (expected - base).abs().max() > 1e-3
    attach(ours, {"theirs": load_adapter(peft_saved(theirs, folder))})
    torch.testing.assert_close(logits_of(ours), expected, **THE_SAME)
    assert {name: layer.scaling[0] for name, layer in adapters_of(ours).layers.items()} == pytest.approx(
        adapted_by_peft(theirs)
    )


OURS: dict[str, tuple[Build, LoraConfig]] = {
    "two layers of three": (llama, LoraConfig(r=3, target_modules="attention", layers=(0, 2))),
    "all but some": (llama, LoraConfig(r=3, target_modules="all-linear", exclude_modules=("o_proj", "down_proj"))),
    "all but a regex": (llama, LoraConfig(r=3, target_modules="all-linear", exclude_modules=r".*\.1\.mlp\..*")),
    "a regex": (llama, LoraConfig(r=3, target_modules=r".*layers\.[01]\.self_attn\.(q|v)_proj")),
    "full names": (llama, LoraConfig(r=3, target_modules=("layers.1.self_attn.q_proj", "lm_head"))),
    "rsLoRA": (llama, LoraConfig(r=3, rslora=True, scaling=1.7)),
    "a scaling that alpha cannot hold exactly": (llama, LoraConfig(r=3, scaling=0.1)),
    "own ranks and alphas": (
        llama,
        LoraConfig(
            r=3,
            alpha=5,
            rank_pattern={"q_proj": 2, r"layers\.1\..*": 5},
            alpha_pattern={r"layers\.(0|2)\..*proj": 1.5, "q_proj": 9},
        ),
    ),
    "patterns whose order decides": (
        llama,
        LoraConfig(r=3, alpha=5, rank_pattern={"q_proj": 2, r".*layers.*": 4}, alpha_pattern={"z|v_proj": 9, ".*": 2}),
    ),
    "patterns of which one matches nothing": (
        llama,
        LoraConfig(
            r=3, alpha=5, target_modules="qv", rank_pattern={"c_attn": 2}, alpha_pattern={"v_proj": 9, "fc1": 2}
        ),
    ),
    "rsLoRA with own ranks": (llama, LoraConfig(r=4, rslora=True, scaling=2.0, rank_pattern={"mlp.*": 2})),
    "a head trained in full": (llama, LoraConfig(r=3, target_modules="qv", modules_to_save=("lm_head",))),
    "embeddings": (llama, LoraConfig(r=3, target_modules=("embed_tokens", "q_proj"))),
    "Gemma's scaled embeddings": (family("gemma3"), LoraConfig(r=3, target_modules=("embed_tokens", "q_proj"))),
    "Conv1D": (family("gpt2"), LoraConfig(r=3, target_modules="attention")),
    "Conv1D and embeddings": (family("gpt2"), LoraConfig(r=3, target_modules=("c_attn", "wte"))),
    "biases of the adapted": (family("qwen2"), LoraConfig(r=3, target_modules="qv", bias="lora_only")),
    "every bias": (family("gpt_neox"), LoraConfig(r=3, target_modules="mlp", bias="all")),
    "a classifier": (classifier, LoraConfig(r=3, target_modules="all-linear", modules_to_save=("score",))),
}


@pytest.mark.parametrize("case", OURS)
def test_peft_computes_what_we_trained(case: str, tmp_path: Path) -> None:
    build, config = OURS[case]
    _peft_reads_ours(build, config, tmp_path / "adapter")


@pytest.mark.parametrize("case", ["two layers of three", "all but some", "Conv1D", "patterns whose order decides"])
def test_peft_adapts_exactly_our_modules_when_only_they_are_known(case: str, tmp_path: Path) -> None:
    build, config = OURS[case]
    _peft_reads_ours(build, config, tmp_path / "adapter", named=False)


def test_patterns_whose_order_decides_survive_peft_that_sorts_them(tmp_path: Path) -> None:
    build, config = OURS["patterns whose order decides"]
    _peft_reads_ours(build, config, tmp_path / "ours")
    once = peft_loaded(build(), tmp_path / "ours")
    twice = peft_loaded(build(), peft_saved(once, tmp_path / "theirs"))
    assert adapted_by_peft(twice) == adapted_by_peft(once)
    assert len(set(adapted_by_peft(once).values())) == 3


THEIRS: dict[str, tuple[Build, dict[str, Any]]] = {
    "names": (llama, {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]}),
    "a regex": (llama, {"r": 3, "target_modules": r".*\.(q|v)_proj"}),
    "a regex with our preset's name": (llama, {"r": 3, "target_modules": r"lm_head|mlp"}),
    "all-linear": (llama, {"r": 3, "target_modules": "all-linear"}),
    "rsLoRA": (llama, {"r": 3, "lora_alpha": 7, "use_rslora": True, "target_modules": ["q_proj"]}),
    "a whole alpha that is a float": (llama, {"r": 3, "lora_alpha": 2.5, "target_modules": ["q_proj"]}),
    "own ranks and alphas": (
        llama,
        {
            "r": 3,
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"q_proj": 5, r"^model\.layers\.2\.mlp\.up_proj": 2},
            "alpha_pattern": {r"layers\.1\.self_attn\.(q|v)_proj": 30},
        },
    ),
    "some layers": (llama, {"r": 3, "target_modules": ["q_proj"], "layers_to_transform": [0, 2]}),
    "one layer": (llama, {"r": 3, "target_modules": ["q_proj"], "layers_to_transform": 1}),
    "a layers_pattern": (
        llama,
        {"r": 3, "target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "excluded names": (llama, {"r": 3, "target_modules": "all-linear", "exclude_modules": ["q_proj", "lm_head"]}),
    "an excluding regex": (llama, {"r": 3, "target_modules": ["q_proj"], "exclude_modules": r".*\.1\..*"}),
    "a head trained in full": (llama, {"r": 3, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "a module named by its ending": (llama, {"r": 3, "target_modules": ["q_proj"], "modules_to_save": ["head"]}),
    "embeddings": (llama, {"r": 3, "target_modules": ["embed_tokens", "v_proj"]}),
    "a head": (llama, {"r": 3, "target_modules": ["lm_head"]}),
    "Conv1D": (family("gpt2"), {"r": 3, "target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}),
    "biases of the adapted": (family("qwen2"), {"r": 3, "target_modules": ["q_proj"], "bias": "lora_only"}),
    "every bias": (family("gpt_neox"), {"r": 3, "target_modules": ["dense"], "bias": "all"}),
    "a classifier": (classifier, {"r": 3, "target_modules": ["q_proj"], "task_type": "SEQ_CLS"}),
    "no task": (llama, {"r": 3, "target_modules": ["q_proj"], "task_type": None}),
    "gaussian": (llama, {"r": 3, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
    "orthogonal": (llama, {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}),
}


@pytest.mark.parametrize("case", THEIRS)
def test_we_compute_what_peft_trained(case: str, tmp_path: Path) -> None:
    build, fields = THEIRS[case]
    _we_read_pefts(build, tmp_path / "adapter", **fields)


@pytest.mark.parametrize("case", THEIRS)
def test_what_peft_trained_goes_through_us_back_to_peft(case: str, tmp_path: Path) -> None:
    build, fields = THEIRS[case]
    theirs = peft_injected(build(), **fields)
    weights = load_adapter(peft_saved(theirs, tmp_path / "theirs"))
    save_adapter(tmp_path / "ours", weights, base="b")
    again = peft_loaded(build(), tmp_path / "ours")
    torch.testing.assert_close(logits_of(again), logits_of(theirs), **THE_SAME)
    assert adapted_by_peft(again) == pytest.approx(adapted_by_peft(theirs))


@pytest.mark.parametrize("tied", [False, True])
def test_whole_embeddings_that_peft_saved_beside_the_adapter_are_used(tied: bool, tmp_path: Path) -> None:
    theirs = peft_injected(tiny_model("llama", tie_word_embeddings=tied, seed=3), r=3, target_modules=["q_proj"])
    theirs.save_pretrained(str(tmp_path), save_embedding_layers=True)
    ours = tiny_model("llama", tie_word_embeddings=tied, seed=3)
    with torch.no_grad():
        ours.get_input_embeddings().weight.mul_(0.5)
    assert (logits_of(ours) - logits_of(theirs)).abs().max() > 1e-2
    attach(ours, {"theirs": load_adapter(tmp_path)})
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), **THE_SAME)


# PEFT sorts the keys of its patterns when it saves, so only sorted ones mean the same before and after.
patterns = st.sampled_from(
    ["q_proj", r"layers\.1\..*", r"(q|v)_proj", r"self_attn\..*", "up_proj|o_proj", r".*\.2\..*"]
)


@settings(max_examples=15, deadline=None)
@given(
    r=st.integers(1, 6),
    alpha=st.one_of(st.integers(1, 40), st.floats(0.5, 40)),
    rslora=st.booleans(),
    targets=st.sampled_from([["q_proj"], ["v_proj", "up_proj"], ["layers.1.self_attn.q_proj", "o_proj"], "all-linear"]),
    ranks=st.dictionaries(patterns, st.integers(1, 6), max_size=2).map(lambda table: dict(sorted(table.items()))),
    alphas=st.dictionaries(patterns, st.integers(1, 40), max_size=2).map(lambda table: dict(sorted(table.items()))),
)
def test_any_setting_of_peft_computes_the_same_here(
    r: int, alpha: float, rslora: bool, targets: Any, ranks: dict[str, int], alphas: dict[str, int]
) -> None:
    theirs = peft_injected(
        llama(),
        **{"r": r, "lora_alpha": alpha, "use_rslora": rslora, "target_modules": targets},
        **{"rank_pattern": ranks, "alpha_pattern": alphas},
    ).double()  # an alpha of 40 at rank 1 makes logits whose fp32 rounding is beyond any fixed tolerance
    ours = llama().double()
    with tempfile.TemporaryDirectory() as folder:
        attach(ours, {"theirs": load_adapter(peft_saved(theirs, Path(folder)))})
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), atol=1e-9, rtol=1e-9)
