"""Merged folders: what transformers makes of them, what they keep of the base, and what is refused before a byte."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.peft_oracle import logits_of, peft_injected, peft_loaded, peft_saved, tiny_classifier
from tests.store.samples import Q, sample_weights
from tests.tiny import FAMILIES, tiny_model
from tests.workbench import tiny_folder
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from lorawise.base.errors import AdapterError, LorawiseError, ModelError, StorageError, UsageError
from lorawise.lora import attach
from lorawise.lora.config import LoraConfig
from lorawise.merging.merge import merge
from lorawise.store import Provenance, load_adapter, save_adapter


def opened(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    return model


def case(folder: Path, family: str = "llama", *, shard: str = "20KB", **fields: Any) -> torch.Tensor:
    """A sharded base in folder/base and PEFT's adapter in folder/adapter; the logits of PEFT's own merge."""
    overrides = fields.pop("overrides", {})
    tiny_model(family, **overrides).save_pretrained(folder / "base", max_shard_size=shard)
    theirs = peft_injected(tiny_model(family, **overrides), **({"r": 4, "target_modules": "all-linear"} | fields))
    peft_saved(theirs, folder / "adapter")
    return logits_of(theirs.merge_and_unload())


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_the_result_with_the_logits_of_pefts_merge(family: str, tmp_path: Path) -> None:
    expected = case(tmp_path, family)
    result = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    torch.testing.assert_close(logits_of(opened(tmp_path / "out")), expected, atol=1e-5, rtol=1e-5)
    assert result.retention == pytest.approx(1, abs=1e-6)
    before, after = (sorted(p.name for p in (tmp_path / f).glob("*.safetensors*")) for f in ("base", "out"))
    assert before == after
    assert len(before) > 3


SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "a head adapted on a tied model": (
        "llama",
        {"target_modules": ["lm_head", "q_proj"], "overrides": {"tie_word_embeddings": True}},
    ),
    "an embedding adapted on a tied model": (
        "llama",
        {"target_modules": ["embed_tokens", "q_proj"], "overrides": {"tie_word_embeddings": True}},
    ),
    "an embedding": ("llama", {"target_modules": ["embed_tokens", "v_proj"]}),
    "scaled embeddings": ("gemma3", {"target_modules": ["embed_tokens", "q_proj"]}),
    "a head trained in full": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "Conv1D and embeddings": ("gpt2", {"target_modules": ["c_attn", "c_proj", "wte"], "fan_in_fan_out": True}),
    "biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "every bias": ("gpt_neox", {"target_modules": ["dense"], "bias": "all"}),
    "rsLoRA with patterns": (
        "llama",
        {"use_rslora": True, "rank_pattern": {"q_proj": 7}, "alpha_pattern": {"up_proj": 30}},
    ),
}


@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:.*tied.*")
@pytest.mark.parametrize("name", SPECIAL)
def test_what_else_an_adapter_may_hold_is_merged_too(name: str, tmp_path: Path) -> None:
    family, fields = SPECIAL[name]
    case(tmp_path, family, **fields)
    expected = logits_of(peft_loaded(opened(tmp_path / "base"), tmp_path / "adapter"))
    result = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    apart = (logits_of(opened(tmp_path / "out")) - expected).abs().max()
    assert apart <= 2e-5 * expected.abs().max()  # strong updates make large logits, and fp32 rounds those
    assert result.untied or "tied" not in name


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_in_bfloat16_the_result_is_nearer_to_float64_than_pefts(family: str, tmp_path: Path) -> None:
    tiny_model(family, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    theirs = peft_injected(tiny_model(family, dtype=torch.bfloat16), r=4, target_modules="all-linear")
    peft_saved(theirs, tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "wide", dtype="float32")
    theirs.merge_and_unload().save_pretrained(tmp_path / "peft")
    exact, ours, pefts = (opened(tmp_path / name).state_dict() for name in ("wide", "out", "peft"))

    def distance(found: dict[str, torch.Tensor]) -> float:
        return sum(float((found[k].double() - exact[k].double()).norm() ** 2) for k in exact)

    assert 0 < distance(ours) <= distance(pefts)
    assert all(ours[k].dtype == torch.bfloat16 for k in ours)


def test_retention_and_error_are_those_of_dense_arithmetic(tmp_path: Path) -> None:
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    theirs = peft_injected(tiny_model("llama"), r=4, lora_alpha=0.01, target_modules=["q_proj", "down_proj"])
    peft_saved(theirs, tmp_path / "adapter")
    result = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    before, after = opened(tmp_path / "base").state_dict(), opened(tmp_path / "out").state_dict()
    for layer in result.layers:
        module = theirs.get_base_model().get_submodule(layer.name)
        wanted = module.get_delta_weight("default").detach().double()
        got = after[f"{layer.name}.weight"].double() - before[f"{layer.name}.weight"].double()
        assert layer.retention == pytest.approx(float((got * wanted).sum() / wanted.norm() ** 2), rel=1e-4)
        assert layer.error == pytest.approx(float((got - wanted).norm() / wanted.norm()), rel=1e-4)
    assert result.error > 0.1
    (lossy,) = result.findings
    assert (lossy.code, "float32" in lossy.cure) == ("rounded-away", True)


def test_several_adapters_are_their_weighted_sum_rounded_once(tmp_path: Path) -> None:
    case(tmp_path)
    case(tmp_path / "b", target_modules=["q_proj"], r=2)
    weights = {tmp_path / "adapter": 0.7, tmp_path / "b" / "adapter": -0.3}
    merge(tmp_path / "base", weights, tmp_path / "out")
    model = opened(tmp_path / "base")
    attach(model, {str(f): load_adapter(f) for f in weights}).stack({str(f): w for f, w in weights.items()})
    torch.testing.assert_close(logits_of(opened(tmp_path / "out")), logits_of(model), atol=1e-5, rtol=1e-5)


def test_dtype_sharding_tokenizer_and_generation_config_are_kept(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "base", dtype=torch.bfloat16)
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"a pickle")
    peft_saved(peft_injected(opened(tmp_path / "base"), r=2, target_modules=["q_proj"]), tmp_path / "adapter")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes().strip() == (tmp_path / "base" / name).read_bytes().strip()
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    with (
        safe_open(tmp_path / "out" / "model.safetensors", "pt") as file,
        safe_open(tmp_path / "base" / "model.safetensors", "pt") as base,
    ):
        assert set(file.keys()) == set(base.keys())
        for name in file.keys():  # noqa: SIM118 - not a dict
            assert torch.equal(file.get_tensor(name), base.get_tensor(name)) == ("q_proj" not in name)


def test_a_base_saved_without_its_head_prefix_is_found(tmp_path: Path) -> None:
    expected = case(tmp_path, "gpt2", overrides={"tie_word_embeddings": True})
    model = tiny_model("gpt2", tie_word_embeddings=True)
    model.transformer.save_pretrained(tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    merge(tmp_path / "bare", tmp_path / "adapter", tmp_path / "out")
    torch.testing.assert_close(logits_of(opened(tmp_path / "out")), expected, atol=1e-5, rtol=1e-5)


def test_a_classifier_keeps_its_head(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    theirs = peft_injected(tiny_classifier(), r=3, target_modules=["q_proj"], task_type="SEQ_CLS")
    peft_saved(theirs, tmp_path / "adapter")
    expected = logits_of(theirs.merge_and_unload())
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=1e-5)


def _wrong_shape(folder: Path) -> Path:
    save_adapter(folder, sample_weights(LoraConfig(r=2)), base="b")
    return folder


def _other_base(folder: Path) -> Path:
    peft = peft_injected(tiny_model("llama"), r=2, target_modules=["q_proj"])
    weights = load_adapter(peft_saved(peft, folder / "peft"))
    save_adapter(folder, weights, base="org/other", provenance=Provenance(base_digest="a" * 64))
    return folder


def _missing(folder: Path) -> Path:
    return peft_saved(peft_injected(tiny_model("llama", num_hidden_layers=4), r=2, target_modules=["q_proj"]), folder)


@pytest.mark.parametrize(
    ("make", "told"),
    [(_wrong_shape, "the base has"), (_other_base, "trained over other weights"), (_missing, "no such module")],
)
def test_what_does_not_fit_is_refused_before_a_byte_is_written(make: Any, told: str, tmp_path: Path) -> None:
    tiny_folder(tmp_path / "home" / "base", vocab_size=256)
    adapter = make(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=told):
        merge(tmp_path / "home" / "base", adapter, tmp_path / "home" / "out")
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["base"]


def test_another_base_is_merged_when_it_is_meant(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "base", vocab_size=256)
    result = merge(tmp_path / "base", _other_base(tmp_path / "a"), tmp_path / "out", any_base=True)
    assert [finding.code for finding in result.findings] == ["other-base"]


def test_an_adapter_that_never_trained_is_told_of(tmp_path: Path) -> None:
    case(tmp_path)
    result = merge(tmp_path / "base", {tmp_path / "adapter": 0.0}, tmp_path / "out")
    assert [finding.code for finding in result.findings] == ["no-change"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"dtype": "float23"}, UsageError),
        ({"into": "int4"}, UsageError),
        ({"out": "base"}, UsageError),
        ({"out": "full"}, UsageError),
        ({"adapters": []}, UsageError),
        ({"model": "nowhere/at/all"}, ModelError),
    ],
)
def test_a_call_that_cannot_be_meant_is_refused(
    change: dict[str, Any], error: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    case(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        merge(**({"model": "base", "adapters": "adapter", "out": "out"} | change))
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    case(tmp_path)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq"}})
    )
    with pytest.raises(ModelError, match="gptq"):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")


def test_a_disk_too_small_is_told_of_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case(tmp_path)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="GB free"):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_merge_that_is_stopped_leaves_nothing(problem: BaseException, tmp_path: Path) -> None:
    case(tmp_path)

    def stop(done: int, wanted: int) -> None:
        if done > wanted // 2:
            raise problem

    with pytest.raises((KeyboardInterrupt, StorageError)):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_merge_loads_no_torch(tmp_path: Path) -> None:
    case(tmp_path)
    code = (
        "import sys, lorawise; lorawise.merge('base', 'adapter', 'out'); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_weight_beyond_float32_is_refused_in_one_message(tmp_path: Path) -> None:
    case(tmp_path)
    code = (
        "import sys, lorawise; from lorawise.base.errors import LorawiseError\n"
        "try: lorawise.merge('base', {'adapter': 1e300}, 'out')\n"
        "except LorawiseError as problem: sys.exit(7 if 'not finite' in str(problem) else 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")
    assert not (tmp_path / "out").exists()


def test_values_beyond_fp16_are_refused(tmp_path: Path) -> None:
    tiny_model("llama", dtype=torch.float16).save_pretrained(tmp_path / "base")
    weights = sample_weights(LoraConfig(r=2, scaling=1e9), (Q,))
    A, B = (torch.randn(2, 32), torch.randn(32, 2))
    save_adapter(tmp_path / "a", type(weights)(config=weights.config, layers={Q: (A, B)}), base="b")
    with pytest.raises(LorawiseError, match="not finite"):
        merge(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()
