"""Well-known models by their hub ids: the shapes in their public config.json, for use offline and without a token."""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any

EMBEDDED = {"embedded:smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}

_ABOUT_THE_ROW = ("ids", "parameters", "source")


def known_config(name: str) -> Mapping[str, Any] | None:
    """The config of a hub id (any case), or of the embedded model; None when the table does not have it."""
    return _configs().get(EMBEDDED.get(name, name).lower())


def nearest_known(name: str) -> str | None:
    """The well-known id that `name` looks like a misspelling or a copy of; None when none is near."""
    ids: dict[str, str] = {each.lower(): each for row in known_rows() for each in row["ids"]}
    by_model = {each.rpartition("/")[2]: each for each in ids}
    wanted = name.lower()
    if same := by_model.get(wanted.rpartition("/")[2]):
        return ids[same]
    close = get_close_matches(wanted, list(ids), n=1, cutoff=0.85)
    return ids[close[0]] if close else None


def known_rows() -> list[Mapping[str, Any]]:
    """Every row of the table."""
    table = tomllib.loads((resources.files("lorawise.facts") / "known.toml").read_text(encoding="utf-8"))
    return list(table["models"])


@cache
def _configs() -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for row in known_rows():
        config = {key: value for key, value in row.items() if key not in _ABOUT_THE_ROW}
        found |= {name.lower(): config for name in row["ids"]}
    return found
