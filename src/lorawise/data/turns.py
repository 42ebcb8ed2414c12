"""Conversations as files write them → turns as chat templates read them.

A turn that comes out is a dict with `role` and a string `content`; `tool_calls` carry their arguments as objects
(templates render them with `tojson`; OpenAI files hold them as JSON in a string). Keys set to null are left out, since
templates ask `is defined`. Whether roles may follow one another is the template's to say, not ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lorawise.base.errors import nearest
from lorawise.data.causes import BadRow
from lorawise.data.jsonvalue import kind_of, parse_json, shorten
from lorawise.data.rows import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}
_SWITCHES = ("weight", "train")  # OpenAI's and Axolotl's word for "train on this turn"
_MAY_BE_EMPTY = ("system", "developer", "tool")


def read_turns(value: object, field: str) -> tuple[tuple[Message, ...], tuple[int, ...]]:
    """OpenAI-style turns, checked: (messages, indices of the assistant turns that may be trained)."""
    messages = []
    trained = []
    for i, turn in enumerate(objects(value, field)):
        where = f"{field}[{i}]"
        message = _turn(turn, where)
        messages.append(message)
        if message["role"] == "assistant" and all(_is_on(turn, switch, where) for switch in _SWITCHES):
            trained.append(i)
    return tuple(messages), tuple(trained)


def from_sharegpt(value: object, field: str) -> list[Mapping[str, Any]]:
    """`from`/`value` turns written as `role`/`content` turns, not yet checked."""
    turns: list[Mapping[str, Any]] = []
    for i, turn in enumerate(objects(value, field)):
        where = f"{field}[{i}]"
        role = turn.get("from")
        if not isinstance(role, str) or role not in SHAREGPT_ROLES:
            cure = nearest(role, list(SHAREGPT_ROLES)) if isinstance(role, str) else "it must be a text"
            raise BadRow("wrong-role", f"{where} is from {role!r}; {cure}")
        rest = {key: inner for key, inner in turn.items() if key not in ("from", "value")}
        content = turn.get("value")
        if role == "function_call":
            calls = json_value(content, f"{where}.value")
            turns.append({"role": "assistant", "tool_calls": calls if isinstance(calls, list) else [calls], **rest})
        else:
            turns.append({"role": SHAREGPT_ROLES[role], "content": content, **rest})
    return turns


def read_tools(value: object) -> tuple[Mapping[str, Any], ...] | None:
    """The functions a conversation may call: a list of objects, or the same as JSON in a string."""
    if value in (None, "") or json_value(value, "tools") in (None, [], ()):
        return None
    return tuple(objects(value, "tools"))


def objects(value: object, field: str) -> Sequence[Mapping[str, Any]]:
    """A list of objects that is not empty; as JSON in a string too (a CSV has no other way)."""
    found = json_value(value, field)
    if not isinstance(found, (list, tuple)):
        raise BadRow("wrong-type", f"{field} is {kind_of(found)}, not a list of objects")
    if not found:
        raise BadRow("empty-content", f"{field} is an empty list")
    for i, entry in enumerate(found):
        if not isinstance(entry, Mapping):
            raise BadRow("wrong-type", f"{field}[{i}] is {kind_of(entry)}, not an object")
    return found


def json_value(value: object, field: str) -> object:
    """`value`, read as JSON when it is a string."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except BadRow:
        raise BadRow("wrong-type", f"{field} is a text that does not read as JSON: {shorten(value)}") from None


def _turn(turn: Mapping[str, Any], where: str) -> Message:
    role = turn.get("role")
    if not isinstance(role, str) or role not in ROLES:
        if role is None:
            raise BadRow("wrong-role", f"{where} has no role, only {', '.join(map(repr, turn)) or 'nothing'}")
        raise BadRow("wrong-role", f"{where} has role {role!r}; {nearest(str(role), ROLES)}")
    content = _content(turn.get("content"), where)
    message: dict[str, Any] = {"role": role, "content": content}
    message |= {k: v for k, v in turn.items() if k not in ("role", "content", *_SWITCHES) and v is not None}
    calls = message.get("tool_calls")
    if calls:
        message["tool_calls"] = [_tool_call(call, where) for call in objects(calls, f"{where}.tool_calls")]
    else:
        message.pop("tool_calls", None)
        if not content.strip() and role not in _MAY_BE_EMPTY:
            raise BadRow("empty-content", f"{where} ({role}) has empty content")
    return message


def _content(content: object, where: str) -> str:
    """A string, null, or OpenAI's list of text parts, as one string."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise BadRow("wrong-type", f"{where}.content is {kind_of(content)}, not a text")
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            name = part.get("type", "without type") if isinstance(part, Mapping) else kind_of(part)
            raise BadRow("not-text", f"{where}.content holds a part that is not text: {name}")
    return "".join(parts)


def _tool_call(call: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """One call with its arguments as an object, in the shape it was written (with or without `function`)."""
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow("bad-tool-call", f"{where} calls a tool without a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments:
        try:
            arguments = parse_json(arguments)
        except BadRow:
            raise BadRow("bad-tool-call", f"{where}: arguments of '{function['name']}' are not JSON") from None
    arguments = {} if arguments in (None, "") else arguments
    if not isinstance(arguments, Mapping):
        raise BadRow("bad-tool-call", f"{where}: arguments of '{function['name']}' are {kind_of(arguments)}")
    whole = {**function, "arguments": dict(arguments)}
    return {**call, "function": whole} if "function" in call else whole


def _is_on(turn: Mapping[str, Any], switch: str, where: str) -> bool:
    value = turn.get(switch)
    if value is None:
        return True
    if value not in (0, 1):
        raise BadRow("wrong-type", f"{where}.{switch} is {value!r}, not 0 or 1")
    return bool(value)
