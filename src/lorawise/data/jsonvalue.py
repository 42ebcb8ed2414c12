"""JSON from files nobody vouches for: bounded depth, one kind of refusal, values named in words."""

import json
from collections.abc import Mapping

from lorawise.data.causes import BadRow

MAX_DEPTH = 64  # levels of nesting; real rows with tool schemas need about ten


def parse_json(text: str) -> object:
    """The value `text` holds. Raises `BadRow` (not-json, too-deep), never anything else."""
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as problem:
        place = f"column {problem.colno}" if problem.lineno == 1 else f"line {problem.lineno}, column {problem.colno}"
        raise BadRow(
            "not-json", f"not JSON: {problem.msg} at {place}: {shorten(text[max(problem.pos - 20, 0) :])}"
        ) from None
    except RecursionError:
        raise BadRow("too-deep", f"nested more than {MAX_DEPTH} levels deep") from None
    except ValueError as problem:  # a number of thousands of digits
        raise BadRow("not-json", f"not JSON: {problem}") from None
    check_depth(text, value)
    return value


def check_depth(text: str, value: object) -> None:
    """Refuse a value deeper than `MAX_DEPTH`. Brackets bound the depth, so most texts need no walk."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 1:
            raise BadRow("too-deep", f"nested more than {MAX_DEPTH} levels deep")
        level = [inner for outer in level for inner in _children(outer)]


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "an object"
        case _:
            return f"a {type(value).__name__}"


def shorten(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def _children(value: object) -> list[object]:
    match value:
        case dict():
            return list(value.values())
        case list():
            return value
        case _:
            return []
