"""What engines that serve low-rank updates on linear layers alone cannot compute, each with its cure."""

from collections.abc import Iterator

from lorawise.base.errors import AdapterError
from lorawise.store.algebra.result import Source
from lorawise.store.peft_config import listing

_HEADS = ("lm_head", "embed_out")


def refuse_beyond_linear(source: Source, engine: str) -> None:
    """`AdapterError` that names every module trained in full, embedding, output head and expert of the adapter."""
    problems = list(_problems(source))
    if problems:
        raise AdapterError(
            "\n  ".join(problems),
            expected=f"low-rank updates of linear layers alone, for {engine}",
            cure=f"lorawise merge {source.base or 'MODEL'} {source.folder} -o merged, and give {engine} that model",
        )


def _problems(source: Source) -> Iterator[str]:
    adapter = source.adapter
    embeddings = [name for name, kind in adapter.kinds.items() if kind == "embedding"]
    heads = [name for name in adapter.layers if name.rpartition(".")[2] in _HEADS and name not in embeddings]
    experts = [name for name in adapter.layers if "experts" in name.split(".")]
    for noun, names in (
        ("trained in full", list(adapter.full)),
        ("embeddings", embeddings),
        ("output heads", heads),
        ("experts", experts),
    ):
        if names:
            yield f"{source.folder} holds {noun}: {listing(names)}"
