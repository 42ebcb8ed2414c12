"""Settings the run file knows and this version cannot run yet: refused by name, in this one place."""

from collections.abc import Iterator, Mapping
from typing import Any

from lorawise.base.errors import ConfigError
from lorawise.runfile.schema import RunFile

NOT_BUILT: dict[tuple[str, str], str] = {}  # (dotted key, value) → what to write instead


def not_built(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(dotted key, what to write instead) for every setting, nested as in the file, that has to wait."""
    for (key, value), cure in NOT_BUILT.items():
        section, name = key.split(".")
        written = values.get(section)
        if isinstance(written, Mapping) and written.get(name) == value:
            yield key, f"{key}: '{value}': {cure}"


def require_built(run: RunFile) -> None:
    """Refuse a run that asks for what is not there yet; loading a file does this already."""
    problems = [problem for _, problem in not_built(run.model_dump())]
    if problems:
        raise ConfigError("\n  ".join(problems))


def is_built(key: str, value: str) -> bool:
    """Whether this version can run a setting that it can read: `is_built("base.dtype", "nf4")`."""
    return (key, value) not in NOT_BUILT
