"""What files hold, under the names they have there, is what the model has in memory; what does not fit is refused."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.facts.shapes import config_of, meta_model, write_config
from transformers import AutoModelForCausalLM

from lorawise.base.errors import LorawiseError, ModelError
from lorawise.facts import read_model
from lorawise.facts.known import known_config

SAVED = (
    "llama", "llama biased", "qwen2 tied", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "falcon",
    "olmo2", "cohere", "granite", "granitemoe", "opt", "mixtral", "qwen2_moe", "qwen3_moe some", "olmoe",
    "gpt_oss", "deepseek_v3",
)  # fmt: skip


def saved(folder: Path, case: str, *, shard: str = "50GB") -> Path:
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(config_of(case), dtype=torch.bfloat16)
        model.save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.mark.parametrize("case", SAVED)
def test_what_transformers_saves_is_read_back_as_the_model_in_memory(case: str, tmp_path: Path) -> None:
    facts = read_model(saved(tmp_path, case))
    (tmp_path / "bare").mkdir()
    by_rule = read_model(write_config(tmp_path / "bare", config_of(case)))
    assert facts.exact
    assert not by_rule.exact
    assert facts.notes == ()
    assert facts.parameters == by_rule.parameters == meta_model(config_of(case)).num_parameters()
    assert [m.name for m in facts.matrices] == [m.name for m in by_rule.matrices]
    assert facts.dtype == "bfloat16"
    held = {m.stored for m in facts.matrices if not (facts.tied and m in facts.heads)}
    assert held == {"bfloat16"}


@pytest.mark.parametrize("case", ["gpt2", "llama", "mixtral"])
def test_names_without_the_models_prefix_and_old_buffers_are_understood(case: str, tmp_path: Path) -> None:
    saved(tmp_path, case)
    tensors = load_file(tmp_path / "model.safetensors")
    prefix = "transformer." if case == "gpt2" else "model."
    bare = {name.removeprefix(prefix): tensor.contiguous() for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(bare, tmp_path / "model.safetensors")
    facts = read_model(tmp_path)
    assert facts.parameters == meta_model(config_of(case)).num_parameters()
    assert facts.notes == ()


def test_shards_are_read_together(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama", shard="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert read_model(folder).parameters == meta_model(config_of("llama")).num_parameters()


def test_a_tensor_of_no_parameter_is_left_out_and_named(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "value_head.weight": torch.ones(1, 32)}, tmp_path / "model.safetensors")
    facts = read_model(tmp_path)
    assert facts.parameters == meta_model(config_of("llama")).num_parameters()
    assert "value_head.weight" in facts.notes[0].message


def test_a_family_without_a_rule_is_read_as_its_files_stand(tmp_path: Path) -> None:
    """Told from files alone, a Mixtral whose type nobody knows has the same matrices, and says that it was guessed."""
    saved(tmp_path, "mixtral")
    config = json.loads((tmp_path / "config.json").read_text())
    known = read_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mixtrale"}))
    facts = read_model(tmp_path)
    assert facts.parameters == known.parameters
    assert facts.notes[0].code == "facts-unknown-family"
    sizes = sorted((m.kind, m.experts, m.in_features, m.out_features) for m in known.matrices)
    routers = [("linear", 1, 32, 4)] * 2  # a router looks like any matrix of a file
    assert sorted((m.kind, m.experts, m.in_features, m.out_features) for m in facts.matrices) == sorted(sizes + routers)


def test_a_quantised_model_has_the_shapes_it_stands_for(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = read_model(tmp_path)
    assert not facts.exact
    assert "gptq" in facts.notes[0].message
    assert facts.parameters == meta_model(config_of("llama")).num_parameters()


def spoil(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    values = json.loads(config.read_text())
    tensors = load_file(weights)
    match how:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "cut in its header":
            weights.write_bytes(weights.read_bytes()[:200])
        case "empty":
            weights.write_bytes(b"")
        case "no safetensors, type never seen":
            weights.unlink()
            config.write_text(json.dumps({**values, "model_type": "lammma"}))
        case "a tensor is missing":
            save_file({k: v for k, v in tensors.items() if "layers.1.mlp.up" not in k}, weights)
        case "another shape":
            save_file({**tensors, "model.layers.1.mlp.up_proj.weight": torch.ones(47, 32)}, weights)
        case "index without shards":
            weights.unlink()
            (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model-1.safetensors"}})
            )
        case "no config":
            config.unlink()
        case "an adapter":
            config.unlink()
            (folder / "adapter_config.json").write_text("{}")
        case "config is no JSON":
            config.write_text("{")
        case "no needed keys":
            config.write_text(json.dumps({k: v for k, v in values.items() if k not in ("hidden_size", "vocab_size")}))
        case "nonsense":
            config.write_text(json.dumps({**values, "num_hidden_layers": -2}))
        case "absurd":
            config.write_text(json.dumps({**values, "num_hidden_layers": 10**7}))
        case "reads images":
            config.write_text(json.dumps({**values, "vision_config": {}}))
        case "an encoder":
            config.write_text(json.dumps({**values, "architectures": ["BertForMaskedLM"]}))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "is torn.*expected.*cure"),
        ("cut in its header", "is torn: it ends inside its header"),
        ("empty", "is torn"),
        ("no safetensors, type never seen", "'lammma' is in no rule.*looked for model.safetensors.*llama.*cure"),
        ("a tensor is missing", "lacks 1 tensors of a LlamaForCausalLM: model.layers.1.mlp.up_proj.weight.*cure"),
        ("another shape", r"up_proj.weight is \[47, 32\], the config says \[48, 32\].*cure"),
        ("index without shards", "lacks 1 of 1 shards: model-1.safetensors.*cure"),
        ("no config", "config.json is missing.*cure"),
        ("an adapter", "config.json is missing.*this is an adapter"),
        ("config is no JSON", "is not JSON.*cure"),
        ("no needed keys", "has no hidden_size or n_embd.*vocab_size.*cure"),
        ("nonsense", "num_hidden_layers is -2.*whole number from 1"),
        ("absurd", "says 10,000,000 layers.*at most"),
        ("reads images", "reads images or sound too.*cure"),
        ("an encoder", "is not a decoder.*cure"),
    ],
)
def test_a_folder_that_is_wrong_says_what_and_what_to_do(how: str, says: str, tmp_path: Path) -> None:
    spoil(saved(tmp_path, "llama"), how)
    with pytest.raises(LorawiseError, match=f"(?s){says}"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "there is no model at"),
        ("weights.bin", "pickled weights can run code"),
        ("embedded:smollm", "did you mean 'embedded:smollm2-135m-instruct'"),
    ],
)
def test_a_source_that_is_no_model_is_refused(name: str, says: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=says):
        read_model(name)


@pytest.fixture(scope="module")
def sparse_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama-3.1-8B as four shards whose 16 GB of weights take no room on disk."""
    folder = tmp_path_factory.mktemp("8b")
    values = dict(known_config("meta-llama/Llama-3.1-8B") or {})
    (folder / "config.json").write_text(json.dumps(values))
    facts = read_model(folder)
    tensors = {f"{m.name}.weight": [m.out_features, m.in_features] for m in facts.matrices if m.kind == "linear"}
    tensors["model.embed_tokens.weight"] = [values["vocab_size"], values["hidden_size"]]
    tensors |= {p.name: list(p.shape) for p in facts.others}
    names, index = sorted(tensors), {}
    for shard in range(4):
        file, header, at = f"model-{shard + 1:05}-of-00004.safetensors", {}, 0
        for name in names[shard::4]:
            size = 2 * int(np.prod(tensors[name]))
            header[name] = {"dtype": "BF16", "shape": tensors[name], "data_offsets": [at, at + size]}
            at, index[name] = at + size, file
        raw = json.dumps(header).encode()
        with (folder / file).open("wb") as handle:
            handle.write(len(raw).to_bytes(8, "little") + raw)
            handle.truncate(8 + len(raw) + at)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_an_8b_folder_is_read_in_an_instant_without_torch(sparse_8b: Path) -> None:
    """In a fresh interpreter: processor time, so that a busy machine does not tell."""
    script = (
        "import sys, time, psutil\n"
        "from lorawise.facts import read_model, selected, trainable\n"
        "from lorawise import LoraConfig\n"
        f"begin = time.process_time(); facts = read_model({str(sparse_8b)!r}); spent = time.process_time() - begin\n"
        "config = LoraConfig(r=16, target_modules='attention')\n"
        "print(facts.exact, facts.parameters, trainable(facts, config), spent, psutil.Process().memory_info().rss,\n"
        "      'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    exact, parameters, trained, spent, resident, torch_in, transformers_in = run.stdout.split()
    assert (exact, parameters, trained) == ("True", "8030261248", "13631488")
    assert (torch_in, transformers_in) == ("False", "False")
    assert float(spent) < 0.3
    assert int(resident) < 80 * 2**20


def test_a_mixture_with_many_experts_is_read_quickly(tmp_path: Path) -> None:
    values = dict(known_config("Qwen/Qwen3-30B-A3B") or {})
    (tmp_path / "config.json").write_text(json.dumps(values))
    begin = time.process_time()
    assert read_model(tmp_path).parameters == 30_532_122_624
    assert time.process_time() - begin < 0.3


def test_a_well_known_model_that_is_published_quantised_says_so() -> None:
    """gpt-oss is published in MXFP4 alone: the plan is of 16 bits, and training starts from another repository."""
    codes = {note.code: note for note in read_model("openai/gpt-oss-20b").notes}
    assert set(codes) == {"facts-quantised", "facts-from-table"}
    assert "mxfp4" in codes["facts-quantised"].message
    assert {note.code for note in read_model("Qwen/Qwen3-30B-A3B").notes} == {"facts-from-table"}
