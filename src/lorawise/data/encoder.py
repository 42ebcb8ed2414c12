"""Rows → text with its trained characters → token ids with their mask. What is trained, by kind of row:

    messages        the assistant's turns with their terminators (masks.py)
    completion      with a chat template as a conversation of two turns, without one the completion and eos
    text            all of it, and eos
    classification  nothing, the label goes to a head; or, as generated labels, the label's own words

A text starts with BOS exactly once if the tokenizer uses one. What exceeds `max_length` is cut at the end and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import ConfigError, DataError
from lorawise.data.encoded import Encoded, Refusal
from lorawise.data.masks import Marked, Turn, TurnFinder, token_mask
from lorawise.data.rows import Label, Row
from lorawise.data.template import Message
from lorawise.data.tokenizer import ChatTokenizer

TrainOn = Literal["all", "last"]
CHUNK = 1024  # rows tokenised together


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """
    max_length      tokens kept of a row; the rest is cut and counted
    train_on        all assistant turns (that a row allows), or its last
    completion      prompt/completion rows as a conversation (`chat`), as they stand (`plain`), or by whether the model
                    has a template (`auto`)
    classification  label to a `head`, or `generated` as text
    labels          the classes of classification rows, in order: position i is class i
    """

    max_length: int = 2048
    train_on: TrainOn = "all"
    completion: Literal["auto", "chat", "plain"] = "auto"
    classification: Literal["head", "generated"] = "head"
    labels: tuple[Label, ...] = ()

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ConfigError(
                f"max_length={self.max_length}", expected="at least 2 tokens: one to read, one to predict"
            )
        for name, known in (
            ("train_on", ("all", "last")),
            ("completion", ("auto", "chat", "plain")),
            ("classification", ("head", "generated")),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r}", expected=" or ".join(known))


class Encoder:
    """Encodes rows with one tokenizer and one set of options; what it learns of the template serves all of them."""

    def __init__(self, tokenizer: ChatTokenizer, options: EncodeOptions) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.terminators: set[int] = set()
        self._finder = TurnFinder()
        self._closing: dict[bool, int | None] = {}
        self._label_ids = {label: i for i, label in enumerate(options.labels)}

    def encode(self, rows: Sequence[Row]) -> tuple[list[Encoded], list[Refusal]]:
        encoded: list[Encoded] = []
        refused: list[Refusal] = []
        for first in range(0, len(rows), CHUNK):
            marked: list[tuple[int, Marked]] = []
            for index in range(first, min(first + CHUNK, len(rows))):
                try:
                    marked.append((index, self.marked(rows[index])))
                except DataError as problem:
                    refused.append(Refusal(row=index, code="template-refuses", found=problem.found))
            tokens = self.tokenizer.encode_batch([text.text for _, text in marked], bos=True)
            for (index, text), (ids, offsets) in zip(marked, tokens, strict=True):
                done = self._finish(index, rows[index], text, ids, offsets)
                (encoded if isinstance(done, Encoded) else refused).append(done)  # type: ignore[arg-type]
        return encoded, sorted(refused, key=lambda refusal: refusal.row)

    def marked(self, row: Row) -> Marked:
        """The text of a row and what of it is trained, in characters."""
        messages, turns = self.conversation(row)
        if messages:
            wanted = turns if self.options.train_on == "all" else turns[-1:]
            return self._finder.find(messages, self._render(row), wanted)
        prompt, answer = self.plain(row)
        if row.kind == "classification" and self.options.classification == "head":
            return Marked(text=prompt, turns=())
        text, start = prompt + answer, len(prompt)
        return Marked(text=text, turns=(Turn(message=0, start=start, answer=start, end=len(text), until=len(text)),))

    def conversation(self, row: Row) -> tuple[tuple[Message, ...], tuple[int, ...]]:
        """Messages and the turns that may be trained; empty for a row that is not encoded as a conversation."""
        if row.kind == "messages":
            return row.messages, row.trained_turns
        if self.options.completion == "plain" or (
            self.options.completion == "auto" and not self.tokenizer.has_template
        ):
            return (), ()
        if row.kind == "completion":
            return row.as_messages(), (1,)
        if row.kind == "classification" and self.options.classification == "generated":
            answer = {"role": "assistant", "content": str(row.label)}
            return ({"role": "user", "content": _both_texts(row)}, answer), (1,)
        return (), ()

    def plain(self, row: Row) -> tuple[str, str]:
        """(what is only read, what is trained) of a row without a template."""
        match row.kind:
            case "completion":
                return row.prompt, row.completion
            case "classification":
                generated = self.options.classification == "generated"
                return (f"{_both_texts(row)}\n", str(row.label)) if generated else (_both_texts(row), "")
        return "", row.text

    def terminator(self, row: Row) -> int | None:
        """The token that ends a last turn for which the template prints none."""
        messages, _ = self.conversation(row)
        if not messages:
            return self.tokenizer.eos_id
        calls = bool(messages[-1].get("tool_calls"))
        if calls not in self._closing:
            ids, _ = self.tokenizer.encode(self._finder.closing(messages, self._render(row)))
            ends = frozenset(self.tokenizer.stop_ids) | self.tokenizer.special_ids
            self._closing[calls] = next((int(i) for i in ids if int(i) in ends), self.tokenizer.eos_id)
        return self._closing[calls]

    def _render(self, row: Row) -> "RowRender":
        return RowRender(self.tokenizer, row)

    def _finish(
        self, index: int, row: Row, text: Marked, ids: NDArray[np.int32], offsets: NDArray[np.int64]
    ) -> Encoded | Refusal:
        stops = frozenset(self.tokenizer.stop_ids)
        trained, found = token_mask(text, offsets, ids, stops=stops, special=self.tokenizer.special_ids)
        if -1 in found and (len(ids) == 0 or int(ids[-1]) not in stops):
            end = self.terminator(row)
            if end is not None:
                ids, trained = np.append(ids, np.int32(end)), np.append(trained, True)
                found |= {end}
        trained[:1] = False
        length = self.options.max_length
        cut = max(0, len(ids) - length)
        head = row.kind == "classification" and self.options.classification == "head"
        if head:
            label = self._label_ids.get(row.label) if row.label is not None else None
            if label is None:
                return Refusal(row=index, code="unknown-label", found=f"label {row.label!r} is not among the classes")
            return Encoded(ids=ids[:length], trained=trained[:length], row=index, cut=cut, label=label)
        if not trained[:length].any():
            return _mute(index, tokens=len(ids), length=length, beyond=bool(trained.any()))
        self.terminators |= found - {-1}
        return Encoded(ids=ids[:length].copy(), trained=trained[:length].copy(), row=index, cut=cut)


def _mute(index: int, *, tokens: int, length: int, beyond: bool) -> Refusal:
    """A row without a trained token: all of them lie beyond the cut, or nothing precedes its one token, or else the
    template prints no answer of it."""
    if beyond:
        return Refusal(row=index, code="no-trained-tokens", found=f"no trained token in the first {length} of {tokens}")
    if tokens < 2:
        return Refusal(row=index, code="one-token", found=f"{tokens} token(s): nothing comes before to predict from")
    return Refusal(row=index, code="no-answer-printed", found=f"no trained token at all among {tokens}")


@dataclass(frozen=True)
class RowRender:
    tokenizer: ChatTokenizer
    row: Row

    def __call__(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return self.tokenizer.render(messages, self.row.tools, add_generation_prompt=add_generation_prompt)


def _both_texts(row: Row) -> str:
    return row.text if row.text_pair is None else f"{row.text}\n{row.text_pair}"
