"""Rows → `EncodedSet`, cached and with every problem told; and the way back, to text a person reads.

encode_rows        token ids and masks of rows; what was cut and what cannot be trained, never silently
prompt_and_answer  what generation is given and what it is compared with
preview            a row as the model sees it
"""

import json
from collections.abc import Sequence
from dataclasses import astuple, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import DataError
from lorawise.base.files import digest_text
from lorawise.base.findings import Finding
from lorawise.data import cache as token_cache
from lorawise.data.control_tokens import spelled_out
from lorawise.data.encoded import Encoded, EncodedSet, Refusal
from lorawise.data.encoder import EncodeOptions, Encoder, RowRender
from lorawise.data.masks import TurnFinder, token_mask
from lorawise.data.rows import Row, rows_digest
from lorawise.data.template import REASONING_FIELDS
from lorawise.data.tokenizer import ChatTokenizer

__all__ = [
    "EncodeOptions",
    "Encoded",
    "EncodedSet",
    "encode_rows",
    "final_answer",
    "preview",
    "prompt_and_answer",
]

MAX_LISTED = 20


def encode_rows(
    rows: Sequence[Row],
    tokenizer: ChatTokenizer,
    options: EncodeOptions | None = None,
    *,
    on_bad: Literal["stop", "skip"] = "stop",
    cache: Path | None = None,
) -> EncodedSet:
    """Rows as token ids with their masks, from the cache when the same rows were encoded the same way before.

    `DataError` lists every row that cannot be trained on, with file and line, unless `on_bad` is `skip`: then they are
    left out and listed in `.problems`. `cache` is the folder to keep them in, `cache_folder()` when not given.
    """
    options = options or EncodeOptions()
    key = digest_text(
        token_cache.FORMAT,
        rows_digest(rows),
        tokenizer.digest,
        tokenizer.rendering_digest,
        json.dumps(astuple(options)),
    )
    path = token_cache.path_of(key, cache)
    stored = token_cache.read(path, rows)
    if stored is None:
        encoded, refused = _encode(rows, tokenizer, options)
        encoded = replace(encoded, findings=token_cache.write(path, encoded, refused))
    else:
        encoded, refused = stored
    if tokenizer.has_template and options.completion != "plain":
        encoded = replace(encoded, findings=(*encoded.findings, *spelled_out(rows, tokenizer)))
    return _told(replace(encoded, digest=key), refused, rows, on_bad=on_bad, length=options.max_length)


def _encode(rows: Sequence[Row], tokenizer: ChatTokenizer, options: EncodeOptions) -> tuple[EncodedSet, list[Refusal]]:
    encoder = Encoder(tokenizer, options)
    if any(row.kind == "messages" for row in rows):
        tokenizer.template()
    encoded, refused = encoder.encode(rows)
    stops = tuple(dict.fromkeys((*tokenizer.stop_ids, *sorted(encoder.terminators))))
    weights = np.array([rows[row.row].weight for row in encoded], dtype=np.float64)
    return EncodedSet(rows=tuple(encoded), weights=weights, stop_ids=stops), refused


def _told(
    encoded: EncodedSet,
    refused: Sequence[Refusal],
    rows: Sequence[Row],
    *,
    on_bad: Literal["stop", "skip"],
    length: int,
) -> EncodedSet:
    """Put what was cut and refused into words, each row with file and line; `DataError` unless rows may be skipped."""
    problems = tuple(_problem(refusal, rows[refusal.row]) for refusal in refused)
    if problems and on_bad == "stop":
        listed = [str(problem) for problem in problems[:MAX_LISTED]]
        if len(problems) > MAX_LISTED:
            listed.append(f"... and {len(problems) - MAX_LISTED:,} more")
        raise DataError("\n  ".join(listed), cure="mend these rows, or skip them with data.on_bad: skip")
    findings = list(encoded.findings)
    if encoded.cut_rows:
        share = encoded.cut_tokens / (encoded.tokens + encoded.cut_tokens)
        findings.append(
            Finding(
                code="truncated",
                level="warning",
                message=f"{encoded.cut_rows:,} of {len(encoded):,} rows are longer than {length:,} tokens: "
                f"{encoded.cut_tokens:,} tokens ({share:.1%}) were cut from their ends",
                cure="raise train.max_length, or split these rows",
            )
        )
    return replace(encoded, problems=problems, findings=tuple(findings))


def prompt_and_answer(
    row: Row, tokenizer: ChatTokenizer, options: EncodeOptions | None = None
) -> tuple[NDArray[np.int32], str]:
    """For generation with exact match: the ids before the last trained answer, and that answer as text.

    The prompt is the training text up to the answer, so that both see the same ids; an empty `<think>` block the
    template puts there is part of it. Where the row itself holds reasoning, the model has to write that too
    (`final_answer` takes it off). Special tokens in the answer are compared as text: decode without skipping them.
    """
    encoder = Encoder(tokenizer, options or EncodeOptions())
    messages, turns = encoder.conversation(row)
    if not messages:
        prompt, answer = encoder.plain(row)
        return tokenizer.encode(prompt, bos=True)[0], answer.strip()
    messages = messages[: turns[-1] + 1]
    marked = TurnFinder().find(messages, RowRender(tokenizer, row), (turns[-1],))
    if not marked.turns:
        raise DataError(f"{row.where}: the chat template does not print the last answer")
    turn = marked.turns[-1]
    reasons = any(messages[-1].get(name) for name in REASONING_FIELDS)
    start = turn.start if reasons else turn.answer
    ids, offsets = tokenizer.encode(marked.text)
    trained, _ = token_mask(marked, offsets, ids, stops=frozenset(tokenizer.stop_ids), special=tokenizer.special_ids)
    ends = offsets[trained & (offsets[:, 0] >= turn.end)]
    end = int(ends[-1, 0]) if len(ends) else turn.end
    return tokenizer.encode(marked.text[:start], bos=True)[0], marked.text[turn.answer : end].strip()


def final_answer(text: str) -> str:
    """A generated text without the reasoning before it."""
    return text.rpartition("</think>")[2].strip()


def preview(row: Encoded, tokenizer: ChatTokenizer) -> list[tuple[str, bool]]:
    """The row as the model sees it, in runs of (text, trained): for a coloured print."""
    if len(row) == 0:
        return []
    edges = [0, *(np.flatnonzero(np.diff(row.trained)) + 1).tolist(), len(row)]
    return [(tokenizer.decode(row.ids[start:end]), bool(row.trained[start])) for start, end in pairwise(edges)]


_CURES = {
    "template-refuses": "write the conversation as the model's template takes it, or name another with data.template",
    "no-trained-tokens": "raise train.max_length, or leave the row out",
    "one-token": "give the row more text, or leave it out",
    "no-answer-printed": "fill the answer in, or name a chat template that prints it with data.template",
    "unknown-label": "write the label as in the training data",
}


def _problem(refusal: Refusal, row: Row) -> Finding:
    where = row.where
    return Finding(
        code=refusal.code,
        level="error",
        message=refusal.found,
        cure=_CURES[refusal.code],
        path=where.path,
        line=where.line,
    )
