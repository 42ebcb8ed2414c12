"""A Python script or notebook as the calls it makes, from its syntax tree; nothing in it is ever run.

    text ─ ast ─▶ Script: calls with canonical names (`peft.LoraConfig`), their arguments as values where they are
    literals,
                  names bound once to literals, or arithmetic on those; else UNKNOWN

A name bound twice, a parameter, a loop's variable, an environment variable or an argument of the command line is
UNKNOWN: no value is guessed.
"""

import ast
import operator
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lorawise.checking.files import Unreadable

MAX_CALLS = 20_000
MAX_DEPTH = 20  # of an expression that is worked out


class Unknown:
    """The value of an expression that only running it would tell."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = Unknown()


@dataclass(frozen=True, kw_only=True)
class Argument:
    """`value` is UNKNOWN where it cannot be known; `column` is where the keyword starts, in bytes."""

    value: Any
    line: int
    column: int
    node: ast.expr


@dataclass(frozen=True, kw_only=True)
class Call:
    """`name` is canonical; of a method it is what the code says (`tokenizer.apply_chat_template`).

    open   it takes `**something` unknown: an argument that is not seen may still be given
    bound  the name the result is given, if one
    """

    name: str
    line: int
    arguments: Mapping[str, Argument]
    positional: tuple[Argument, ...] = ()
    open: bool = False
    bound: str = ""
    node: ast.Call

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    def get(self, *names: str) -> Any:
        """The value of the first of these arguments that is given; None when none is; UNKNOWN when it may be."""
        for name in names:
            if name in self.arguments:
                return self.arguments[name].value
        return UNKNOWN if self.open else None

    def line_of(self, name: str) -> int:
        return self.arguments[name].line if name in self.arguments else self.line


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """`target` as written (`tokenizer.pad_token`), `source` the name or attribute assigned, or ""."""

    target: str
    source: str
    value: Any
    line: int


@dataclass(frozen=True, kw_only=True)
class Script:
    path: str
    calls: tuple[Call, ...]
    assigned: tuple[Assigned, ...]
    functions: Mapping[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda] = field(default_factory=dict)
    imports: frozenset[str] = frozenset()
    text: str = ""
    notebook: bool = False

    def of(self, *leaves: str) -> Iterator[Call]:
        """Calls whose last name is one of these, in the order of the file."""
        found = [entry for leaf in leaves for entry in self._by_leaf.get(leaf, ())]
        return (call for _, call in sorted(found, key=lambda entry: entry[0]))

    @cached_property
    def _by_leaf(self) -> Mapping[str, list[tuple[int, Call]]]:
        """Last name → (place among all calls, call)."""
        found: dict[str, list[tuple[int, Call]]] = {}
        for place, call in enumerate(self.calls):
            found.setdefault(call.leaf, []).append((place, call))
        return found

    def uses(self, package: str) -> bool:
        return package in self.imports


def read_script(text: str, path: str, *, lines: Mapping[int, int] | None = None) -> Script:
    """`lines` maps a notebook's code lines to the lines of its file. Raises `Unreadable` for what is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the script's own odd escapes
            tree = ast.parse(text)
    except SyntaxError as problem:
        line = (lines or {}).get(problem.lineno or 0, problem.lineno)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise Unreadable("LW002", f"not Python {version}: {problem.msg}", "mend the line", line) from None
    except (RecursionError, MemoryError):
        raise Unreadable("LW002", "nested too deeply to be read", "break the long expression up") from None
    except ValueError as problem:
        raise Unreadable("LW002", f"not Python that can be read: {problem}") from None
    return _Reader(tree, text, path, lines).script()


class _Reader:
    def __init__(self, tree: ast.Module, text: str, path: str, lines: Mapping[int, int] | None) -> None:
        self.nodes = list(ast.walk(tree))
        self.text, self.path, self.lines = text, path, lines
        self.aliases = _aliases(self.nodes)
        self.bound = _bound_once(self.nodes)

    def script(self) -> Script:
        owners = {
            id(node.value): _written(node.targets[0])
            for node in self.nodes
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        }
        found = [node for node in self.nodes if isinstance(node, ast.Call)][:MAX_CALLS]
        calls = [self._call(node, owners.get(id(node), "")) for node in found]
        functions = {n.name: n for n in self.nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
        return Script(
            path=self.path,
            calls=tuple(sorted(calls, key=lambda call: call.line)),
            assigned=tuple(self._assignments()),
            functions=functions,
            imports=frozenset(name.partition(".")[0] for name in self.aliases.values()),
            text=self.text,
            notebook=self.lines is not None,
        )

    def _line(self, number: int) -> int:
        return number if self.lines is None else self.lines.get(number, number)

    def _call(self, node: ast.Call, bound: str) -> Call:
        arguments: dict[str, Argument] = {}
        unseen = any(isinstance(argument, ast.Starred) for argument in node.args)
        for keyword in node.keywords:
            if keyword.arg is not None:
                arguments[keyword.arg] = self._argument(keyword.value, keyword.lineno, keyword.col_offset)
                continue
            spread = self.value(keyword.value)
            unseen = unseen or not isinstance(spread, dict)
            for name, value in spread.items() if isinstance(spread, dict) else ():
                line = self._line(keyword.lineno)
                arguments.setdefault(str(name), Argument(value=value, line=line, column=-1, node=keyword.value))
        return Call(
            name=self._canonical(_written(node.func)),
            line=self._line(node.lineno),
            arguments=arguments,
            positional=tuple(self._argument(value, value.lineno, value.col_offset) for value in node.args),
            open=unseen,
            bound=bound,
            node=node,
        )

    def _argument(self, node: ast.expr, line: int, column: int) -> Argument:
        return Argument(value=self.value(node), line=self._line(line), column=column, node=node)

    def _canonical(self, written: str) -> str:
        head, dot, rest = written.partition(".")
        return self.aliases.get(head, head) + dot + rest

    def _assignments(self) -> Iterator[Assigned]:
        for node in self.nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    yield Assigned(
                        target=_written(target),
                        source=_written(node.value),
                        value=self.value(node.value),
                        line=self._line(node.lineno),
                    )

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        """What an expression is worth without running anything; names of modules' attributes are their last word."""
        if depth > MAX_DEPTH:
            return UNKNOWN
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                bound = self.bound.get(node.id)
                return UNKNOWN if bound is None else self.value(bound, depth + 1)
            case ast.List() | ast.Tuple() | ast.Set():
                entries = [self.value(entry, depth + 1) for entry in node.elts]
                return UNKNOWN if any(entry is UNKNOWN for entry in entries) else entries
            case ast.Dict():
                return self._dict(node, depth)
            case ast.Attribute():
                return self._attribute(node)
            case ast.UnaryOp():
                return _worked(_UNARY.get(type(node.op)), self.value(node.operand, depth + 1))
            case ast.BinOp():
                sides = self.value(node.left, depth + 1), self.value(node.right, depth + 1)
                return _worked(_BINARY.get(type(node.op)), *sides)
            case ast.Call(func=ast.Name(id="dict"), args=[]):
                pairs = {k.arg: self.value(k.value, depth + 1) for k in node.keywords}
                return UNKNOWN if None in pairs else pairs
            case ast.Call(func=ast.Attribute(attr="device") | ast.Attribute(attr="dtype")):
                return UNKNOWN
        return UNKNOWN

    def _dict(self, node: ast.Dict, depth: int) -> Any:
        keys = [UNKNOWN if key is None else self.value(key, depth + 1) for key in node.keys]
        if any(not isinstance(key, (str, int)) for key in keys):
            return UNKNOWN
        return {key: self.value(value, depth + 1) for key, value in zip(keys, node.values, strict=True)}

    def _attribute(self, node: ast.Attribute) -> Any:
        """`torch.bfloat16` → "bfloat16", `TaskType.CAUSAL_LM` → "CAUSAL_LM"; of anything not imported: UNKNOWN."""
        written = _written(node)
        return node.attr if written.partition(".")[0] in self.aliases else UNKNOWN


_UNARY: Mapping[type[ast.unaryop], Callable[..., Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_BINARY: Mapping[type[ast.operator], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def _worked(operation: Callable[..., Any] | None, *values: Any) -> Any:
    """Arithmetic on plain numbers (and lists joined by +); a power or a repeated list could take all memory."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e12 for v in values)
    lists = operation is operator.add and all(isinstance(v, list) and len(v) < 1000 for v in values)
    if operation is None or not (numbers or lists):
        return UNKNOWN
    try:
        return operation(*values)
    except ArithmeticError:
        return UNKNOWN


def _aliases(nodes: list[ast.AST]) -> dict[str, str]:
    """Local name → what was imported under it."""
    found: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for name in node.names:
                found[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in node.names:
                found[name.asname or name.name] = f"{node.module.partition('.')[0]}.{name.name}"
    return found


def _bound_once(nodes: list[ast.AST]) -> dict[str, ast.expr]:
    """Names with exactly one binding in the whole file, which is a plain assignment."""
    bindings: Counter[str] = Counter()
    plain: dict[str, ast.expr] = {}
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            bindings[node.id] += 1
        elif isinstance(node, ast.arg):
            bindings[node.arg] += 1
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            bindings.update(dict.fromkeys(node.names, 2))
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            plain[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            plain[node.target.id] = node.value
    return {name: value for name, value in plain.items() if bindings[name] == 1}


def _written(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute chain; "" for anything else at its root (`f().g` gives `.g`)."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute) and len(parts) < 20:
        parts.append(node.attr)
        node = node.value
    parts.append(node.id if isinstance(node, ast.Name) else "")
    return ".".join(reversed(parts)) if parts != [""] else ""
