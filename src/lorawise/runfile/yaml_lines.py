"""YAML read safely, with the line of every key.

Only plain data is built (no tags, no objects). Duplicate keys are problems. A file is bounded in size, depth and in the
number of values after aliases are expanded, so that a small file cannot become a huge one.
"""

from dataclasses import dataclass, field
from typing import Any

import yaml

from lorawise.base.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000
MAX_DEPTH = 20

Key = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """What a file says: `values` as plain data, `lines` from the path of a key to its line, from 1."""

    values: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)
    problems: tuple[tuple[int, str], ...] = ()


def read_tree(text: str, origin: str) -> Tree:
    """Parse `text`; `origin` names it in errors. ConfigError when it is not one mapping of plain data."""
    if len(text.encode()) > MAX_BYTES:
        raise ConfigError(f"{origin} is larger than {MAX_BYTES:,} bytes", expected="a run file: one page of YAML")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{origin}{line}: not YAML: {problem.problem or problem.context}") from None
    except yaml.YAMLError as problem:
        raise ConfigError(f"{origin}: not YAML: {' '.join(str(problem).split())}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: nested too deeply to be a run file") from None
    if root is None or not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{origin} holds {'nothing' if root is None else 'no keys'}",
            expected="keys such as `model: …` and `data: {train: …}`",
        )
    builder = _Builder(origin)
    values = builder.mapping(root, ())
    return Tree(values=values, lines=builder.lines, problems=tuple(builder.problems))


def read_value(text: str) -> Any:
    """One value as YAML has it (`32`, `true`, `[q_proj, v_proj]`), for `--set`."""
    values = read_tree(f"value: {text}", f"--set value {text!r}").values
    if values.keys() != {"value"}:
        raise ConfigError(f"--set value {text!r} holds more than one value", cure="one --set for each key")
    return values["value"]


class _Builder:
    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.lines: dict[Key, int] = {}
        self.problems: list[tuple[int, str]] = []
        self.count = 0
        self.scalars = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node, path: Key) -> Any:
        self.count += 1
        if self.count > MAX_VALUES or len(path) > MAX_DEPTH:
            raise ConfigError(
                f"{self.origin} expands to more than a run file can hold", cure="write it without aliases"
            )
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._entry(child, (*path, str(index))) for index, child in enumerate(node.value)]
        return self._scalar(node)

    def mapping(self, node: yaml.MappingNode, path: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append((line, "a key must be plain text"))
                continue
            key = str(key_node.value)
            inner = (*path, key)
            if key in values:
                self.problems.append((line, f"{'.'.join(inner)} is written twice, first in line {self.lines[inner]}"))
                continue
            self.lines[inner] = line
            values[key] = self.build(value_node, inner)
        return values

    def _entry(self, node: yaml.Node, path: Key) -> Any:
        self.lines[path] = node.start_mark.line + 1
        return self.build(node, path)

    def _scalar(self, node: yaml.Node) -> Any:
        if node.tag == "tag:yaml.org,2002:timestamp":
            return node.value
        try:
            return self.scalars.construct_object(node)
        except (yaml.constructor.ConstructorError, ValueError):
            self.problems.append((node.start_mark.line + 1, f"{node.value!r} is not a plain value ({node.tag})"))
            return None
