"""What each storage of a trace is for: by the part of the model that was running when it was made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lorawise.training.trace.ledger import Ledger

BASE, ADAPTERS, OPTIMIZER, BACKWARD, LOSS = "base weights", "adapters", "optimizer", "backward", "logits and loss"


@contextmanager
def labelled_by_part(model: nn.Module, ledger: Ledger) -> Iterator[None]:
    """Inside, what a module's forward makes is entered under its part: attention, mlp, norms, embedding, head."""
    parts = {id(module): part for name, module in model.named_modules() if (part := _part(name)) is not None}
    stack: list[str] = []

    def enter(module: nn.Module, _: Any) -> None:
        stack.append(ledger.label)
        ledger.label = parts.get(id(module), ledger.label)

    def leave(*_: Any) -> None:
        if stack:
            ledger.label = stack.pop()

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _part(name: str) -> str | None:
    leaf = name.rpartition(".")[2]
    if leaf == "base_layer":
        return None
    if "norm" in leaf or leaf.startswith("ln_"):
        return "norms"
    if leaf in ("mlp", "feed_forward", "block_sparse_moe"):
        return "mlp"
    if "attn" in leaf or "attention" in leaf:
        return "attention"
    if leaf in ("lm_head", "embed_out"):
        return LOSS
    if leaf.startswith("embed") or leaf in ("wte", "wpe", "word_embeddings"):
        return "embedding"
    return None
