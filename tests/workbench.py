"""A whole run in miniature: a tiny model with a byte tokenizer in a folder, rows in a file, and the run file over them.

`tiny_run(tmp_path)` is what most tests of a run start from; `rows_of` makes a small job that can be learned.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tests.tiny import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lorawise.runfile import RunFile

SPECIAL = ("<pad>", "<s>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIAL)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLOURS = ("red", "green", "blue", "grey", "pink")


def byte_tokenizer(folder: Path, *, template: str | None = TEMPLATE, pad: bool = True) -> None:
    """Byte-level, no merges: 256 bytes and four special tokens; as transformers would save it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    if pad:
        config["pad_token"] = "<pad>"
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def tiny_folder(
    folder: Path,
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    template: str | None = TEMPLATE,
    pad: bool = True,
    **overrides: Any,
) -> Path:
    """A base model saved in `folder`, ready for `resolve_model`."""
    settings = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3, **overrides}
    tiny_model(family, dtype=dtype, **settings).save_pretrained(folder)
    byte_tokenizer(folder, template=template, pad=pad)
    return folder


def rows_of(count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Chats of uneven length: the answer repeats the colour that was asked for."""
    rows = []
    for i in range(first, first + count):
        colour = COLOURS[i % len(COLOURS)]
        question = f"{'please ' * (i % 3)}paint {i} {colour}"
        rows.append(
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"{colour}!"}]}
        )
    return rows


def labelled_rows(count: int) -> list[dict[str, Any]]:
    return [{"text": f"{COLOURS[i % 3]} thing {i}", "label": COLOURS[i % 3]} for i in range(count)]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def tiny_run(
    tmp_path: Path,
    *,
    family: str = "llama",
    rows: Sequence[Mapping[str, Any]] | None = None,
    model: Path | None = None,
    **values: Any,
) -> RunFile:
    """A run file over a tiny model and small rows under `tmp_path`; `values` by dotted key, dots as double underscores.

    `tiny_run(tmp_path, train__steps=8, lora__dropout=0.1)`
    """
    model = model or tiny_folder(tmp_path / "base", family)
    data = write_rows(tmp_path / "rows.jsonl", rows_of(24) if rows is None else rows)
    run = RunFile.model_validate(
        {
            "model": str(model),
            "data": {"train": str(data), "validation": 0.25},
            "base": {"dtype": "float32"},
            "lora": {"r": 4, "scaling": 2.0, "target_modules": "all-linear"},
            "train": {
                "steps": 8,
                "learning_rate": 5e-3,
                "max_length": 96,
                "batch_tokens": 256,
                "eval_every": 4,
                "save_every": 2,
                "warmup": 2,
            },
        }
    )
    return run.with_values({name.replace("__", "."): value for name, value in values.items()}) if values else run
