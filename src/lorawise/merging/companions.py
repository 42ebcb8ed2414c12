"""What belongs to a model beside its weights: config, tokenizer, templates, generation config.

Pickles, other engines' weights and the base's model card stay behind; nothing in these files is run.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorawise.merging.base import INDEX, Base
from lorawise.merging.changes import Changes

RECORD = "merge.json"
_KEPT = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_OURS = ("config.json", "manifest.json", "gguf.json", "adapter_config.json", RECORD, INDEX)
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
LARGEST = 256 * 2**20  # bytes of one companion; the largest tokenizers have some 30 MB


def companions(folder: Path) -> Iterator[Path]:
    """The files to copy as they are: plain files of the folder, and extra chat templates."""
    for path in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*.jinja")]):
        plain = path.suffix in _KEPT or path.name.upper().startswith(("LICENSE", "NOTICE"))
        ours = path.name in _OURS or path.name.endswith(".index.json")
        if plain and not ours and path.is_file() and path.stat().st_size <= LARGEST:
            yield path


def merged_config(base: Base, changes: Changes, dtype: str | None) -> dict[str, Any]:
    """config.json with what the merge changed: the dtype, whether head and embedding are tied, a classifier's head."""
    config: dict[str, Any] = json.loads(json.dumps(base.files.config))
    parts = [config, *(config[name] for name in ("text_config",) if isinstance(config.get(name), dict))]
    for part in parts:
        if dtype is not None:
            part.pop("torch_dtype", None)
            part["dtype"] = _NAMES[dtype]
        if changes.untied:
            part["tie_word_embeddings"] = False
    if changes.fresh:
        labels = next(iter(changes.fresh.values())).shape[0]
        config["architectures"] = [
            name.replace("ForCausalLM", "ForSequenceClassification").replace("LMHeadModel", "ForSequenceClassification")
            for name in config.get("architectures") or []
        ]
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
        config.setdefault("pad_token_id", config.get("eos_token_id"))
    return config
