"""A GGUF file's header: its settings and its tensors' names, shapes and types, without reading a weight.

    "GGUF" | version u32 | tensors u64 | settings u64
    setting: key, type u32, value          tensor: name, dimensions u32, each u64, type u32, offset u64
    string: length u64, bytes              array: type u32, length u64, values

The `gguf` package builds an object for every token of the vocabulary, which takes seconds; here long arrays are
stepped over. A file is input from strangers: nothing outside it is read, and every count is bounded.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorawise.base.errors import TensorFileError

MAX_ENTRIES = 1_000_000  # tensors, settings; the largest seen has about 2,000
MAX_DIMENSIONS = 8
DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 20
KEPT = 1024  # longest array of numbers that is kept as a value

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, kw_only=True)
class GGUFTensor:
    """`shape` in the file's order, fastest dimension first; `type` is ggml's number; `offset` from the first tensor's
    first byte."""

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class GGUFHeader:
    """Settings (arrays of strings and long arrays as their length), and tensors by name in file order.

    infos_at, data_at   where the list of tensors begins, and where the first tensor does
    """

    path: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]
    infos_at: int
    data_at: int

    @property
    def alignment(self) -> int:
        """Tensors begin at a multiple of it."""
        return alignment_of(self.settings)

    @classmethod
    def open(cls, path: Path) -> "GGUFHeader":
        """`TensorFileError` when it is no GGUF file, or a torn one; `OSError` when it cannot be opened."""
        with path.open("rb") as handle:
            if handle.read(4) != b"GGUF":
                raise TensorFileError(f"{path} is not a GGUF file", expected="a file that begins with the letters GGUF")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(path, data).header()


def alignment_of(settings: Mapping[str, Any]) -> int:
    """What the file says, or the format's 32."""
    told = settings.get("general.alignment")
    return told if isinstance(told, int) and 0 < told <= MAX_ALIGNMENT else DEFAULT_ALIGNMENT


def aligned(place: int, alignment: int) -> int:
    """The first multiple of `alignment` that is not before `place`."""
    return -(-place // alignment) * alignment


def encoded(tensors: Mapping[str, GGUFTensor]) -> bytes:
    """The list of tensors as it stands in a file: the inverse of what `GGUFHeader.open` reads from `infos_at` on."""
    parts = []
    for name, tensor in tensors.items():
        raw, size = name.encode(), len(tensor.shape)
        parts += [struct.pack("<Q", len(raw)), raw, struct.pack(f"<I{size}Q", size, *tensor.shape)]
        parts.append(struct.pack("<IQ", tensor.type, tensor.offset))
    return b"".join(parts)


class _Cursor:
    """A place in the file that moves forward as values are read."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 4

    def header(self) -> GGUFHeader:
        try:
            version = self.number("I")
            if version not in (2, 3):
                raise TensorFileError(
                    f"{self.path} has GGUF version {version}", expected="2 or 3, little endian", cure="convert it again"
                )
            tensors, settings = self.count(), self.count()
            values = {self.string(): self.value(self.number("I")) for _ in range(settings)}
            infos_at, held = self.at, {}
            for _ in range(tensors):
                name = self.string()
                shape = tuple(self.number("Q") for _ in range(self.count(MAX_DIMENSIONS, "I")))
                held[name] = GGUFTensor(shape=shape, type=self.number("I"), offset=self.number("Q"))
        except (struct.error, UnicodeDecodeError, OverflowError):
            raise self.torn("it ends inside its header, or the header is damaged") from None
        last = max((tensor.offset for tensor in held.values()), default=0)
        if self.at + last > len(self.data):
            raise self.torn(f"its tensors begin {last:,} bytes after the header, it has {len(self.data):,}")
        data_at = aligned(self.at, alignment_of(values))
        return GGUFHeader(path=self.path, settings=values, tensors=held, infos_at=infos_at, data_at=data_at)

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def count(self, most: int = MAX_ENTRIES, code: str = "Q") -> int:
        value = int(self.number(code))
        if value > most:
            raise self.torn(f"it counts {value:,} where at most {most:,} can be")
        return value

    def string(self) -> str:
        length = self.number("Q")
        self.room(length)
        raw = self.data[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        raise self.torn(f"a setting has type {kind}")

    def array(self) -> Any:
        """Numbers as a list when there are few; of everything else the length."""
        kind, length = self.number("I"), self.number("Q")
        if kind in _NUMBERS:
            width = struct.calcsize(f"<{_NUMBERS[kind]}")
            self.room(length * width)
            start, self.at = self.at, self.at + length * width
            return (
                list(struct.unpack_from(f"<{length}{_NUMBERS[kind]}", self.data, start)) if length <= KEPT else length
            )
        if kind != _STRING:
            raise self.torn(f"an array holds type {kind}")
        self.room(length * 8)
        at, data, unpack = self.at, self.data, struct.Struct("<Q").unpack_from
        for _ in range(length):
            at += 8 + unpack(data, at)[0]
        self.at = at
        return length

    def room(self, size: int) -> None:
        if self.at + size > len(self.data):
            raise self.torn("it ends inside its header")

    def torn(self, why: str) -> TensorFileError:
        return TensorFileError(
            f"{self.path} is torn: {why}", expected="a whole GGUF file", cure="copy or fetch the file again"
        )
