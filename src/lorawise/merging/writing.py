"""The files of a merge: every tensor of the base copied, updated, replaced or converted, shard after shard.

File names, the order of tensors and the index stay the base's own; what was added (a head parted from its embedding, a
classifier's head) goes into the last file.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import AdapterError
from lorawise.base.threads import one_blas_thread
from lorawise.merging.arithmetic import Loss, Weight, cast, merged, numbers
from lorawise.merging.base import CONV1D, FLOATS, INDEX, Base, is_linear
from lorawise.merging.changes import Changes, Update
from lorawise.merging.companions import companions, merged_config
from lorawise.merging.nf4 import Quantised, round_trip
from lorawise.merging.shards import Piece, converted, copied, piece, placed, rows_of, write_shard
from lorawise.training.heap import keep_freed_memory

Into = Literal["stored", "nf4", "nf4-double"]
Progress = Callable[[int, int], None]  # bytes written, bytes to write


@dataclass(frozen=True, kw_only=True)
class MergedLayer:
    name: str
    loss: Loss

    @property
    def retention(self) -> float:
        return self.loss.retention

    @property
    def error(self) -> float:
        return self.loss.error


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Every file of the result. `dtype` None keeps each tensor's own; `losses` fills as adapted weights are written."""

    base: Base
    changes: Changes
    dtype: str | None
    into: Into
    pool: ThreadPoolExecutor
    losses: dict[str, Loss] = field(default_factory=dict)

    @cached_property
    def pieces(self) -> dict[str, list[Piece]]:
        """File name → its tensors, none of them read yet."""
        changes, last = self.changes, self.base.shards[-1].path.name
        found = {
            shard.path.name: [self._piece(name, name) for name in shard.tensors if name not in changes.dropped]
            for shard in self.base.shards
        }
        found[last] += [self._piece(name, source) for name, source in changes.added.items()]
        found[last] += [placed(name, tensor, self.dtype or tensor.dtype) for name, tensor in changes.fresh.items()]
        return found

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for pieces in self.pieces.values() for each in pieces)

    def write(self, folder: Path, progress: Progress) -> list[MergedLayer]:
        """Write everything into `folder`; what each adapted weight lost, in the order written."""
        total, written = self.nbytes, 0

        def done(count: int) -> None:
            nonlocal written
            written += count
            progress(written, total)

        keep_freed_memory()  # the same few blocks again and again: their pages need not be faulted in each time
        with one_blas_thread():
            for shard in self.base.shards:
                pieces = self.pieces[shard.path.name]
                write_shard(folder / shard.path.name, pieces, shard.metadata or {"format": "pt"}, done)
        self._write_rest(folder)
        lost: dict[str, Loss] = {}
        for name, loss in self.losses.items():
            module = self.changes.updates[name].module
            lost[module] = lost.get(module, Loss()) + loss
        return [MergedLayer(name=module, loss=loss) for module, loss in lost.items()]

    def _write_rest(self, folder: Path) -> None:
        index = self.base.index()
        if index is not None:
            places = {piece.name: file for file, pieces in self.pieces.items() for piece in pieces}
            index["metadata"] = {**index.get("metadata", {}), "total_size": self.nbytes}
            index["weight_map"] = dict(sorted(places.items()))
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        config = merged_config(self.base, self.changes, self.dtype)
        (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in companions(self.base.files.folder):
            place = folder / path.relative_to(self.base.files.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)

    def _piece(self, name: str, source: str) -> Piece:
        shard = self.base.home(source)
        header = shard.tensors[source]
        into = self.dtype if self.dtype is not None and header.dtype in FLOATS else header.dtype
        if name in self.changes.replaced:
            return placed(name, self.changes.replaced[name], into)
        rounded = self.into if self.into != "stored" and is_linear(source, header.shape) else None
        update = self.changes.updates.get(name)
        if update is not None:
            return self._updated(name, update, into, rounded)
        if rounded is not None:
            return piece(name, into, header.shape, lambda: [cast(self._quantised(source, rounded), header.dtype, into)])
        if into == header.dtype:
            return copied(shard, source, as_name=name)
        return converted(shard, source, into, as_name=name)

    def _updated(self, name: str, update: Update, into: str, rounded: Quantised | None) -> Piece:
        shard = self.base.home(update.source)
        header = shard.tensors[update.source]
        shape = (math.prod(header.shape[:-1]), header.shape[-1])

        def blocks() -> Iterator[NDArray[Any]]:
            rows = rows_of(shard, update.source)
            if rounded is not None:
                held = self._quantised(update.source, rounded)
                rows = lambda first, last: held[first:last]  # noqa: E731
            weight = Weight(shape=shape, dtype=header.dtype, into=into, rows=rows)
            loss = Loss()
            for block, lost in merged(weight, update.factors(header.dtype), self.pool):
                loss += lost
                yield block
            if not loss.is_finite:
                raise AdapterError(
                    f"merging into {update.module} gives values that are not finite in {into}",
                    expected="finite A, B and base weights",
                    cure="the adapter is too strong for this type, or diverged: try --dtype float32, or check it",
                )
            self.losses[name] = loss

        return piece(name, into, header.shape, blocks)

    def _quantised(self, source: str, how: Quantised) -> NDArray[Any]:
        """A weight after NF4, as bits of its own type; Conv1D weights are quantised as (out, in)."""
        tensor = self.base.home(source).tensor(source)
        values = numbers(tensor.bits(), tensor.dtype).astype(np.float32)
        across = self.base.model_type in CONV1D
        restored = round_trip(np.ascontiguousarray(values.T), how).T if across else round_trip(values, how)
        return cast(np.ascontiguousarray(restored), "F32", tensor.dtype)
