"""What is measured, and the adapters it is measured on: one linear layer, square, random numbers of a fixed seed."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

WIDTHS = (1_024, 2_048, 4_096)
PREFIX = "base_model.model.layer."
WEIGHTS = {"a": 0.7, "b": -0.3}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """`arms` in the order of the table, ours first; `rank` of the result, None where the method decides."""

    name: str
    arms: tuple[str, ...]
    rank: int | None
    rslora: bool = False


OPERATIONS = {
    each.name: each
    for each in (
        Operation(name="combine exactly", arms=("ours exact", "peft cat"), rank=None),
        Operation(name="combine to r 16", arms=("ours svd", "peft svd", "dense svd"), rank=16),
        Operation(name="linear, A and B apart", arms=("ours linear", "peft linear"), rank=None),
        Operation(name="resize r 64 to 32", arms=("ours resize", "peft convert", "dense svd"), rank=32),
        Operation(name="combine rsLoRA exactly", arms=("ours exact", "peft cat"), rank=None, rslora=True),
    )
}


def resizes(operation: Operation) -> bool:
    return operation.name.startswith("resize")


def write_adapters(folder: Path, width: int, operation: Operation) -> list[str]:
    """PEFT folders `a` and `b` (r 16 each; a alone with r 64 to be resized), as PEFT's library writes them."""
    generator = np.random.default_rng(width)
    names = ["a"] if resizes(operation) else ["a", "b"]
    for name in names:
        r = 64 if resizes(operation) else 16
        decay = 0.97 ** np.arange(r, dtype=np.float32)  # singular values that fall off, as trained ones do
        a = generator.standard_normal((r, width), dtype=np.float32) / width**0.5
        b = generator.standard_normal((width, r), dtype=np.float32) * decay / width**0.5
        (folder / name).mkdir(parents=True)
        tensors = {f"{PREFIX}lora_A.weight": a, f"{PREFIX}lora_B.weight": np.ascontiguousarray(b)}
        save_file(tensors, folder / name / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "r": r,
            "lora_alpha": 2 * r if name == "a" else r,
            "target_modules": ["layer"],
            "use_rslora": operation.rslora,
            "base_model_name_or_path": None,
            "bias": "none",
            "inference_mode": True,
        }
        (folder / name / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return names


def exact(folder: Path, names: list[str]) -> NDArray[np.float64]:
    """Σ weight · alpha / r (or √r) · B @ A in float64, from the files alone; one adapter alone counts once."""
    from safetensors.numpy import load_file

    whole: NDArray[np.float64] | None = None
    for name in names:
        config = json.loads((folder / name / "adapter_config.json").read_text(encoding="utf-8"))
        held = {
            key: value.astype(np.float64)
            for key, value in load_file(folder / name / "adapter_model.safetensors").items()
        }
        scaling = config["lora_alpha"] / (config["r"] ** (0.5 if config["use_rslora"] else 1))
        weight = WEIGHTS[name] if len(names) > 1 else 1.0
        part = weight * scaling * (held[f"{PREFIX}lora_B.weight"] @ held[f"{PREFIX}lora_A.weight"])
        whole = part if whole is None else whole + part
    assert whole is not None
    return whole
