"""A run file as text: completed, commented, in the order of the schema, and equal when it is read again."""

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from lorawise.runfile.schema import EXCLUSIVE, DataSource, RunFile

COMMENT_COLUMN = 36
HEADER = "# A lorawise run, completed with every default that was used.\n"


def to_yaml(run: RunFile) -> str:
    return HEADER + "\n".join(_lines(run, section="", indent="")) + "\n"


def _lines(settings: BaseModel, *, section: str, indent: str) -> Iterator[str]:
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _lines(value, section=name, indent=indent + "  ")
        elif not _is_unused_half(section, name, value):
            yield _commented(f"{indent}{name}: {written(value)}", field.description or "")


def _is_unused_half(section: str, name: str, value: object) -> bool:
    return value is None and any(name in pair for pair in EXCLUSIVE.get(section, ()))


def _commented(line: str, comment: str) -> str:
    return f"{line:<{COMMENT_COLUMN}}  # {comment}" if comment else line


def written(value: Any) -> str:
    """One value on one line, as a run file holds it."""
    return _flow(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and value and all(isinstance(entry, DataSource) for entry in value):
        sources = [_source(entry) for entry in value]
        return sources[0] if len(sources) == 1 else sources
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return list(value) if isinstance(value, tuple) else value


def _source(source: DataSource) -> str | dict[str, object]:
    written = source.model_dump(exclude_defaults=True)
    return str(written["path"]) if set(written) == {"path"} else written


def _flow(value: object) -> str:
    """One value on one line; a scalar loses the end mark `...` that a lone YAML document carries."""
    dumped = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("\n...").strip(" \n")
