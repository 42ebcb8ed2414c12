"""`--set lora.r=32`: values from the call, put over those of a run file.

One of a pair that excludes another takes the other away (`--set train.steps=10` over `epochs: 3`). A rank alone keeps
what is written: over `scaling` the scaling stays; over `alpha` the alpha stays and a finding says what the scaling
became; over both (a completed file) the scaling stays.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorawise.base.errors import ConfigError
from lorawise.base.findings import Finding
from lorawise.runfile import fields as kinds
from lorawise.runfile.paths import resolve_paths
from lorawise.runfile.schema import EXCLUSIVE, RunFile
from lorawise.runfile.yaml_lines import Key, read_value


def parse_sets(sets: Sequence[str]) -> dict[Key, Any]:
    """`("lora.r=32",)` → {("lora", "r"): 32}. The text after `=` is YAML; the last of two for one key wins."""
    parsed: dict[Key, Any] = {}
    for entry in sets:
        dotted, equals, value = entry.partition("=")
        path = tuple(part.strip() for part in dotted.split("."))
        if not equals or not all(path):
            raise ConfigError(f"--set {entry}", expected="key=value, such as --set lora.r=32")
        parsed[path] = read_value(value)
    return parsed


def apply_sets(tree: Mapping[str, Any], sets: Mapping[Key, Any], folder: Path) -> dict[str, Any]:
    """A copy of `tree` with `sets` over it; their relative paths start at `folder`."""
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    for path, value in sets.items():
        _drop_rivals(result, path, sets)
        _put(result, path, _resolved(path, value, folder))
    if ("lora", "r") in sets and not {("lora", "alpha"), ("lora", "scaling")} & set(sets):
        lora = result.get("lora")
        if isinstance(lora, dict) and lora.get("scaling") is not None:
            lora.pop("alpha", None)
    return result


def _drop_rivals(tree: dict[str, Any], path: Key, sets: Mapping[Key, Any]) -> None:
    section = tree.get(path[0])
    if len(path) != 2 or not isinstance(section, dict):
        return
    for pair in EXCLUSIVE.get(path[0], ()):
        for rival in pair:
            if path[1] in pair and rival != path[1] and (path[0], rival) not in sets:
                section.pop(rival, None)


def _put(tree: dict[str, Any], path: Key, value: Any) -> None:
    branch = tree
    for depth, part in enumerate(path[:-1]):
        inner = branch.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"--set {'.'.join(path)}: {'.'.join(path[: depth + 1])} is {inner!r}, which holds no keys",
            )
        branch = inner
    branch[path[-1]] = value


def _resolved(path: Key, value: Any, folder: Path) -> Any:
    nested: Any = value
    for part in reversed(path):
        nested = {part: nested}
    nested = resolve_paths(nested, folder)
    for part in path:
        nested = nested[part]
    return nested


def scaling_findings(tree: Mapping[str, Any], sets: Mapping[Key, Any], run: RunFile) -> list[Finding]:
    """What a rank from the call did to a scaling that the file fixed through alpha."""
    lora = tree.get("lora")
    if ("lora", "r") not in sets or {("lora", "alpha"), ("lora", "scaling")} & set(sets) or not isinstance(lora, dict):
        return []
    alpha = kinds.number(lora.get("alpha"))
    if alpha is None or lora.get("scaling") is not None:
        return []
    written_r = int(kinds.number(lora.get("r")) or type(run.lora).model_fields["r"].default)
    before = alpha / (math.sqrt(written_r) if run.lora.rslora else written_r)
    after = run.lora_config().scaling
    if math.isclose(before, after):
        return []
    moved = "falls" if after < before else "rises"
    return [
        Finding(
            code="scaling-changed",
            level="warning",
            message=f"r={run.lora.r} (was {written_r}) keeps alpha={alpha:g} as written, so scaling {moved} "
            f"from {before:g} to {after:g}",
            cure=f"--set lora.scaling={before:g} keeps the strength",
        )
    ]
