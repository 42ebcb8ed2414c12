"""A GGUF file as a plain transformers folder, converted once and kept in the cache by content digest.

transformers dequantises the file (`gguf_file=`), 10 to 20 s for 135M parameters, which is why it is done once. What
the file's tensors are decides what they become, so that nothing worth keeping is lost:

    F32 weights     float32    the file's own
    F16 weights     float16    the file's own
    BF16 weights    bfloat16   the file's own
    any quantised   bfloat16   rounding to 8 bits of mantissa is below the step of 4- to 8-bit blocks

Tokenizer and chat template come along; tied embeddings stay tied. The folder appears in one rename, its manifest
written last; a lock lets two processes ask at once and converts once.
"""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorawise.base.cache import cache_folder
from lorawise.base.errors import ModelError
from lorawise.base.files import MANIFEST, atomic_folder, sha256_file, sweep_partial
from lorawise.base.gguf import GGUFHeader
from lorawise.base.locks import alone_in
from lorawise.facts.gguf import opened_dtype, refuse_adapter
from lorawise.models.files import Progress, to_stderr

RULES = 1  # raised when a conversion would give other bytes, so that old folders are made again


def converted_gguf(path: Path, *, progress: Progress = to_stderr) -> Path:
    """The folder that holds the model of a `.gguf` file; converted now if this is its first use on this machine."""
    digest = sha256_file(path)
    if folder := finished_conversion(digest):
        return folder
    with cache_lock(progress):
        if folder := finished_conversion(digest):
            return folder
        return _convert(path, digest, progress)


def finished_conversion(digest: str) -> Path | None:
    """The folder converted earlier from the GGUF file of this sha256, if its manifest says that it was finished."""
    folder = _folder(digest)
    return folder if (folder / MANIFEST).is_file() else None


@contextlib.contextmanager
def cache_lock(progress: Progress) -> Iterator[None]:
    """One process at a time makes models in the cache; whoever comes second waits, and is told so."""

    def waiting() -> None:
        progress("another process is preparing a model in the cache; waiting for it")

    parent = cache_folder() / "models"
    with alone_in(parent, busy=waiting, patience=0.2):
        sweep_partial(parent)
        yield


def _folder(digest: str) -> Path:
    return cache_folder() / "models" / f"gguf-{RULES}-{digest[:32]}"


def _convert(path: Path, digest: str, progress: Progress) -> Path:
    types, architecture = _read_types(path)
    dtype = opened_dtype(types)
    progress(f"converting {path.name} ({_named(types)}) to {dtype} safetensors in the cache, once")
    with atomic_folder(_folder(digest), manifest=True) as scratch:
        _save_model(path, scratch, dtype, architecture)
        note = {"file": path.name, "sha256": digest, "tensor_types": types, "dtype": dtype}
        (scratch / "gguf.json").write_text(json.dumps(note, indent=1), encoding="utf-8")
    return _folder(digest)


def _read_types(path: Path) -> tuple[dict[str, int], str]:
    """How many matrices of the file are of each type, and its architecture."""
    from gguf import GGMLQuantizationType

    header = GGUFHeader.open(path)
    refuse_adapter(header)
    try:
        types = Counter(GGMLQuantizationType(each.type).name for each in header.tensors.values() if len(each.shape) > 1)
    except ValueError as problem:
        raise ModelError(f"{path} holds a tensor of a type that is not known here: {problem}") from None
    if not types:
        raise ModelError(f"{path} holds no weights", expected="a GGUF file of a whole model")
    return dict(types), str(header.settings.get("general.architecture", "unknown"))


def _save_model(path: Path, folder: Path, dtype: str, architecture: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from lorawise.models.quiet import quiet_transformers

    place: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    unpacked = GgufConfig(dequantize=True)  # a plain model, which save_pretrained does not refuse as quantised
    try:
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # tqdm bars that no setting turns off
            tokenizer = AutoTokenizer.from_pretrained(**place)
            model = AutoModelForCausalLM.from_pretrained(
                **place, dtype=getattr(torch, dtype), quantization_config=unpacked
            )
    except (ValueError, KeyError, TypeError, RuntimeError, NotImplementedError) as problem:
        raise ModelError(
            f"transformers cannot open {path.name} (GGUF architecture '{architecture}'): {problem}",
            expected="an architecture that transformers reads from GGUF, such as llama, qwen2, qwen3, gemma2, phi3",
            cure="use the model's original folder or hub id",
        ) from problem
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _named(types: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(types.items(), key=lambda item: -item[1]))
