"""Small shapes for memory: activations weigh more than rounding, and a trace takes less than a second."""

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from lorawise.facts.model import ModelFacts
from lorawise.facts.read import read_model

SMALL: dict[str, Any] = {
    "vocab_size": 4000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def config_of(family: str, **own: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(family, **{**SMALL, **own})


def facts_of(config: PreTrainedConfig, architecture: str) -> ModelFacts:
    """As planning would read it: from config.json alone, weights in bfloat16."""
    settings = config.to_dict() | {"architectures": [architecture], "dtype": "bfloat16"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(settings, default=str), encoding="utf-8")
        return read_model(folder)
