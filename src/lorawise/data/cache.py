"""Tokenised rows, kept by the digest of everything they follow from.

    key = sha256(format, rows, tokenizer, template, options)  →  <cache>/tokens/<key>.npz

A cache is a convenience: a torn or foreign file is made again, and a disk that is full or read-only is a finding, never
the end of a run. Files appear whole or not at all (one rename).
"""

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np

from lorawise.base.cache import cache_folder
from lorawise.base.findings import Finding
from lorawise.data.encoded import Encoded, EncodedSet, Refusal
from lorawise.data.rows import Row

FORMAT = "lorawise tokens 2"


def path_of(key: str, folder: Path | None = None) -> Path:
    return (folder or cache_folder()) / "tokens" / f"{key}.npz"


def write(path: Path, encoded: EncodedSet, refused: Sequence[Refusal]) -> tuple[Finding, ...]:
    """Store one set; a disk that refuses gives a finding."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as out:
                np.savez(out, **_arrays(encoded, refused))  # type: ignore[arg-type]
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as problem:
        return (
            Finding(
                code="cache-unwritable",
                level="note",
                message=f"tokenised rows are not kept: {problem.strerror or problem}",
                cure="free space, or name a writable folder in LORAWISE_CACHE",
                path=str(path.parent),
            ),
        )
    return ()


def read(path: Path, rows: Sequence[Row]) -> tuple[EncodedSet, list[Refusal]] | None:
    """What is stored; None when there is nothing, or nothing that can be read whole (zip checks every byte's crc)."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return _from_arrays(arrays, rows)
    except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile):
        return None


def _arrays(encoded: EncodedSet, refused: Sequence[Refusal]) -> dict[str, np.ndarray]:
    rows = encoded.rows
    return {
        "ids": np.concatenate([row.ids for row in rows]) if rows else np.zeros(0, dtype=np.int32),
        "trained": np.packbits(np.concatenate([row.trained for row in rows])) if rows else np.zeros(0, dtype=np.uint8),
        "lengths": encoded.lengths,
        "row": np.array([row.row for row in rows], dtype=np.int64),
        "cut": np.array([row.cut for row in rows], dtype=np.int64),
        "label": np.array([-1 if row.label is None else row.label for row in rows], dtype=np.int64),
        "stop_ids": np.array(encoded.stop_ids, dtype=np.int64),
        "refused": np.frombuffer(json.dumps([astuple(refusal) for refusal in refused]).encode(), dtype=np.uint8),
    }


def _from_arrays(stored: dict[str, np.ndarray], rows: Sequence[Row]) -> tuple[EncodedSet, list[Refusal]]:
    lengths, ids = stored["lengths"], stored["ids"]
    trained = np.unpackbits(stored["trained"], count=len(ids)).astype(bool)
    ends = np.cumsum(lengths)
    index, cut, label = (stored[name].tolist() for name in ("row", "cut", "label"))
    encoded = tuple(
        Encoded(
            ids=ids[end - length : end],
            trained=trained[end - length : end],
            row=index[i],
            cut=cut[i],
            label=None if label[i] < 0 else label[i],
        )
        for i, (length, end) in enumerate(zip(lengths.tolist(), ends.tolist(), strict=True))
    )
    refused = [Refusal(row=row, code=code, found=found) for row, code, found in json.loads(stored["refused"].tobytes())]
    weights = np.array([rows[row.row].weight for row in encoded], dtype=np.float64)
    return EncodedSet(rows=encoded, weights=weights, stop_ids=tuple(stored["stop_ids"].tolist())), refused
