"""Where llama.cpp's files keep the weight of a module, and in which order its rows lie there.

    module in memory                                  tensor in the file       row i of the file is the model's row
    model.layers.0.mlp.up_proj                        blk.0.ffn_up.weight      i
    model.layers.0.self_attn.q_proj (llama, …)        blk.0.attn_q.weight      of each head: first half and second half
                                                                               of its rows in turn
    gpt_neox.layers.0.attention.query_key_value       blk.0.attn_qkv.weight    all heads' q, then k, then v

llama.cpp turns neighbouring rows of q and k for the families of Llama, transformers turns the two halves of a head:
the same rotation after the rows have changed places. An update's B has its rows in that order too; A stays as it is.
Names are the `gguf` package's own. Source: llama.cpp's convert_hf_to_gguf, whose runtime reads what it writes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import ModelError
from lorawise.base.roles import role_of
from lorawise.facts.gguf import MODEL_TYPES
from lorawise.facts.model import ModelFacts

Rows = NDArray[np.intp]
Order = Callable[[ModelFacts, str, int], Rows | None]


def _as_they_are(facts: ModelFacts, module: str, rows: int) -> Rows | None:
    return None


def _rotary(facts: ModelFacts, module: str, rows: int) -> Rows | None:
    """(heads, 2, half) → (heads, half, 2) for q and k."""
    heads = {"q": facts.num_heads, "k": facts.num_kv_heads}.get(role_of(module) or "")
    if heads is None:
        return None
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def _by_part(facts: ModelFacts, module: str, rows: int) -> Rows | None:
    """(heads, 3, width) → (3, heads, width) for a projection that holds q, k and v of a head side by side."""
    if role_of(module) != "qkv":
        return None
    return np.arange(rows).reshape(facts.num_heads, 3, -1).swapaxes(0, 1).reshape(-1)


ORDERS: dict[str, Order] = {
    "llama": _rotary, "mistral": _rotary, "granite": _rotary, "smollm3": _rotary,
    "gpt_neox": _by_part,
    "qwen2": _as_they_are, "qwen3": _as_they_are, "gemma": _as_they_are, "gemma2": _as_they_are,
    "gemma3_text": _as_they_are, "phi3": _as_they_are, "olmo2": _as_they_are, "cohere": _as_they_are,
    "gpt2": _as_they_are,
}  # fmt: skip
_ARCHITECTURES = {model_type: name for name, model_type in MODEL_TYPES.items()} | {"mistral": "llama"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """One weight in the file. `order` None: rows as in the model."""

    tensor: str
    order: Rows | None

    def rows(self, values: NDArray[Any]) -> NDArray[Any]:
        """Rows of the model, in the file's order."""
        return values if self.order is None else values[self.order]

    def restored(self, values: NDArray[Any]) -> NDArray[Any]:
        """Rows of the file, in the model's order: the inverse of `rows`."""
        if self.order is None:
            return values
        back = np.empty_like(values)
        back[self.order] = values
        return back


@dataclass(frozen=True, kw_only=True, eq=False)
class GGUFPlaces:
    """Places of one model's weights. `architecture` is what general.architecture says."""

    facts: ModelFacts
    architecture: str

    @classmethod
    def of(cls, facts: ModelFacts) -> "GGUFPlaces":
        """`ModelError` for a family whose row order is not known here."""
        if facts.model_type not in ORDERS:
            raise ModelError(
                f"{facts.source} is a model of type '{facts.model_type}', whose GGUF form is not known here",
                expected=f"one of: {', '.join(sorted(ORDERS))}",
                cure="lorawise merge, then llama.cpp's convert_hf_to_gguf.py on the merged folder",
            )
        return cls(facts=facts, architecture=_ARCHITECTURES[facts.model_type])

    def place(self, module: str, rows: int) -> Place | None:
        """Where the weight (rows, …) of a module lies; None for a module that the format has no tensor for."""
        name = self._names.get_name(module)
        if name is None:
            return None
        return Place(tensor=f"{name}.weight", order=ORDERS[self.facts.model_type](self.facts, module, rows))

    @cached_property
    def _names(self) -> Any:
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        known = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}
        return get_tensor_name_map(known[self.architecture], self.facts.num_layers)
