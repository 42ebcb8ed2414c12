"""Situations for the tests of planning: the guide's Llama 3.1 8B by its config, small data sets, devices by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lorawise.facts.device import find_device
from lorawise.facts.read import read_model
from lorawise.planning.dataset import DataFacts
from lorawise.planning.situation import Method, Situation
from lorawise.planning.tasks import find_task
from lorawise.runfile import make_run_file

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
SMOL_135M = LLAMA_8B | {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def model_folder(folder: Path, config: dict[str, Any] = LLAMA_8B) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def rows(count: int, *, tokens: int = 200, trained: float = 0.4, duplicates: int = 0) -> DataFacts:
    """`count` rows from half to one and a half of `tokens` long."""
    lengths = np.linspace(tokens / 2, tokens * 1.5, min(count, 2000)).astype(np.int64)
    return DataFacts(
        rows=count,
        validation_rows=0,
        lengths=lengths,
        trained=int(lengths.sum() * trained),
        measured_by="tokenizer",
        duplicates=duplicates,
        leaked=0,
    )


def situation(
    folder: Path,
    *sets: str,
    task: str = "chat",
    device: str = "h100",
    method: Method = "lora",
    data: DataFacts | None = None,
    config: dict[str, Any] = LLAMA_8B,
) -> Situation:
    model = model_folder(folder / "base", config)
    values = {"model": str(model), "data": {"train": "rows.jsonl"}}
    run, _ = make_run_file(values, sets, unbuilt="keep")
    return Situation(
        task=find_task(task),
        run=run,
        model=read_model(model),
        device=find_device(device),
        method=method,
        data=data,
    )
