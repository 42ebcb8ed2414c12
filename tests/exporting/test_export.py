"""Every exported folder, read by a reader of its own that computes ΔW as the engine would; and what is refused."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file
from tests.exporting.tiny_cases import MIXED as MIXED_TINY
from tests.exporting.tiny_cases import adapted, model_of
from tests.peft_oracle import logits_of, peft_loaded
from tests.store.made_adapters import NAMES, SHAPES, adapters, dense, draw, error, saved

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError, ConfigError
from lorawise.cli.app import run
from lorawise.exporting.export import export
from lorawise.exporting.exporters import EXPORTERS, Options

MIXED = LoraConfig(r=8, scaling=2.0, rank_pattern={"down_proj": 4}, alpha_pattern={"down_proj": 3.0})
Deltas = dict[str, torch.Tensor]


def as_vllm_reads(folder: Path) -> Deltas:
    """One r, one lora_alpha, nothing else of the config."""
    fields = json.loads((folder / "adapter_config.json").read_text())
    scaling = fields["lora_alpha"] / fields["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            assert len(a) == fields["r"]
            b = tensors[key.replace("lora_A", "lora_B")]
            found[key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")] = scaling * (
                b.double() @ a.double()
            )
    return found


def as_mlx_reads(folder: Path) -> Deltas:
    """Wraps `keys` in every layer with lora_b = 0, loads what the file holds, applies the raw scale to x = I."""
    parameters = json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]
    tensors = load_file(folder / "adapters.safetensors")
    found = {}
    for module, (width_in, width_out) in SHAPES.items():
        if module.split(".", 3)[3] not in parameters["keys"]:
            continue
        a = tensors.pop(f"{module}.lora_a", torch.zeros(width_in, parameters["rank"])).double()
        b = tensors.pop(f"{module}.lora_b", torch.zeros(parameters["rank"], width_out)).double()
        assert (a.shape, b.shape) == ((width_in, parameters["rank"]), (parameters["rank"], width_out))
        found[module] = (parameters["scale"] * ((torch.eye(width_in).double() @ a) @ b)).T
    assert not tensors
    return found


def as_llama_cpp_reads(folder: Path) -> Deltas:
    """One alpha over each tensor's own rank; rows of q taken back from pairs to halves, head by head."""
    file = gguf.GGUFReader(folder / "adapter.gguf")
    alpha = float(file.fields["adapter.lora.alpha"].contents())
    held = {tensor.name: torch.from_numpy(tensor.data.copy()).double() for tensor in file.tensors}
    found = {}
    for module, (width_in, width_out) in SHAPES.items():
        leaf = {"q_proj": "attn_q", "down_proj": "ffn_down"}[module.rpartition(".")[2]]
        name = f"blk.{module.split('.')[2]}.{leaf}.weight"
        if f"{name}.lora_a" not in held:
            continue
        a, b = held.pop(f"{name}.lora_a"), held.pop(f"{name}.lora_b")
        assert (a.shape[1], b.shape[0], b.shape[1]) == (width_in, width_out, len(a))
        delta = alpha / b.shape[1] * (b @ a)
        if leaf == "attn_q":
            delta = delta.reshape(HEADS, width_out // HEADS // 2, 2, width_in).transpose(1, 2).reshape(delta.shape)
        found[module] = delta
    assert not held
    return found


HEADS = 5
CONFIG = {
    "model_type": "llama", "hidden_size": 24, "intermediate_size": 80, "num_hidden_layers": 11, "vocab_size": 32,
    "num_attention_heads": HEADS, "num_key_value_heads": 1, "head_dim": 8, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
READERS = {"vllm": as_vllm_reads, "peft": as_vllm_reads, "mlx": as_mlx_reads, "gguf": as_llama_cpp_reads}
assert set(EXPORTERS) == {*READERS, "ollama"}  # which is a whole model: test_ollama


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """With a base whose shapes are those of the made adapters; its config is all that is needed of it."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return Options(fold=True, model=str(folder))


@pytest.mark.parametrize("engine", READERS)
@given(weights=adapters)
@settings(max_examples=25, deadline=None)
def test_the_engine_computes_our_update(
    engine: str, weights: Any, options: Options, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("export")
    source = saved(folder / "own", weights)
    done = export(source, engine, folder / "out", options)
    off = error(READERS[engine](folder / "out"), dense(weights))
    assert off < 1e-6
    assert done.error == pytest.approx(off, abs=1e-9)


@pytest.mark.parametrize("engine", READERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scaling_of_a_power_of_two_is_exact(
    engine: str, dtype: torch.dtype, options: Options, tmp_path: Path
) -> None:
    weights = draw(LoraConfig(r=8, scaling=2.0), NAMES, dtype, 3)
    done = export(saved(tmp_path / "own", weights), engine, tmp_path / "out", options)
    found, wanted = READERS[engine](tmp_path / "out"), dense(weights)
    assert all(torch.equal(found[name], wanted[name]) for name in NAMES)
    assert not done.rounded


def test_mlx_keeps_the_numbers_and_the_raw_scale_where_one_serves_all(tmp_path: Path) -> None:
    weights = draw(LoraConfig(r=8, scaling=1.3), NAMES, torch.bfloat16, 3)
    done = export(saved(tmp_path / "own", weights), "mlx", tmp_path / "out")
    assert (done.scale, done.rounded) == (1.3, False)
    tensors = load_file(tmp_path / "out" / "adapters.safetensors")
    assert all(torch.equal(tensors[f"{name}.lora_b"], weights.layers[name][1].T) for name in NAMES)


def test_peft_gets_two_files_and_vllm_its_flag(tmp_path: Path) -> None:
    source = saved(tmp_path / "own", draw(replace_rank(12), NAMES, torch.float32, 1))
    export(source, "peft", tmp_path / "peft")
    assert {path.name for path in (tmp_path / "peft").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert export(source, "vllm", tmp_path / "vllm").flags == ("--enable-lora", "--max-lora-rank 16")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = tmp_path_factory.mktemp("tied")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": True}))
    return Options(model=str(folder))


@pytest.mark.parametrize("engine", ["vllm", "peft"])
def test_peft_itself_loads_the_form(engine: str, tmp_path: Path) -> None:
    model = model_of("llama")
    export(adapted(model, tmp_path / "own", MIXED_TINY), engine, tmp_path / "out")
    wanted = logits_of(peft_loaded(model_of("llama"), tmp_path / "own"))
    torch.testing.assert_close(logits_of(peft_loaded(model, tmp_path / "out")), wanted, atol=1e-5, rtol=1e-5)


def replace_rank(r: int) -> LoraConfig:
    return LoraConfig(r=r, scaling=1.5)


def extended(module: str, **more: Any) -> Any:
    """An adapter on the usual modules and on one more."""
    weights = draw(LoraConfig(r=4, scaling=1.0), NAMES[:1], torch.float32, 0)
    pair = (torch.ones(4, 6), torch.ones(5, 4))
    return replace(weights, layers={**weights.layers, module: pair}, **more)


@pytest.mark.parametrize("engine", ["vllm", "mlx", "gguf"])
@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (extended("model.embed_tokens", kinds={"model.embed_tokens": "embedding"}), "embeddings: model.embed_tokens"),
        (extended("lm_head"), "output heads: lm_head"),
        (extended("model.layers.0.mlp.experts.gate_up_proj"), "experts: model.layers.0.mlp.experts.gate_up_proj"),
        (
            replace(
                draw(LoraConfig(r=4, scaling=1.0, modules_to_save=("score",)), NAMES, torch.float32, 0),
                full={"score.weight": torch.ones(2, 3)},
            ),
            "trained in full: score.weight",
        ),
    ],
)
def test_what_an_engine_cannot_compute_is_refused_with_its_cure(
    engine: str, weights: Any, told: str, tied: Options, tmp_path: Path
) -> None:
    source = saved(tmp_path / "own", weights)
    with pytest.raises(AdapterError) as caught:
        export(source, engine, tmp_path / "out", tied)
    assert told in caught.value.found
    assert "lorawise merge somebody/base" in caught.value.cure
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_vllm_refuses_a_rank_that_it_does_not_take(tmp_path: Path) -> None:
    source = saved(tmp_path / "own", draw(replace_rank(513), NAMES[:1], torch.float32, 0))
    with pytest.raises(AdapterError, match="resize --rank 512"):
        export(source, "vllm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["vllm", "peft", "mlx"])
def test_a_whole_model_is_for_engines_that_are_given_one(engine: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "own", draw(replace_rank(4), NAMES, torch.float32, 0))
    with pytest.raises(ConfigError, match="--merged is for gguf and ollama"):
        export(source, engine, tmp_path / "out", Options(merged=True))
    assert not (tmp_path / "out").exists()


def test_mlx_refuses_scalings_that_differ_until_they_may_be_folded(tmp_path: Path) -> None:
    source = saved(tmp_path / "own", draw(MIXED, NAMES, torch.float32, 0))
    with pytest.raises(AdapterError, match="--fold"):
        export(source, "mlx", tmp_path / "out")
    assert export(source, "mlx", tmp_path / "out", Options(fold=True)).rounded


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "own", draw(MIXED, NAMES, torch.float32, 0))
    command = ["export", "own", "--to", "vllm", "-o", "out", "--json"]
    assert run(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["rank"], told["scale"], told["rounded"]) == ("out", 8, 1.0, True)
    before = (tmp_path / "out" / "adapter_config.json").read_bytes()
    assert run(command) == 2
    assert "exists" in json.loads(capsys.readouterr().out)["error"]["found"]
    assert (tmp_path / "out" / "adapter_config.json").read_bytes() == before
    assert run(["export", "own", "--to", "vlm", "-o", "other", "--json"]) == 2
    assert "vllm" in json.loads(capsys.readouterr().out)["error"]["cure"]
    (tmp_path / "file").write_text("x")
    assert run(["export", "own", "--to", "mlx", "--fold", "-o", "file/out", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "storage"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("engine", READERS)
def test_a_read_only_place_is_left_as_it_was(engine: str, options: Options, tmp_path: Path) -> None:
    saved(tmp_path / "own", draw(replace_rank(8), NAMES, torch.float32, 0))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    assert (
        run(["export", str(tmp_path / "own"), "--to", engine, "-o", str(closed / "out"), "--model", options.model]) == 1
    )
    assert not list(closed.iterdir())
