"""A base model of a real shape with random bf16 weights in shards, and an adapter over it as PEFT writes one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.safetensors_write import write_safetensors
from lorawise.base.tensors import StoredTensor

PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama with tied embeddings; `shard` is the most bytes of one file, but for a tensor that is larger."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    shard: int

    def linears(self) -> Iterator[tuple[str, int, int]]:
        """Module, out and in of every linear layer of the blocks."""
        kv = self.hidden // self.heads * self.kv_heads
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            yield f"{at}.self_attn.q_proj", self.hidden, self.hidden
            yield f"{at}.self_attn.k_proj", kv, self.hidden
            yield f"{at}.self_attn.v_proj", kv, self.hidden
            yield f"{at}.self_attn.o_proj", self.hidden, self.hidden
            yield f"{at}.mlp.gate_proj", self.intermediate, self.hidden
            yield f"{at}.mlp.up_proj", self.intermediate, self.hidden
            yield f"{at}.mlp.down_proj", self.hidden, self.intermediate

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
            "max_position_embeddings": 2048,
        }


MIB = 2**20
SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            name="135M",
            hidden=576,
            intermediate=1_536,
            layers=30,
            heads=9,
            kv_heads=3,
            vocabulary=49_152,
            shard=64 * MIB,
        ),
        Shape(
            name="1B",
            hidden=2_048,
            intermediate=8_192,
            layers=16,
            heads=32,
            kv_heads=8,
            vocabulary=128_256,
            shard=512 * MIB,
        ),
    )
}


def write_model(folder: Path, shape: Shape) -> int:
    """The shards, their index and config.json; the bytes of the largest shard."""
    folder.mkdir(parents=True)
    tensors = _tensors(shape)
    shards: list[dict[str, StoredTensor]] = [{}]
    for name, tensor in tensors.items():
        held = sum(each.nbytes for each in shards[-1].values())
        if held and held + tensor.nbytes > shape.shard:
            shards.append({})
        shards[-1][name] = tensor
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, shard, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(shape.config()), encoding="utf-8")
    return max(path.stat().st_size for path in folder.glob("*.safetensors"))


def _tensors(shape: Shape) -> dict[str, StoredTensor]:
    found = {"model.embed_tokens.weight": _random("embed", shape.vocabulary, shape.hidden)}
    for module, out, width in shape.linears():
        found[f"{module}.weight"] = _random(module, out, width)
    for layer in range(shape.layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{norm}.weight"] = _ones(shape.hidden)
    found["model.norm.weight"] = _ones(shape.hidden)
    return found


def _random(name: str, out: int, width: int) -> StoredTensor:
    """Either sign, sizes from 2⁻⁷ to 2⁻⁵: sign, lowest bit of the exponent and mantissa at random, as bf16's bits."""
    seed = [len(name), *name.encode()]

    def bits() -> NDArray[Any]:
        drawn = np.random.default_rng(seed).integers(0, 1 << 16, (out, width), dtype=np.uint16)
        drawn &= np.uint16(0x80FF)
        drawn |= np.uint16(0x3C00)
        return drawn

    return StoredTensor(dtype="BF16", shape=(out, width), bits=bits)


def _ones(width: int) -> StoredTensor:
    return StoredTensor.of(np.ones(width, dtype=np.float32), "BF16")


def write_adapter(folder: Path, shape: Shape, *, r: int = 16, seed: int = 0) -> None:
    """Float32, alpha 32, on every linear layer; ‖ΔW‖ is about 1 % of ‖W‖, as after a short run."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    tensors = {}
    for module, out, width in shape.linears():
        a = generator.standard_normal((r, width), dtype=np.float32) / np.float32(width**0.5)
        b = generator.standard_normal((out, r), dtype=np.float32) * np.float32(0.02 * 0.01 * (width / r) ** 0.5 / 2)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = StoredTensor.of(a, "F32")
        tensors[f"{PREFIX}{module}.lora_B.weight"] = StoredTensor.of(b, "F32")
    write_safetensors(folder / "adapter_model.safetensors", tensors, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": 2 * r,
        "target_modules": sorted({module.rpartition(".")[2] for module, _, _ in shape.linears()}),
        "base_model_name_or_path": "random",
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
