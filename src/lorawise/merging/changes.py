"""What a merge will change: for every tensor on disk an update or a replacement, judged before any byte is written.

    linear, head      W (out, in)  += Σ weight · s · B·A
    Conv1D            W (in, out)  += Σ weight · s · (B·A)ᵀ
    embedding         W (rows, width) += Σ weight · s · (B·A)ᵀ        A (r, rows), B (width, r)
    fused experts     each tensor that holds some of them += its part (`experts`)
    trained in full   the trained tensor takes the base's place

A head tied to the embedding and adapted, or beside an adapted embedding, is written out on its own: the run adapted
one of the two, and a tied model could hold only both or neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import AdapterError
from lorawise.base.roles import role_of
from lorawise.base.tensors import StoredTensor
from lorawise.lora.weights import StoredAdapter
from lorawise.merging.arithmetic import Factors
from lorawise.merging.base import CONV1D, FLOATS, Base
from lorawise.merging.experts import Slice, tensors_of

_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Parent:
    """One adapter of a merge, and how much of it."""

    folder: Path
    adapter: StoredAdapter
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Update:
    """W += L·R for one tensor. `source` is the tensor whose values it starts from: the embedding's for a tied head;
    `experts`: what of the module's stack this tensor gets."""

    module: str
    tensor: str
    source: str
    parts: tuple[tuple[Parent, bool], ...]  # each with whether its update is stored transposed
    experts: Slice | None = None

    def factors(self, dtype: str) -> Factors:
        """Both thin matrices, in float64 over a float64 weight, else in float32."""
        kind = np.float64 if dtype == "F64" else np.float32
        left: list[NDArray[Any]] = []
        right: list[NDArray[Any]] = []
        for parent, transposed in self.parts:
            A: NDArray[Any]
            B: NDArray[Any]
            A, B = (half.values().astype(kind) for half in parent.adapter.layers[self.module])
            factor = parent.weight * parent.adapter.config.scaling_of(self.module)
            if self.experts is not None:
                one, other = self.experts.factors(A, B)
            else:
                one, other = (A.T, B.T) if transposed else (B, A)
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused with the sums of its loss
                left.append(np.multiply(one, kind(factor)))
            right.append(other)
        return Factors(
            left=np.ascontiguousarray(np.concatenate(left, axis=-1)),
            right=np.ascontiguousarray(np.concatenate(right, axis=-2)),
        )


@dataclass(frozen=True, kw_only=True)
class Changes:
    """updates       tensor on disk → its update
    replaced      tensor on disk → the trained one
    added         tensor that was not on disk → the one whose values and type it takes (its own update or trained
                  values on top)
    fresh         tensors that only the adapter has: a classifier's head
    dropped       tensors left out: the language head of a classifier
    untied        whether head and embedding part
    """

    updates: Mapping[str, Update]
    replaced: Mapping[str, StoredTensor]
    added: Mapping[str, str] = field(default_factory=dict)
    fresh: Mapping[str, StoredTensor] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    untied: bool = False


def changes_of(base: Base, parents: Sequence[Parent]) -> Changes:
    """`AdapterError` with everything that keeps these adapters from this base."""
    problems = list(_conflicts(parents))
    updates: dict[str, Update] = {}
    for module in dict.fromkeys(m for parent in parents for m in parent.adapter.layers):
        found = _updates(base, module, [p for p in parents if module in p.adapter.layers])
        if isinstance(found, str):
            problems.append(found)
        else:
            updates |= {update.tensor: update for update in found}
    replaced, fresh = dict[str, StoredTensor](), dict[str, StoredTensor]()
    for parent in parents:
        for name, tensor in parent.adapter.full.items():
            problems += _place_full(base, parent, name, tensor, replaced, fresh)
    if problems:
        shown = problems[:_SHOWN] + ([f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])
        raise AdapterError(
            f"{_named(parents)} cannot be merged into {base.files.source}:\n  " + "\n  ".join(shown),
            expected="an adapter trained over this base model",
            cure="name the base that it was trained over (`lorawise adapter show` tells)",
        )
    touched = {*updates, *replaced}
    head, embedding = base.head_name, base.embedding
    untied = base.tied and bool(touched & {head, embedding}) and not fresh
    added: dict[str, str] = {}
    if base.head is None and embedding is not None and (head in touched or (untied and embedding in touched)):
        added[head] = embedding
    dropped = frozenset({base.head} if fresh and base.head is not None else ())
    return Changes(updates=updates, replaced=replaced, added=added, fresh=fresh, dropped=dropped, untied=untied)


def _conflicts(parents: Sequence[Parent]) -> list[str]:
    found = [f"{p.folder} targets nothing: it holds no tensors" for p in parents if not _holds_anything(p.adapter)]
    tasks = {parent.adapter.task for parent in parents}
    if len(tasks) > 1:
        found.append(f"they are of different tasks: {', '.join(sorted(tasks))}")
    whole = [parent for parent in parents if parent.adapter.full]
    if len(whole) > 1:
        found.append(f"{' and '.join(str(p.folder) for p in whole)} both hold modules trained in full: only one may")
    found += [
        f"{p.folder} holds modules trained in full, which cannot be taken {p.weight:g} times"
        for p in whole
        if p.weight != 1.0
    ]
    return found


def _holds_anything(adapter: StoredAdapter) -> bool:
    return bool(adapter.layers or adapter.full)


def _updates(base: Base, module: str, parents: Sequence[Parent]) -> list[Update] | str:
    """The updates of one module, one a tensor, or what keeps it from this base."""
    shapes = {(*a.shape[:-2], b.shape[-2], a.shape[-1]) for a, b in (p.adapter.layers[module] for p in parents)}
    first = next(iter(shapes))
    if len(first) == 2:
        found = _update(base, module, parents)
        return found if isinstance(found, str) else [found]
    if len(shapes) > 1:
        return f"{module}: the adapters are for {' and '.join(str(list(shape)) for shape in sorted(shapes))}"
    tensors = tensors_of(base, module, (first[0], first[1], first[2]))
    if isinstance(tensors, str):
        return tensors
    parts = tuple((parent, False) for parent in parents)
    return [
        Update(module=module, tensor=name, source=name, parts=parts, experts=part) for name, part in tensors.items()
    ]


def _update(base: Base, module: str, parents: Sequence[Parent]) -> Update | str:
    """The update of one matrix, or what keeps it from this base."""
    tensor = base.stored_name(f"{module}.weight")
    source = tensor
    if tensor is None and role_of(module) == "head" and base.head is None:
        tensor, source = base.head_name, base.embedding
    if tensor is None or source is None:
        return _missing(base, module)
    header = base.tensors[source]
    if header.dtype not in FLOATS or len(header.shape) != 2:
        return f"{module}: {source} is {header.dtype} {list(header.shape)}, not a matrix of plain numbers"
    parts = []
    for parent in parents:
        a, b = parent.adapter.layers[module]
        plain, across = (b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])
        transposed = parent.adapter.kinds.get(module) == "embedding" or (
            base.model_type in CONV1D and role_of(module) != "head"
        )
        if header.shape != (across if transposed else plain):
            wanted = across if transposed else plain
            return f"{module}: the adapter is for {list(wanted)}, the base has {list(header.shape)}"
        parts.append((parent, transposed))
    return Update(module=module, tensor=tensor, source=source, parts=tuple(parts))


def _missing(base: Base, module: str) -> str:
    modules = sorted({name.rpartition(".")[0] for name in base.tensors if name.endswith(".weight")})
    close = get_close_matches(module, modules, n=1, cutoff=0.6)
    return f"{module}: the base has no such module" + (f" (nearest: {close[0]})" if close else "")


def _place_full(
    base: Base,
    parent: Parent,
    name: str,
    tensor: StoredTensor,
    replaced: dict[str, StoredTensor],
    fresh: dict[str, StoredTensor],
) -> list[str]:
    """Put one tensor trained in full where it belongs; the problem if it belongs nowhere."""
    stored = base.stored_name(name)
    source = stored
    if stored is None and name == "score.weight" and parent.adapter.task == "SEQ_CLS":
        fresh[name] = tensor
        return []
    if stored is None and role_of(name.rpartition(".")[0]) == "head" and name.endswith(".weight") and base.head is None:
        stored, source = base.head_name, base.embedding
    if stored is None or source is None:
        return [f"{name}: trained in full, but the base has no such parameter"]
    shape = base.tensors[source].shape
    if shape != tensor.shape:
        grown = " (the vocabulary was resized in training)" if shape[1:] == tensor.shape[1:] else ""
        return [f"{name}: the adapter holds {list(tensor.shape)}, the base {list(shape)}{grown}"]
    replaced[stored] = tensor
    return []


def _named(parents: Sequence[Parent]) -> str:
    return ", ".join(str(parent.folder) for parent in parents)
