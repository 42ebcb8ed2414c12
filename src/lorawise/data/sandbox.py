"""A Jinja environment for programs that came with a model: they print text, and cannot run away with the machine.

jinja2's immutable sandbox keeps a template from reaching outside. Here everything it can do without end is counted or
weighed as it does it, over one rendering:

    turns   of loops, calls and filters: at most MAX_TURNS, and MAX_SECONDS by the clock
    made    characters and entries of all values it makes and prints: at most MAX_MADE
    wide    what one operation would blow up (`'a' * n`, center, replace, join, …) is refused before it is made

Values nest, and may hold one another many times ([x, x] of [x, x] …), so what is made is weighed with all it holds.
"""

# ruff: noqa: N802 - jinja2 calls a transformer's methods by the class of the node

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any, TypeVar

from jinja2 import nodes
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_TURNS = 2_000_000
MAX_SECONDS = 10.0
MAX_MADE = 100_000_000
MAX_WIDTH = 100_000  # of a number that says how long a text or a list shall be
ENTRY = 50  # what an entry of a list weighs beside its text: an object in memory is about that many characters

# What makes of a value and a number or text something as large as their product; the name of a filter or method.
BLOWING_UP = frozenset(
    {"batch", "center", "expandtabs", "format", "format_map", "indent", "join", "ljust", "rjust", "round", "slice"}
    | {"sum", "to_bytes", "tojson", "translate", "truncate", "urlize", "wordwrap", "xmlattr", "zfill"}
)
_OF_JINJA = ("_loop_vars", "_block_vars")  # arguments that compiled templates add to every call
N = TypeVar("N", bound=nodes.Node)
_DIGITS = re.compile(r"\d+")


class RunsAway(Exception):  # noqa: N818 - a verdict on the template, which `template.py` puts into words for a person
    """A bound was met; `args[0]` says which, in words that continue `it `."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Counts begin anew with `start`. `RunsAway` when one is exceeded, from wherever the template then is."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self._printed, **options)
        self.globals.pop("lipsum")
        self.start()

    def bound_filters(self) -> None:
        """Bound every filter that is registered now."""
        self.filters |= {name: self._bounded(name, function) for name, function in self.filters.items()}

    def start(self) -> None:
        self._turns = 0
        self._made = 0
        self._deadline = monotonic() + MAX_SECONDS

    def turn(self) -> None:
        """One turn of a loop, a call or a filter."""
        self._turns += 1
        if self._turns > MAX_TURNS:
            raise RunsAway(f"turned loops and called more than {MAX_TURNS:,} times")
        if monotonic() > self._deadline:
            raise RunsAway(f"ran for more than {MAX_SECONDS:g} seconds")

    def made(self, size: int) -> None:
        self._made += size
        if self._made > MAX_MADE:
            raise RunsAway(f"made more than {MAX_MADE:,} characters")

    def joined(self, *parts: Any) -> str:
        """`a ~ b`."""
        self.made(sum(self._weight(part) for part in parts))
        return "".join(map(str, parts))

    def literal(self, value: Any) -> Any:
        """`[a, b]`, `(a, b)` and `{a: b}` of what is not constant."""
        self.made(self._weight(value))
        return value

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in jinja2
        if getattr(__obj, "__self__", None) is __self:
            return __obj(*args)
        __self.turn()
        if isinstance(__obj, Macro):
            return super().call(__context, __obj, *args, **kwargs)
        named = getattr(__obj, "__name__", "")
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        given = (*args, *(value for key, value in kwargs.items() if key not in _OF_JINJA))
        __self._refuse_blowing_up(named, owner, given)
        found = super().call(__context, __obj, *args, **kwargs)
        __self.made(__self._weight(found) if isinstance(found, (dict, Namespace)) else _size(found))
        return found

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            self._refuse_huge_number(operator, left, right)
        elif operator == "*":
            times = next((side for side in (left, right) if isinstance(side, int)), 1)
            self.made(max(times, 0) * (self._weight(left) + self._weight(right)))
        elif operator == "%":
            self._refuse_blowing_up("format", left, (right,))
        else:
            self.made(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return _Bounding(self).visit(tree)  # type: ignore[no-any-return]

    def _printed(self, value: Any) -> Any:
        self.made(self._weight(value))
        return value

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, counted and weighed; what it is handed before the value (context, environment) is skipped."""
        skipped = int(hasattr(function, "jinja_pass_arg"))

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.turn()
            value = args[skipped] if len(args) > skipped else None
            self._refuse_blowing_up(name, value, (*args[skipped + 1 :], *kwargs.values()))
            found = function(*args, **kwargs)
            if isinstance(found, Iterator):
                return self._counted(found)
            self.made(_size(found))
            return found

        return bounded

    def _counted(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.turn()
            yield value

    def _refuse_blowing_up(self, name: str, value: Any, given: tuple[Any, ...]) -> None:
        if name == "replace" and isinstance(value, str):
            old, new = (*map(str, given[:2]), "", "")[:2]
            self.made(value.count(old) * len(new))
        elif name == "encode":
            raise RunsAway("encodes text, which no chat template needs")
        elif name in BLOWING_UP:
            if name == "format" and given and isinstance(given[0], tuple):  # `'%*d' % (width, number)`
                given = given[0]
            if any(isinstance(each, int) and abs(each) > MAX_WIDTH for each in given):
                raise RunsAway(f"asks for more than {MAX_WIDTH:,} of something at once ({name})")
            weight = self._weight(value)
            self._room(weight * max([1, *(self._factor(each, weight) for each in given)]))
            if name.startswith("format") and isinstance(value, str):
                self._refuse_wide_format(value, given)

    def _factor(self, given: Any, weight: int) -> int:
        """How often an argument may repeat what it is applied to."""
        if isinstance(given, int):
            return abs(given)
        return weight if isinstance(given, (list, tuple)) else self._weight(given)

    def _refuse_wide_format(self, text: str, given: Any) -> None:
        """Each field may print all that is given, at a width of its own."""
        widths = sum(min(int(digits[:9]), MAX_MADE) for digits in _DIGITS.findall(text))
        fields = text.count("{") + text.count("%")
        self.made(len(text) + widths + fields * self._weight(given))

    def _refuse_huge_number(self, operator: str, left: float, right: float) -> None:
        if operator == "**" and not (abs(left) <= 1e6 and abs(right) <= 64):
            raise RunsAway(f"raises {left:.6g} to the power of {right:.6g}")
        if operator == "*" and abs(left) > 1e100 and abs(right) > 1e100:
            raise RunsAway("multiplies numbers of more than 100 digits")

    def _room(self, size: int) -> None:
        if self._made + size > MAX_MADE:
            raise RunsAway(f"would make more than {MAX_MADE:,} characters at once")

    def _weight(self, value: Any) -> int:
        """Characters and entries of a value with all it holds, each as often as it is held."""
        if isinstance(value, str):
            return len(value)
        total, rest = 0, [value]
        while rest:
            each = rest.pop()
            total += _size(each)
            if total > MAX_MADE:
                self._room(total)
                raise RunsAway(f"holds more than {MAX_MADE:,} characters in one value")
            if isinstance(each, Mapping):
                rest += [*each.keys(), *each.values()]
            elif isinstance(each, (list, tuple, set, frozenset)):
                rest += each
            elif isinstance(each, Namespace):
                rest.append(object.__getattribute__(each, "_Namespace__attrs"))
        return total


class _Bounding(NodeTransformer):
    """Puts the calls that count and weigh into a parsed template."""

    def __init__(self, environment: BoundedEnvironment) -> None:
        self.environment = environment

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, self._placed(nodes.ExprStmt(self._call("turn", [], node)), node))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return self._call("joined", node.nodes, node)

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        return self._weighed(node, node.items)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        return self._weighed(node, [side for pair in node.items for side in (pair.key, pair.value)])

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        return node if node.ctx != "load" else self._weighed(node, node.items)

    def _weighed(self, node: nodes.Expr, items: list[nodes.Expr]) -> nodes.Expr:
        if all(isinstance(item, nodes.Const) for item in items):
            return node
        self.generic_visit(node)
        return self._call("literal", [node], node)

    def _call(self, name: str, given: list[nodes.Expr], place: nodes.Node) -> nodes.Expr:
        return self._placed(nodes.Call(nodes.EnvironmentAttribute(name), given, [], None, None), place)

    def _placed(self, node: N, place: nodes.Node) -> N:
        node.set_lineno(place.lineno)
        node.set_environment(self.environment)
        return node


def _size(value: Any) -> int:
    """Of the value itself, without what its entries hold."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, (list, tuple, set, frozenset, Mapping)):
        return ENTRY * (1 + len(value))
    return ENTRY
