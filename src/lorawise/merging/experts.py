"""Where a layer's fused experts lie on disk, and the part of their update that each tensor there gets.

    in memory                          on disk
    ….experts.gate_up_proj (E, …)      the same                                   all experts' updates, block by block
                                       granitemoe: ….input_linear.weight          the same
                                       ….experts.3.gate_proj.weight (inner, in)   rows of B₃, times A₃
                                       mixtral: ….block_sparse_moe.experts.3.w1   the same

Fused tensors are (E, out, in), in gpt-oss (E, in, out). Experts apart on disk are gate and up, one after the other, in
memory: B's first rows are gate's, the rest up's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.merging.base import FLOATS, Base

TRANSPOSED = ("gpt_oss", "openai_privacy_filter")  # model types whose fused experts are kept (in, out)
_FUSED = {"gate_up_proj": "input_linear.weight", "down_proj": "output_linear.weight"}  # beside the experts' module
_APART = (
    {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)},
    {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)},
)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What of a stack B·A a tensor gets: one expert's rows `first` to `last` of B; `expert` None: the whole stack, each
    expert's transposed where the tensor is (E, in, out)."""

    expert: int | None = None
    first: int = 0
    last: int = 0
    transposed: bool = False

    def factors(self, A: NDArray[Any], B: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """(left, right) of the update, 2-D for one expert, 3-D for the stack."""
        if self.expert is not None:
            return B[self.expert, self.first : self.last], A[self.expert]
        if self.transposed:
            return np.swapaxes(A, 1, 2), np.swapaxes(B, 1, 2)
        return B, A


def tensors_of(base: Base, module: str, shape: tuple[int, int, int]) -> dict[str, Slice] | str:
    """Tensor on disk → its slice of the update (E, out, in) of one parameter of experts, or what keeps it from this
    base."""
    count, out, width = shape
    owner, _, key = module.rpartition(".")
    for name in (module, f"{owner.rpartition('.')[0]}.{_FUSED.get(key, '')}"):
        stored = base.stored_name(name)
        if stored is not None:
            across = base.model_type in TRANSPOSED
            wanted = (count, width, out) if across else shape
            found = base.tensors[stored]
            if found.dtype not in FLOATS or found.shape != wanted:
                return f"{module}: {stored} is {found.dtype} {list(found.shape)}, expected plain {list(wanted)}"
            return {stored: Slice(transposed=across)}
    for spelled in dict.fromkeys((owner, owner.replace(".mlp.", ".block_sparse_moe."))):
        for leaves in _APART:
            names = leaves.get(key, ())
            if names and base.stored_name(f"{spelled}.0.{names[0]}.weight") is not None:
                return _apart(base, module, spelled, names, shape)
    return f"{module}: the base has no such experts, neither fused nor apart"


def _apart(
    base: Base, module: str, owner: str, leaves: tuple[str, ...], shape: tuple[int, int, int]
) -> dict[str, Slice] | str:
    count, out, width = shape
    rows = out // len(leaves)
    found: dict[str, Slice] = {}
    for name, expert, place in _names(owner, leaves, count):
        stored = base.stored_name(name)
        if stored is None:
            return f"{module}: the base has no {name}"
        header = base.tensors[stored]
        if header.dtype not in FLOATS or header.shape != (rows, width) or rows * len(leaves) != out:
            return f"{module}: {stored} is {header.dtype} {list(header.shape)}, expected plain {[rows, width]}"
        found[stored] = Slice(expert=expert, first=place * rows, last=(place + 1) * rows)
    if base.stored_name(f"{owner}.{count}.{leaves[0]}.weight") is not None:
        return f"{module}: the adapter is for {count} experts, the base has more"
    return found


def _names(owner: str, leaves: tuple[str, ...], count: int) -> Iterator[tuple[str, int, int]]:
    for expert in range(count):
        for place, leaf in enumerate(leaves):
            yield f"{owner}.{expert}.{leaf}.weight", expert, place
