"""Row formats: which keys name one, and how its fields become a `Row`.

    messages            messages | conversations: [{role, content, …}], tools
    sharegpt            conversations | messages: [{from, value}], system, tools
    prompt_completion   prompt, completion as two strings, or as two lists of turns (only the completion is trained)
    alpaca              instruction, input, output, system, history
    text                text
    classification      text, label; or a pair of texts and label

A row is recognised by its keys (null counts as absent). `text` beside another format is taken for that one rendered,
and yields. Where two others fit, the row is ambiguous and the format must be named.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from lorawise.base.registry import Registry
from lorawise.data.causes import BadRow
from lorawise.data.jsonvalue import kind_of
from lorawise.data.rows import Label, Message, Row, Where
from lorawise.data.turns import from_sharegpt, objects, read_tools, read_turns

Fields = Mapping[str, Any]
Parse = Callable[[Fields, Where], Row]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to write a row. `keys` are alternatives: a record fits when it holds all keys of one of them."""

    keys: tuple[frozenset[str], ...]
    turn_key: str | None  # of a conversation: the key its turns name the speaker with
    parse: Parse

    def fits(self, record: Fields) -> bool:
        return any(keys <= record.keys() and self._speaks(record, keys) for keys in self.keys)

    def _speaks(self, record: Fields, keys: frozenset[str]) -> bool:
        if self.turn_key is None:
            return True
        (field,) = keys
        return _names_speaker(record[field], self.turn_key)


FORMATS: Registry[Format] = Registry("row format")

_CONVERSATION_FIELDS = ("messages", "conversations")
_ANSWERED = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
_INSTRUCTED = (("instruction", "output"), ("instruction", "response"))
_TEXTS: tuple[tuple[str, ...], ...] = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("text",),
    ("sentence",),
)


def parse_row(record: object, where: Where, format: str | None = None) -> tuple[Row, str]:
    """(row, name of the format it was read as). Raises `BadRow`."""
    if not isinstance(record, Mapping):
        raise BadRow("not-object", f"not an object but {kind_of(record)}")
    present = {key: value for key, value in record.items() if value is not None}
    name = format or _recognise(present)
    row = FORMATS[name].parse(present, where)
    try:
        _ = row.digest
    except UnicodeEncodeError:
        raise BadRow("not-utf8", "a text holds half a surrogate pair (\\ud800 to \\udfff)") from None
    except TypeError as problem:
        raise BadRow("wrong-type", f"a field holds {problem}, not text, a number, a list or an object") from None
    return row, name


def register(name: str, *keys: tuple[str, ...], turn_key: str | None = None) -> Callable[[Parse], Parse]:
    def add(parse: Parse) -> Parse:
        FORMATS.register(name)(Format(keys=tuple(map(frozenset, keys)), turn_key=turn_key, parse=parse))
        return parse

    return add


@register("messages", *((field,) for field in _CONVERSATION_FIELDS), turn_key="role")
def _messages(record: Fields, where: Where) -> Row:
    field = _conversation_field(record)
    messages, trained = read_turns(record[field], field)
    return _conversation(messages, trained, record, where)


@register("sharegpt", *((field,) for field in _CONVERSATION_FIELDS), turn_key="from")
def _sharegpt(record: Fields, where: Where) -> Row:
    field = _conversation_field(record)
    turns = from_sharegpt(record[field], field)
    system = _optional_text(record, "system")
    if system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    messages, trained = read_turns(turns, field)
    return _conversation(messages, trained, record, where)


@register("prompt_completion", *_ANSWERED)
def _prompt_completion(record: Fields, where: Where) -> Row:
    prompt, completion = _first_held(record, _ANSWERED)
    if isinstance(record[prompt], str) and isinstance(record[completion], str):
        return Row(kind="completion", where=where, prompt=_text(record, prompt), completion=_text(record, completion))
    context, _ = read_turns(record[prompt], prompt)
    answers, trained = read_turns(record[completion], completion)
    shifted = tuple(len(context) + i for i in trained)
    return _conversation((*context, *answers), shifted, record, where)


@register("alpaca", *_INSTRUCTED)
def _alpaca(record: Fields, where: Where) -> Row:
    """User turn = instruction, blank line, input. A base model without template reads it with a blank line after."""
    question, answer = _first_held(record, _INSTRUCTED)
    extra = _optional_text(record, "input") or _optional_text(record, "context")
    user = "\n\n".join(part for part in (_text(record, question), extra) if part)
    output = _text(record, answer)
    system, history = _optional_text(record, "system"), record.get("history")
    if not system and not history:
        return Row(kind="completion", where=where, prompt=user + "\n\n", completion=output)
    turns: list[Fields] = [{"role": "system", "content": system}] if system else []
    for before, reply in _pairs(history or []):
        turns += [{"role": "user", "content": before}, {"role": "assistant", "content": reply}]
    turns += [{"role": "user", "content": user}, {"role": "assistant", "content": output}]
    messages, trained = read_turns(turns, "turns")
    return _conversation(messages, trained, record, where)


@register("text", ("text",))
def _plain_text(record: Fields, where: Where) -> Row:
    (field,) = _first_held(record, (("text",),))
    return Row(kind="text", where=where, text=_text(record, field))


@register("classification", *((*texts, "label") for texts in _TEXTS))
def _classification(record: Fields, where: Where) -> Row:
    texts = _first_held(record, _TEXTS)
    label = _label(record.get("label"))
    pair = _text(record, texts[1]) if len(texts) == 2 else None
    return Row(kind="classification", where=where, text=_text(record, texts[0]), text_pair=pair, label=label)


def _recognise(record: Fields) -> str:
    fits = [name for name in FORMATS if FORMATS[name].fits(record)]
    if len(fits) > 1:
        fits = [name for name in fits if name != "text"]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise BadRow("ambiguous-format", f"keys {_listed(record)} fit {' and '.join(fits)}")
    raise BadRow("unknown-format", _unknown(record))


def _unknown(record: Fields) -> str:
    found = f"keys {_listed(record)} fit no format"
    if {"chosen", "rejected"} <= record.keys():
        return f"{found}: these are preference pairs, which are not trained here"
    for field in _CONVERSATION_FIELDS:
        if field in record:
            first = ", ".join(objects(record[field], field)[0])
            return f"{found}: turns of {field} have {first}, not role and content, nor from and value"
    alternatives = [(name, keys) for name in FORMATS for keys in FORMATS[name].keys]
    name, keys = max(alternatives, key=lambda alternative: _closeness(alternative[1], record))
    if _closeness(keys, record):
        return f"{found}; the nearest is {name} ({' + '.join(sorted(keys))})"
    known = ", ".join(f"{name} ({' + '.join(sorted(FORMATS[name].keys[0]))})" for name in FORMATS)
    return f"{found}; known: {known}"


def _closeness(keys: frozenset[str], record: Fields) -> float:
    """Share of `keys` that the record holds or nearly spells."""
    held = [key in record or 0.9 * bool(get_close_matches(key, list(record), n=1, cutoff=0.75)) for key in keys]
    return sum(held) / len(held)


def _conversation(messages: tuple[Message, ...], trained: tuple[int, ...], record: Fields, where: Where) -> Row:
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(message["role"] for message in messages)
        raise BadRow("no-assistant", f"no assistant turn among {roles}")
    if not trained:
        raise BadRow("no-assistant", "every assistant turn that could be trained is switched off by its weight")
    tools = read_tools(record.get("tools"))
    return Row(kind="messages", where=where, messages=messages, tools=tools, trained_turns=trained)


def _conversation_field(record: Fields) -> str:
    (field,) = _first_held(record, tuple((field,) for field in _CONVERSATION_FIELDS))
    return field


def _first_held(record: Fields, alternatives: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """The first alternative whose keys are all there."""
    for keys in alternatives:
        if all(key in record for key in keys):
            return keys
    wanted = " or ".join(" + ".join(keys) for keys in alternatives)
    raise BadRow("missing-field", f"needs {wanted}; the row has {_listed(record)}")


def _text(record: Fields, field: str) -> str:
    text = record[field]
    if not isinstance(text, str):
        raise BadRow("wrong-type", f"{field} is {kind_of(text)}, not a text")
    if not text.strip():
        raise BadRow("empty-content", f"{field} is empty")
    return text


def _optional_text(record: Fields, field: str) -> str:
    text = record.get(field, "")
    if not isinstance(text, str):
        raise BadRow("wrong-type", f"{field} is {kind_of(text)}, not a text")
    return text if text.strip() else ""


def _label(label: object) -> Label:
    match label:
        case None | "":
            raise BadRow("missing-field", "label is missing")
        case bool():
            return "true" if label else "false"
        case int():
            return label
        case float() if label.is_integer():
            return int(label)
        case str() if label.strip():
            return label.strip()
        case _:
            raise BadRow("wrong-type", f"label is {kind_of(label)}, not a class name or number: {label!r}")


def _pairs(history: object) -> Iterator[tuple[str, str]]:
    if not isinstance(history, (list, tuple)):
        raise BadRow("wrong-type", f"history is {kind_of(history)}, not a list of [question, answer]")
    for i, pair in enumerate(history):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRow("wrong-type", f"history[{i}] is not [question, answer]")
        yield pair[0], pair[1]


def _names_speaker(value: object, key: str) -> bool:
    """Do the turns name their speaker by `key`? Judged by the first turn; content is checked later."""
    try:
        return key in objects(value, "turns")[0]
    except BadRow:
        return False


def _listed(record: Fields) -> str:
    keys = sorted(map(str, record))
    shown = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    return shown or "(none)"
