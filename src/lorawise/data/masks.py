"""Which characters of a rendered conversation the model writes: found by rendering it again with one answer replaced.

    F = render(messages)                      …<|im_start|>assistant\\nParis.<|im_end|>\\n
    S = render(messages, answer := mark)      …<|im_start|>assistant\\n▮<|im_end|>\\n

`mark` is a private-use character that F does not hold, so the answer's span in F is what lies between the common prefix
and the common suffix of F and S. No knowledge of the template is needed, and it holds where the template trims answers,
strips thinking from earlier turns or has no generation tags; comparing prefixes of the conversation does not
(wrong on 9 of 21 real templates).

A turn is all the model has to write after the generation prompt: the reasoning, the answer, the tool calls (marked on
their arguments), what the template itself puts around them (an empty `<think>` block, `<tool_call>{"name": …`), and the
terminator that ends the turn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import DataError
from lorawise.data.template import REASONING_FIELDS, Message

Render = Callable[[Sequence[Message], bool], str]  # messages, add_generation_prompt → text
Field = Literal["reasoning", "content", "arguments"]

MAX_LEARNED = 64  # literals remembered for a place in the template


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One assistant turn in the rendered text, in characters.

    start   where the model begins to write, after the generation prompt
    answer  where the answer itself begins, after reasoning and what the template puts before it
    end     where its last word ends
    until   where the next message's own text begins; the terminator lies between `end` and `until`
    """

    message: int
    start: int
    answer: int
    end: int
    until: int


@dataclass(frozen=True, kw_only=True)
class Marked:
    text: str
    turns: tuple[Turn, ...]


class TurnFinder:
    """Finds the turns of conversations that one template renders.

    What the template prints between two messages is learned once by marking both, and recognised in later rows, so a
    row costs one rendering and one more for each trained turn.
    """

    def __init__(self) -> None:
        self._prompts: dict[tuple[str, bool], str] = {}
        self._heads: dict[tuple[object, ...], list[tuple[str, int]]] = {}
        self._tails: dict[tuple[object, ...], list[str]] = {}

    def find(self, messages: Sequence[Message], render: Render, turns: Sequence[int]) -> Marked:
        """The rendered text, and in it the assistant turns asked for (indices into `messages`, in order).

        A turn the template does not print is left out. `DataError` when the template refuses the conversation, or
        rewrites other parts of it with the answer.
        """
        text = render(messages, False)
        search = _Search(self, messages, render, text)
        found = [turn for index in turns if (turn := search.turn(index)) is not None]
        return Marked(text=text, turns=tuple(found))

    def closing(self, messages: Sequence[Message], render: Render) -> str:
        """What the template prints between the last answer and a next user's (or tool's) message.

        Some templates close a turn only by opening the next one (GLM's `<|user|>`).
        """
        role = "tool" if messages[-1].get("tool_calls") else "user"
        longer = [*messages, {"role": role, "content": "a"}]
        try:
            search = _Search(self, longer, render, render(longer, False))
            turn = search.turn(len(messages) - 1)
        except DataError:
            return ""
        return search.text[turn.end : turn.until] if turn is not None else ""


class _Search:
    """The work on one conversation: F, its mark, and the renderings made of it so far."""

    def __init__(self, finder: TurnFinder, messages: Sequence[Message], render: Render, text: str) -> None:
        self.finder = finder
        self.messages = messages
        self.render = render
        self.text = text
        self.mark = next(chr(code) for code in range(0xE100, 0xF8FF) if chr(code) not in text)

    def turn(self, index: int) -> Turn | None:
        message = self.messages[index]
        seen = [(field, s) for field in _fields(message) if (s := self.marked(index, field)) is not None]
        if not seen:
            return None
        first, last = seen[0], seen[-1]
        end = self._end(index, *last)
        start = min(self._start(index, *first), end)
        answer = start
        for field, other in seen:
            if field == "content":
                answer = min(max(start, _common_prefix(self.text, other)), end)
        return Turn(message=index, start=start, answer=answer, end=end, until=self._until(index, last[0], end))

    def marked(self, index: int, field: Field) -> str | None:
        """S for one field of one message; None when the template does not print that field."""
        messages = list(self.messages)
        messages[index] = _with_mark(messages[index], field, self.mark)
        text = self.render(messages, False)
        return text if self.mark in text else None

    def _end(self, index: int, field: Field, other: str) -> int:
        after = other[other.rindex(self.mark) + 1 :]
        if (
            field == "arguments"
        ):  # rendered as JSON or one by one: the closing literal differs with the last value's type
            return len(self.text) - _common_suffix(self.text, other)
        if other.count(self.mark) != 1 or not self.text.endswith(after):
            raise DataError(
                f"message {index + 1}: the chat template changes other parts of the conversation with this answer",
                expected="a template that prints each answer once and leaves the rest as it is",
                cure="train on prompt/completion rows, or name another template",
            )
        return len(self.text) - len(after)

    def _start(self, index: int, field: Field, other: str) -> int:
        """Where the model begins to write: after the generation prompt, or at the first field when there is none."""
        before = other[: other.index(self.mark)]
        same = _common_prefix(self.text, other)
        previous = self.messages[index - 1].get("role") if index else None
        learned = self.finder._heads.setdefault((previous, field), [])
        for literal, scaffold in learned:
            if before.endswith(literal) and same >= len(before) - scaffold:
                return len(before) - scaffold
        low = max((self._text_end(i) for i in range(index)), default=0)
        low = low if low <= len(before) else 0
        head = _after_prompt(before[low:], self._prompt(index))
        scaffold = len(before) - low - head if head is not None else 0
        if same < len(before) - scaffold:
            return max(same, low)
        if before[low:] and index and len(learned) < MAX_LEARNED:
            learned.append((before[low:], scaffold))
            learned.sort(key=lambda item: -len(item[0]))
        return len(before) - scaffold

    def _until(self, index: int, field: Field, end: int) -> int:
        """Where the next message's own text begins, or the end of the text."""
        if index == len(self.messages) - 1:
            return len(self.text)
        learned = self.finder._tails.setdefault((field, self.messages[index + 1].get("role")), [])
        for literal in learned:
            if self.text.startswith(literal, end):
                return end + len(literal)
        starts = [start for i in range(index + 1, len(self.messages)) if (start := self._text_start(i)) >= end]
        until = min(starts, default=end)
        if until > end and len(learned) < MAX_LEARNED:
            learned.append(self.text[end:until])
            learned.sort(key=len, reverse=True)
        return until

    def _text_start(self, index: int) -> int:
        """Where a message's first printed field begins in F; -1 when nothing of it is printed."""
        for field in _fields(self.messages[index]):
            other = self.marked(index, field)
            if other is not None:
                return _common_prefix(self.text, other)
        return -1

    def _text_end(self, index: int) -> int:
        for field in reversed(_fields(self.messages[index])):
            other = self.marked(index, field)
            if other is not None:
                return len(self.text) - _common_suffix(self.text, other)
        return 0

    def _prompt(self, index: int) -> str:
        """The generation prompt at this place in the conversation; empty where the template has none."""
        if index == 0:
            return ""
        earlier = self.messages[:index]
        key = (str(earlier[-1].get("role")), bool(earlier[-1].get("tool_calls")))
        if key not in self.finder._prompts:
            try:
                without, prompted = self.render(earlier, False), self.render(earlier, True)
            except DataError:
                return ""
            self.finder._prompts[key] = prompted[_common_prefix(without, prompted) :]
        return self.finder._prompts[key]


def token_mask(
    marked: Marked,
    offsets: NDArray[np.int64],
    ids: NDArray[np.int32],
    *,
    stops: frozenset[int],
    special: frozenset[int],
) -> tuple[NDArray[np.bool_], frozenset[int]]:
    """Turns in characters → trained tokens (t,), terminators included, and the terminators found (-1: the last turn
    has none, so one must be appended).

    offsets (t, 2), ids (t,). A token that overlaps a turn is trained. The terminator is the first stop token after the
    turn's text, else the first special one; what the template prints in between is trained too. A special token that
    took white space of the answer to itself (Phi-3's `<|assistant|>`) stays the prompt's.
    """
    trained = np.zeros(len(ids), dtype=bool)
    starts, ends = offsets[:, 0], offsets[:, 1]
    is_special = np.isin(ids, list(special))
    terminators = set()
    for turn in marked.turns:
        trained |= (ends > turn.start) & (starts < turn.end) & ~(is_special & (starts < turn.start))
        tail = np.flatnonzero((ends > turn.end) & (starts < turn.until) & (starts >= turn.start))
        at = next((j for j in tail if int(ids[j]) in stops), None)
        if at is None:
            at = next((j for j in tail if int(ids[j]) in special), None)
        if at is not None:
            trained[tail[0] : at + 1] = True
            terminators.add(int(ids[at]))
        elif turn is marked.turns[-1] and turn.until == len(marked.text):
            trained[tail] = True
            terminators.add(-1)
    return trained, frozenset(terminators)


def _fields(message: Message) -> list[Field]:
    """What of a message has words of its own, in the order templates print it."""
    fields: list[Field] = []
    if message.get("role") == "assistant" and any(message.get(name) for name in REASONING_FIELDS):
        fields.append("reasoning")
    calls = message.get("tool_calls")
    if message.get("content") or not calls:
        fields.append("content")
    if calls:
        fields.append("arguments")
    return fields


def _with_mark(message: Message, field: Field, mark: str) -> Message:
    if field == "reasoning":
        return {**message, **{name: mark for name in REASONING_FIELDS if message.get(name) is not None}}
    if field == "arguments":
        return {**message, "tool_calls": [_marked_call(call, mark) for call in message["tool_calls"]]}
    if isinstance(message.get("content"), str) or not message.get("content"):
        return {**message, "content": mark}
    return {**message, "content": [{"type": "text", "text": mark}]}


def _marked_call(call: Mapping[str, Any], mark: str) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, Mapping):
        return {**call, "function": _marked_call(function, mark)}
    text = isinstance(call.get("arguments"), str)
    return {**call, "arguments": mark if text else {mark: mark}}


def _after_prompt(between: str, prompt: str) -> int | None:
    """Where the generation prompt ends in `between`, the template's own text before an answer.

    A rendered turn may begin as the prompt does and go on otherwise (DeepSeek prompts with `<think>` and prints
    answers without), so half of the prompt or more will do.
    """
    for size in range(len(prompt), len(prompt) // 2, -1):
        at = between.rfind(prompt[:size])
        if at >= 0:
            return at + size
    return None


def _common_prefix(a: str, b: str) -> int:
    """Length of the common prefix, halving: comparing slices is far faster than comparing characters."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_suffix(a: str, b: str) -> int:
    return _common_prefix(a[::-1], b[::-1])
