"""One case of the corpus: files, what to look at, and the rule that must tell it (none: a sane setting)."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Files = Mapping[str, str | bytes]


@dataclass(frozen=True, kw_only=True)
class Case:
    """`expects` is the code of the seeded fault; `look_at` the paths given to the check (the folder when empty)."""

    name: str
    files: Files
    expects: str = ""
    look_at: tuple[str, ...] = ()
    base: str = ""
    peer: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> list[Path]:
        """Make the files below `folder`; the paths to look at."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [folder / name for name in self.look_at] if self.look_at else [folder]


def changed(text: str, *changes: tuple[str, str]) -> str:
    """A sane text with one thing made wrong; a change that does not fit is a mistake in the corpus."""
    for old, new in changes:
        if old not in text:
            raise ValueError(f"{old!r} is not in the text to change")
        text = text.replace(old, new)
    return text


def safetensors(tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The bytes of a safetensors file of float32 tensors."""
    header, body, at = {}, b"", 0
    for name, tensor in tensors.items():
        raw = np.ascontiguousarray(tensor, dtype="<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + len(raw)]}
        body, at = body + raw, at + len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def base(tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, str | bytes]:
    """A folder `base` with a small model of a family of its own."""
    config = {
        "model_type": "homemade",
        "architectures": ["HomemadeForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    return {"base/config.json": json.dumps(config), "base/model.safetensors": safetensors(tensors)}


MODULES = tuple(f"model.layers.{i}.self_attn.{name}" for i in range(4) for name in ("q_proj", "v_proj"))
WIDTH = 64


def pairs(
    rank: int = 4, *, change: Callable[[str, NDArray[np.float32]], NDArray[np.float32]] = lambda _, t: t
) -> dict[str, NDArray[np.float32]]:
    """A and B of every module, random; `change` makes one of them wrong."""
    draw = np.random.default_rng(0)
    found = {}
    for module in MODULES:
        for half, shape in (("A", (rank, WIDTH)), ("B", (WIDTH, rank))):
            key = f"base_model.model.{module}.lora_{half}.weight"
            found[key] = change(key, draw.standard_normal(shape).astype(np.float32) * 0.02)
    return found


def adapter(tensors: Mapping[str, NDArray[np.float32]] | None = None, **fields: object) -> dict[str, str | bytes]:
    """An adapter folder as PEFT writes it."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "meta-llama/Llama-3.2-1B",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    } | fields
    held = pairs() if tensors is None else tensors
    return {
        "adapter/adapter_config.json": json.dumps(config, indent=2),
        "adapter/adapter_model.safetensors": safetensors(held),
    }


def rows(count: int, *, first: int = 0, words: int = 12) -> str:
    """Chat rows, each another."""
    lines = []
    for i in range(first, first + count):
        asked = f"Question {i}: " + " ".join(f"word{(i * 7 + j) % 97}" for j in range(words))
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"Answer {i}."}]
        lines.append(json.dumps({"messages": turns}))
    return "\n".join(lines) + "\n"


def curve(step: int, total: int) -> dict[str, float]:
    """A step of a run that goes well: loss falls, warm-up over a twentieth, then a cosine."""
    warm = max(1, total // 20)
    rate = 2e-4 * (step / warm if step <= warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm))))
    wobble = 0.02 * math.sin(1.7 * step)
    return {
        "loss": 0.8 + 1.2 * math.exp(-3 * step / total) + wobble,
        "learning_rate": rate,
        "gradient_norm": 0.5 + 0.1 * math.sin(step),
        "tokens_per_second": 900 + 20 * math.sin(step),
    }


Bend = Callable[[int, dict[str, object]], dict[str, object]]


def metrics(
    total: int = 60, *, bend: Bend = lambda _, line: line, scores: tuple[float, ...] = (1.6, 1.3, 1.15, 1.05)
) -> str:
    """Our metrics.jsonl; `bend` makes a step wrong, `scores` are the evaluations."""
    lines = []
    for step in range(1, total + 1):
        line: dict[str, object] = {"kind": "step", "step": step, **curve(step, total)}
        lines.append(bend(step, line))
        if step % (total // len(scores)) == 0:
            loss = scores[step // (total // len(scores)) - 1]
            lines.append({"kind": "evaluation", "step": step, "name": "validation", "loss": loss})
    return "".join(json.dumps(line) + "\n" for line in lines)


def trainer_state(total: int = 60, *, bend: Bend = lambda _, line: line) -> str:
    """Trainer's trainer_state.json."""
    history = []
    for step in range(1, total + 1):
        seen = curve(step, total)
        line: dict[str, object] = {"epoch": step / total, "grad_norm": seen["gradient_norm"], "loss": seen["loss"]}
        history.append(bend(step, line | {"learning_rate": seen["learning_rate"], "step": step}))
    return json.dumps({"global_step": total, "log_history": history}, indent=2)


def notebook(*cells: str) -> str:
    held = [
        {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": cell.splitlines(True)}
        for cell in cells
    ]
    return json.dumps({"cells": held, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1)
