"""What engines that serve low-rank updates on linear layers alone cannot compute, each with its cure."""

from collections.abc import Iterator

from lorawise.base.errors import AdapterError
from lorawise.store.algebra.result import Source
from lorawise.store.peft_config import listing

_HEADS = ("lm_head", "embed_out")


def refuse_beyond_linear(source: Source, engine: str, *, heads: bool = False) -> None:
    """`AdapterError` that names every module trained in full, embedding, expert and (but where the engine takes
    `heads`) output head of the adapter."""
    problems = list(_problems(source, heads=heads))
    if problems:
        raise AdapterError(
            "\n  ".join(problems),
            expected=f"low-rank updates of linear layers alone, for {engine}",
            cure=f"lorawise merge {source.base or 'MODEL'} {source.folder} -o merged, and give {engine} that model",
        )


def _problems(source: Source, *, heads: bool) -> Iterator[str]:
    adapter = source.adapter
    embeddings = [name for name, kind in adapter.kinds.items() if kind == "embedding"]
    found = [name for name in adapter.layers if name.rpartition(".")[2] in _HEADS and name not in embeddings]
    experts = [n for n in adapter.layers if adapter.kinds.get(n) == "experts" or "experts" in n.split(".")]
    for noun, names in (
        ("trained in full", list(adapter.full)),
        ("embeddings", embeddings),
        ("output heads", [] if heads else found),
        ("experts", experts),
    ):
        if names:
            yield f"{source.folder} holds {noun}: {listing(names)}"
