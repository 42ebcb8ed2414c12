"""YAML and JSON of other tools as plain data, with the line of every key; bounded, iterative, and nothing constructed.

    text ─ parser events ─▶ Tree: dotted path → (value, line)

Events are consumed in a loop with a stack of its own, so depth costs no recursion; aliases are counted as what they
expand to, so that a small file cannot become a huge one; tags build nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from lorawise.checking.files import Unreadable

MAX_VALUES = 20_000
MAX_DEPTH = 40

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where PyYAML was built with it: 10 × faster
_resolver: Any = yaml.resolver.Resolver()
_constructor = yaml.constructor.SafeConstructor()
_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))


@dataclass(frozen=True, kw_only=True)
class Tree:
    """`values` nested as in the file; `lines` from a dotted path (`train.lr`, `datasets.0.path`) to its line."""

    values: dict[str, Any]
    lines: Mapping[str, int]

    def get(self, dotted: str) -> object:
        """The value at a dotted path; None when there is none."""
        value: object = self.values
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def read_yaml(text: str) -> Tree:
    """Raises `Unreadable`: not YAML, not a mapping, too deep or too large."""
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_Loader):
            builder.take(event)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        found = f"not YAML: {problem.problem or problem.context}"
        raise Unreadable("LW002", found, "mend the line", mark.line + 1 if mark else None) from None
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        raise Unreadable("LW002", f"not YAML: {' '.join(str(problem).split())[:120]}") from None
    if not isinstance(builder.root, dict):
        raise Unreadable("LW003", "holds no keys")
    return Tree(values=builder.root, lines=builder.lines)


@dataclass
class _Open:
    """A mapping or list being filled."""

    value: dict[str, Any] | list[Any]
    path: str
    anchor: str | None
    size: int = 1
    key: str | None = None


@dataclass
class _Builder:
    lines: dict[str, int] = field(default_factory=dict)
    root: Any = None
    _stack: list[_Open] = field(default_factory=list)
    _anchors: dict[str, tuple[Any, int]] = field(default_factory=dict)
    _count: int = 0
    _documents: int = 0

    def take(self, event: Any) -> None:
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._open(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                closed = self._stack.pop()
                self._place(closed.value, closed.size, closed.anchor)
            case yaml.AliasEvent():
                value, size = self._anchors.get(str(event.anchor), (None, 1))
                self._at(event)
                self._place(value, size, None)
            case yaml.ScalarEvent():
                self._scalar(event)

    def _open(self, event: Any) -> None:
        if len(self._stack) >= MAX_DEPTH:
            line = event.start_mark.line + 1
            raise Unreadable("LW002", f"nested more than {MAX_DEPTH} levels deep", "is this the file you meant?", line)
        empty: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._stack.append(_Open(empty, self._at(event), event.anchor))

    def _scalar(self, event: Any) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            top.key = str(event.value)
            self.lines.setdefault(_join(top.path, top.key), event.start_mark.line + 1)
            return
        self._at(event)
        self._place(_plain(event), 1, event.anchor)

    def _at(self, event: Any) -> str:
        """The dotted path of the value about to be placed; list entries get their own line."""
        if not self._stack:
            return ""
        top = self._stack[-1]
        if isinstance(top.value, dict):
            return _join(top.path, top.key or "")
        path = _join(top.path, str(len(top.value)))
        self.lines.setdefault(path, event.start_mark.line + 1)
        return path

    def _place(self, value: Any, size: int, anchor: str | None) -> None:
        self._count += size
        if self._count > MAX_VALUES:
            raise Unreadable("LW002", f"expands to more than {MAX_VALUES:,} values", "write it without aliases")
        if anchor:
            self._anchors[anchor] = (value, size)
        if not self._stack:
            self.root = value if self._documents == 1 else self.root
            return
        top = self._stack[-1]
        top.size += size
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is None:
            top.key = ""  # a mapping or a list as a key: no tool reads one
        else:
            top.value.setdefault(top.key, value)
            top.key = None


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _plain(event: Any) -> Any:
    """null, true, numbers and text as YAML 1.1 has them; whatever else is tagged stays text."""
    tag = event.tag or _resolver.resolve(yaml.ScalarNode, event.value, event.implicit)
    if tag not in _PLAIN or (event.tag is None and not event.implicit[0]):
        return event.value
    try:
        return _constructor.construct_object(yaml.ScalarNode(tag, event.value))
    except (yaml.YAMLError, ValueError, KeyError):
        return event.value


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted path of a nested mapping."""
    for key, value in values.items():
        path = _join(prefix, key)
        yield path
        if isinstance(value, dict):
            yield from flatten(value, path)
