"""A config as planning reads it: from config.json alone."""

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.memory.rows import ARCHITECTURES
from lorawise.facts.model import ModelFacts
from lorawise.facts.read import read_model


def facts_of(model: dict[str, Any]) -> ModelFacts:
    return _read(json.dumps(model, sort_keys=True))


@lru_cache
def _read(settings: str) -> ModelFacts:
    config = json.loads(settings)
    config |= {"architectures": [ARCHITECTURES[config["model_type"]]], "dtype": "bfloat16"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return read_model(folder)
