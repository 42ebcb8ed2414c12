"""What a project wants of the checks (rules, levels, files), and what a line asks to be left alone.

[tool.lorawise.check]                    # pyproject.toml, or the same keys at the top of lorawise-check.toml
select = ["LW1", "LW4"]                  # codes or their beginnings; empty: all
ignore = ["LW209"]
strict = false                           # warnings fail too
exclude = ["examples/*"]
levels = { LW201 = "note" }              # error, warning, note or off

lora_alpha=8,  # lorawise: ignore[LW101]     this line; alone on a line: the next one
# lorawise: ignore-file[LW3]                 the whole file; without brackets: everything
"""

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from lorawise.base.errors import ConfigError, nearest
from lorawise.base.findings import Level
from lorawise.checking.rules import RULES

FILE_NAME = "lorawise-check.toml"
LEVELS = (*get_args(Level), "off")
_KEYS = ("select", "ignore", "strict", "exclude", "levels")
_COMMENT = re.compile(r"#\s*lorawise:\s*ignore(?P<file>-file)?(?:\[(?P<codes>[A-Z0-9, ]{0,200})\])?")


@dataclass(frozen=True, kw_only=True)
class Choices:
    """`select` and `ignore` are codes or beginnings of codes; a longer ignore wins over a select."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    levels: Mapping[str, str] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    strict: bool = False

    def __post_init__(self) -> None:
        problems = [f"{code!r}: {nearest(code, list(RULES))}" for code in self._named() if not _is_code(code)]
        problems += [f"level {level!r} of {code}" for code, level in self.levels.items() if level not in LEVELS]
        if problems:
            found = f"no rule or level is called {'; '.join(problems)}"
            raise ConfigError(found, expected=f"codes such as LW101 or LW1; levels {', '.join(LEVELS)}")

    def _named(self) -> Iterable[str]:
        return (*self.select, *self.ignore, *self.levels)

    def takes(self, code: str) -> bool:
        chosen = not self.select or any(code.startswith(prefix) for prefix in self.select)
        return chosen and not any(code.startswith(p) for p in self.ignore) and self._level(code) != "off"

    def level(self, code: str, own: Level) -> Level:
        """What the project says of a rule, else what the rule says."""
        said = self._level(code)
        return said if said in get_args(Level) else own  # type: ignore[return-value]

    def _level(self, code: str) -> str | None:
        fitting = [prefix for prefix in self.levels if code.startswith(prefix)]
        return self.levels[max(fitting, key=len)] if fitting else None

    def leaves_out(self, path: str) -> bool:
        return any(fnmatch.fnmatch(path, pattern) for pattern in self.exclude)


def _is_code(code: str) -> bool:
    return bool(code) and any(known.startswith(code) for known in RULES)


def read_choices(
    start: Path, *, select: Sequence[str] = (), ignore: Sequence[str] = (), strict: bool = False
) -> Choices:
    """The nearest config at or above `start`, with what the call says over it (`ignore` adds, `select` replaces)."""
    found = _nearest_table(start)
    table, where = found if found is not None else ({}, "")
    unknown = [key for key in table if key not in _KEYS]
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}", cure=nearest(unknown[0], _KEYS))
    return Choices(
        select=tuple(select) or _texts(table, "select", where),
        ignore=(*_texts(table, "ignore", where), *ignore),
        levels=_levels(table, where),
        exclude=_texts(table, "exclude", where),
        strict=strict or table.get("strict") is True,
    )


def _nearest_table(start: Path) -> tuple[dict[str, Any], str] | None:
    folder = start.absolute() if start.is_dir() else start.absolute().parent
    for place in (folder, *folder.parents):
        own, project = place / FILE_NAME, place / "pyproject.toml"
        if own.is_file():
            return _toml(own), str(own)
        if project.is_file():
            section: Any = _toml(project).get("tool", {})
            section = section.get("lorawise", {}) if isinstance(section, dict) else {}
            section = section.get("check", {}) if isinstance(section, dict) else {}
            return (section if isinstance(section, dict) else {}), f"{project} [tool.lorawise.check]"
    return None


def _toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > 2**20:
            return {}
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as problem:
        raise ConfigError(f"{path} cannot be read: {problem}", cure="mend it") from None


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ConfigError(f"{where}: {key} is {value!r}", expected="a list of texts")
    return tuple(value)


def _levels(table: Mapping[str, Any], where: str) -> dict[str, str]:
    value = table.get("levels", {})
    if not isinstance(value, dict) or not all(isinstance(level, str) for level in value.values()):
        raise ConfigError(f"{where}: levels is {value!r}", expected='a table such as {LW201 = "note"}')
    return value


@dataclass(frozen=True, kw_only=True)
class Comments:
    """Which codes each line, and the whole file, asks to be left alone; "" stands for all."""

    lines: Mapping[int, tuple[str, ...]]
    whole: tuple[str, ...] = ()

    def silence(self, code: str, line: int | None) -> bool:
        asked = (*self.whole, *(self.lines.get(line, ()) if line is not None else ()))
        return any(code.startswith(prefix) for prefix in asked)


def read_comments(text: str) -> Comments:
    """Comments of a script, a config or a notebook. Text inside quotes counts too: it is the line that is meant."""
    lines: dict[int, tuple[str, ...]] = {}
    whole: tuple[str, ...] = ()
    if "lorawise:" not in text:
        return Comments(lines=lines)
    for number, line in enumerate(text.splitlines(), 1):
        match = _COMMENT.search(line[:2000])
        if match is None:
            continue
        codes = tuple(code.strip() for code in (match["codes"] or "").split(",")) if match["codes"] else ("",)
        if match["file"]:
            whole += codes
        else:
            alone = not line[: match.start()].strip(' "')
            lines[number + 1 if alone else number] = codes
    return Comments(lines=lines, whole=whole)
