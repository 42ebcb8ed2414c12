"""A source as a person writes it → the files it means, or the rows of a hub data set.

A path that exists is a file or a folder (every data file below it, by name); `*`, `?` and `[` make a pattern; what is
left and looks like `owner/name` is a hub id, read through `datasets`.
"""

import glob
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from lorawise.base.errors import DataError
from lorawise.data.records import READERS, Record, data_suffix, read_records, without_nulls
from lorawise.data.rows import Source, Where

if TYPE_CHECKING:
    import datasets

SHOWN = 3  # names of what is there, where none looks like what was asked for
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SUFFIXES = ", ".join(READERS)


def is_hub_id(source: Source) -> bool:
    """Would this source be fetched from the hub?"""
    path = Path(source.path).expanduser()
    return not path.exists() and _HUB_ID.fullmatch(source.path) is not None and data_suffix(path) not in READERS


def source_records(source: Source) -> Iterator[Record]:
    """Every record of a source, in a fixed order. Raises `DataError` when there is no such source."""
    if is_hub_id(source):
        yield from _hub_records(source)
        return
    for path in source_files(source):
        yield from read_records(path, str(path))


def source_files(source: Source) -> list[Path]:
    """The files a source means, sorted by name. Raises `DataError` when there are none."""
    try:
        return _files(source)
    except OSError as problem:
        raise DataError(
            f"{source.path} cannot be read: {problem.filename or source.path}: {problem.strerror}",
            cure="name the data file itself, or a folder that holds nothing else",
        ) from None


def _files(source: Source) -> list[Path]:
    path = Path(source.path).expanduser()
    if path.is_file():
        if data_suffix(path) not in READERS:
            raise DataError(f"{source.path} is not a kind of file that holds rows", expected=_SUFFIXES)
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _is_data(p, below=path))
    elif glob.has_magic(source.path):
        found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file() and _is_data(p))
    elif path.exists():
        raise DataError(f"{source.path} is neither a file nor a folder", cure="write its rows to a file")
    else:
        raise DataError(f"{source.path} does not exist", cure=_near_file(path))
    if not found:
        raise DataError(f"{source.path} holds no data file", expected=_SUFFIXES)
    return found


def _is_data(path: Path, below: Path | None = None) -> bool:
    """A data file; of a folder's files, none that is hidden or lies in a hidden folder."""
    inside = path.relative_to(below).parts if below else ()
    return data_suffix(path) in READERS and not any(part.startswith(".") for part in inside)


def _near_file(path: Path) -> str:
    folder = path.parent
    names = [p.name for p in folder.iterdir() if p.is_dir() or data_suffix(p) in READERS] if folder.is_dir() else []
    if not names:
        return f"there is no data in {folder}; a hub id is written owner/name"
    near = get_close_matches(path.name, names, n=3, cutoff=0.75)
    if near:
        return f"did you mean {' or '.join(repr(name) for name in near)}?"
    shown = ", ".join(sorted(names)[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"in {folder} there is {shown}{more}; a hub id is written owner/name"


def _hub_records(source: Source) -> Iterator[Record]:
    dataset = _open_hub(source)
    names = _class_names(dataset)
    for number, value in enumerate(dataset, 1):
        for column, classes in names.items():
            label = value[column]
            value[column] = classes[label] if label is not None and 0 <= label < len(classes) else None
        yield Record(where=Where(path=source.path, line=number), value=without_nulls(value))


def _open_hub(source: Source) -> "datasets.Dataset":
    import datasets

    try:
        found = datasets.load_dataset(source.path, source.subset, split=source.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as problem:
        said = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise DataError(
            f"{source.path} (split {source.split}) is no file here and could not be read from the hub: {said}",
            cure="check the name and the split; offline, give a local file, or the folder of a copy made with "
            "`hf download --repo-type dataset`; if it needs a login, `hf auth login`",
        ) from problem
    return found


def _class_names(dataset: "datasets.Dataset") -> Mapping[str, list[str]]:
    """Columns of class numbers → their names."""
    import datasets

    return {name: f.names for name, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)}
