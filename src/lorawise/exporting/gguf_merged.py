"""A GGUF model with the adapter in it: the same file, byte for byte, but for the tensors that the adapter updates.

    W' = quantised(W + scaling · B·A)      W the file's numbers in float32, rows of B in the file's order

Settings, tokenizer and every tensor that is not adapted are copied as they are. An adapted one keeps its type where
that has 8 bits or more, and else becomes Q8_0: four bits round a small update away (docs/export.md has figures).
`keep` keeps any type that the `gguf` package can write; K- and IQ-types it only reads. What rounding lost is measured
as a merge measures it.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import AdapterError, ConfigError, ModelError, nearest
from lorawise.base.files import atomic_folder, refuse_full_disk, sha256_file
from lorawise.base.findings import Finding
from lorawise.base.gguf import GGUFHeader, GGUFTensor, aligned, encoded
from lorawise.exporting.exporters import Exported, Options
from lorawise.exporting.gguf_places import places_of
from lorawise.exporting.gguf_types import INTO, WRITABLE, can_be_read, refuse_unknown_types, size_of, type_for
from lorawise.facts.gguf import read_gguf
from lorawise.facts.gguf_tensors import Place
from lorawise.merging.arithmetic import AT_ONCE, BLOCK, Factors, Loss
from lorawise.merging.companions import RECORD
from lorawise.merging.writing import MergedLayer
from lorawise.models.files import EMBEDDED
from lorawise.store.algebra.result import Source

MODEL = "model.gguf"
LOSSY = 0.05
_CHUNK = 1 << 22  # bytes copied at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapted:
    """One tensor to change: the module that changes it, where its rows lie, and the type it becomes."""

    module: str
    place: Place
    held: GGUFTensor
    into: int


def to_merged_gguf(source: Source, folder: Path, options: Options) -> Exported:
    """`ConfigError` where the base is no GGUF file, `AdapterError` for what does not fit it or cannot be written."""
    with base_file(source, options) as path:
        merging = Merging.of(source, path, options)
        refuse_full_disk(folder, merging.nbytes)
        with atomic_folder(folder) as scratch:
            layers = merging.write(scratch)
    return merging.exported(folder, layers)


@contextlib.contextmanager
def base_file(source: Source, options: Options) -> Iterator[Path]:
    """The base's GGUF file: as named, or the embedded model's for as long as the block lasts."""
    named = options.model or source.base
    path = Path(named).expanduser()
    if named == EMBEDDED:
        from lorawise.models.embedded import embedded_file

        with embedded_file() as path:
            yield path
        return
    if path.suffix.lower() == ".gguf" and not path.is_file():
        raise ConfigError(f"there is no file {path}", expected="the base's GGUF file", cure="name it with --model")
    if path.suffix.lower() != ".gguf":
        raise ConfigError(
            f"{named or 'the base, which the adapter does not name,'} is no GGUF file",
            expected="--model BASE.gguf: the adapter is put into that file",
            cure=f"or lorawise merge {named or 'MODEL'} {source.folder} -o merged, and llama.cpp's convert_hf_to_gguf",
        )
    yield path


@dataclass(frozen=True, kw_only=True, eq=False)
class Merging:
    """One merge, judged and not yet written: the base's header, the result's, and what is to change between them."""

    source: Source
    header: GGUFHeader
    layout: GGUFHeader
    adapted: Mapping[str, Adapted]
    options: Options

    @classmethod
    def of(cls, source: Source, path: Path, options: Options) -> "Merging":
        header = GGUFHeader.open(path)
        if int(header.settings.get("split.count") or 1) > 1:
            raise ModelError(f"{path} is one part of a model", cure="join the parts with llama-gguf-split --merge")
        refuse_unknown_types(header)
        ends = [header.data_at + held.offset + size_of(held) for held in header.tensors.values()]
        if path.stat().st_size < max(ends, default=0):
            raise ModelError(f"{path} is torn: it ends inside its tensors", cure="copy or fetch the file again")
        _, places = places_of(source, read_gguf(path, str(path)))
        adapted = _adapted(source, header, places, options.dtype)
        return cls(source=source, header=header, layout=_layout(header, adapted), adapted=adapted, options=options)

    @property
    def nbytes(self) -> int:
        return self.layout.data_at + sum(size_of(tensor) for tensor in self.layout.tensors.values())

    def write(self, folder: Path) -> list[MergedLayer]:
        """The model and its record."""
        progress, total = self.options.progress or (lambda done, wanted: None), self.nbytes
        layers = []
        with (
            ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool,
            self.header.path.open("rb") as old,
            (folder / MODEL).open("wb") as new,
        ):
            new.write(old.read(self.header.infos_at))
            new.write(encoded(self.layout.tensors))
            for name, held in self.header.tensors.items():
                _pad(new, self.layout.data_at + self.layout.tensors[name].offset)
                begins = self.header.data_at + held.offset
                if name in self.adapted:
                    layers.append(_merge(old, new, begins, self.adapted[name], self.source, pool))
                else:
                    _copy(old, new, begins, size_of(held))
                progress(new.tell(), total)
            _pad(new, aligned(new.tell(), self.layout.alignment))
        loss = sum((layer.loss for layer in layers), Loss())
        record = {
            "format": 1,
            "base": {"source": self.options.model or self.source.base, "sha256": sha256_file(self.header.path)},
            "adapters": [{"digest": self.source.digest, "weight": 1.0}],
            "retention": loss.retention,
            "error": loss.error,
        }
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return layers

    def exported(self, folder: Path, layers: Sequence[MergedLayer]) -> Exported:
        loss = sum((layer.loss for layer in layers), Loss())
        return Exported(
            path=folder,
            error=loss.error,
            rank=max(a.shape[0] for a, _ in self.source.adapter.layers.values()),
            scale=1.0,
            files=(MODEL, RECORD),
            rounded=False,
            flags=(f"-m {folder / MODEL}",),
            findings=(*self._other_base(), *self._widened(), *_lossy(loss, self.options.dtype)),
            opens=folder / MODEL,
            layers=tuple(layers),
        )

    def _other_base(self) -> Iterator[Finding]:
        """Shapes are proved; whether the numbers are those of the run's base a quantised file cannot tell."""
        named, base = self.options.model or self.source.base, self.source.base
        if base and Path(named).expanduser() != Path(base).expanduser():
            message = f"the adapter was trained over {base}; its shapes fit {named}, whose weights may be others"
            yield Finding(code="other-base", level="note", message=message, cure="--verify shows how it answers there")

    def _widened(self) -> Iterator[Finding]:
        from gguf import GGMLQuantizationType

        changed = Counter((each.held.type, each.into) for each in self.adapted.values() if each.held.type != each.into)
        if self.options.dtype != "auto" or not changed:
            return
        told = [
            f"{count} from {GGMLQuantizationType(old).name} to {GGMLQuantizationType(new).name}"
            for (old, new), count in changed.most_common()
        ]
        message = f"adapted tensors take a wider type, which keeps the update: {', '.join(told)}"
        yield Finding(code="widened", level="note", message=message, cure="--dtype keep leaves their type")


def _adapted(source: Source, header: GGUFHeader, places: Mapping[str, Place], dtype: str) -> dict[str, Adapted]:
    """Tensor → what becomes of it; everything that cannot be written is told at once."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if dtype not in ("auto", "keep", *INTO):
        raise ConfigError(f"'{dtype}' is no dtype of a merged GGUF", cure=nearest(dtype, ["auto", "keep", *INTO]))
    found, problems = dict[str, Adapted](), list[str]()
    for module, (a, b) in source.adapter.layers.items():
        place = places[module]
        held = header.tensors.get(place.tensor)
        if held is None or held.shape != (a.shape[1], b.shape[0]):
            problems.append(f"{module}: the file holds no {place.tensor} of {a.shape[1]} → {b.shape[0]}")
            continue
        kind = GGMLQuantizationType(held.type)
        into = GGMLQuantizationType[type_for(kind.name, held.shape[0], dtype)]
        if not can_be_read(kind):
            problems.append(f"{place.tensor} is {kind.name}, which cannot be read here")
        elif into.name not in WRITABLE:
            problems.append(f"{place.tensor} is {kind.name}, which is only read here")
        elif held.shape[0] % GGML_QUANT_SIZES[into][0]:
            problems.append(f"{place.tensor} is {held.shape[0]} wide, which {into.name} cannot hold")
        else:
            found[place.tensor] = Adapted(module=module, place=place, held=held, into=int(into))
    if problems:
        raise AdapterError(
            f"{header.path} cannot take {source.folder}:\n  " + "\n  ".join([*problems[:8], *_more(problems)]),
            expected=f"tensors of type {', '.join(WRITABLE)}",
            cure="leave --dtype out, or name q8_0 or float16: it is for the adapted tensors alone",
        )
    return found


def _more(problems: list[str]) -> list[str]:
    return [f"and {len(problems) - 8} more"] if len(problems) > 8 else []


def _layout(header: GGUFHeader, adapted: Mapping[str, Adapted]) -> GGUFHeader:
    """The header of the result: types as they become, each tensor at the next aligned place."""
    tensors, end = dict[str, GGUFTensor](), 0
    for name, held in header.tensors.items():
        tensors[name] = replace(held, type=adapted[name].into if name in adapted else held.type, offset=end)
        end = aligned(end + size_of(tensors[name]), header.alignment)
    data_at = aligned(header.infos_at + len(encoded(tensors)), header.alignment)
    return replace(header, tensors=tensors, data_at=data_at)


def _pad(file: BinaryIO, place: int) -> None:
    file.write(bytes(place - file.tell()))


def _copy(old: BinaryIO, new: BinaryIO, begins: int, size: int) -> None:
    old.seek(begins)
    for start in range(0, size, _CHUNK):
        new.write(old.read(min(size - start, _CHUNK)))


def _merge(
    old: BinaryIO, new: BinaryIO, begins: int, change: Adapted, source: Source, pool: ThreadPoolExecutor
) -> MergedLayer:
    """Block of rows by block of rows, a few at once."""
    columns, rows = change.held.shape
    stride = size_of(change.held) // rows
    update = _update(source, change)
    height = max(1, BLOCK // columns)
    spans = [(first, min(first + height, rows)) for first in range(0, rows, height)]

    def block(span: tuple[int, int]) -> tuple[NDArray[Any], Loss]:
        raw = np.frombuffer(os.pread(old.fileno(), (span[1] - span[0]) * stride, begins + span[0] * stride), np.uint8)
        return _merged_block(raw.reshape(-1, stride), change, update.left[slice(*span)] @ update.right)

    loss = Loss()
    for i in range(0, len(spans), AT_ONCE):
        for bits, lost in pool.map(block, spans[i : i + AT_ONCE]):
            new.write(bits.data)
            loss += lost
    if not loss.is_finite:
        raise AdapterError(
            f"merging into {change.place.tensor} gives values that are not finite",
            expected="finite A, B and base weights",
            cure="the adapter is too strong for this type, or diverged: try --dtype float32, or check it",
        )
    return MergedLayer(name=change.module, loss=loss)


def _update(source: Source, change: Adapted) -> Factors:
    a, b = (half.values().astype(np.float32) for half in source.adapter.layers[change.module])
    scaling = np.float32(source.adapter.config.scaling_of(change.module))
    return Factors(left=np.ascontiguousarray(change.place.rows(b * scaling)), right=a)


def _merged_block(raw: NDArray[np.uint8], change: Adapted, delta: NDArray[Any]) -> tuple[NDArray[Any], Loss]:
    from gguf import GGMLQuantizationType, dequantize, quantize

    def numbers(bits: NDArray[Any], kind: int) -> NDArray[np.float32]:
        return np.asarray(dequantize(bits, GGMLQuantizationType(kind)), dtype=np.float32)

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what is not finite is refused by its loss
        before = numbers(raw, change.held.type)
        bits = np.ascontiguousarray(quantize(before + delta, GGMLQuantizationType(change.into)))
        return bits, Loss.of(numbers(bits.view(np.uint8), change.into) - before, delta)


def _lossy(loss: Loss, dtype: str) -> Iterator[Finding]:
    if loss.error > LOSSY and dtype != "float32":
        message = f"rounding changed the update by {loss.error:.1%}; {loss.retention:.1%} of it is kept"
        cure = "--dtype float16 keeps more; an adapter beside the model (--to gguf without --merged) loses nothing"
        yield Finding(code="rounded-away", level="warning", message=message, cure=cure)
