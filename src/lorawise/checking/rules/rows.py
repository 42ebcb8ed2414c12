"""LW3xx: the rows themselves: readable, distinct, held apart, and as trained."""

from collections import Counter
from collections.abc import Iterator, Sequence

from lorawise.checking.rows_seen import Data
from lorawise.checking.rules.rule import Hit, rule
from lorawise.data.rows import Row
from lorawise.data.split import FEW

LITERAL_BOS = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>")
MANY_COPIES = 0.1


@rule("LW302", "error", Data)
def nothing_trained_in_a_row(data: Data) -> Iterator[Hit]:
    """A row has no trained token within max_length: it costs a step and teaches nothing.

    The prompt alone fills max_length, or the template hides where the answer is.

    Cure: raise train.max_length, shorten the prompt, or leave the row out.

    Source: EVIDENCE 5 (assistant mask all zero).
    """
    tokens = data.tokens
    if tokens is not None and tokens.mute:
        yield Hit(
            message=f"{len(tokens.mute)} of {tokens.rows} rows have no trained token (lines {_lines(tokens.mute)})",
            cure="raise train.max_length, or leave these rows out",
            line=tokens.mute[0].where.line,
        )


@rule("LW303", "error", Data)
def end_never_trained(data: Data) -> Iterator[Hit]:
    """In no row the end of the answer is trained: the model will never stop.

    Every row is cut before its end, or the template ends answers with a token nobody labels.

    Cure: raise train.max_length so that answers keep their ends.

    Source: EVIDENCE 5 (the turn terminator carries a label in some row).
    """
    if data.tokens is not None and not data.tokens.ends_trained:
        yield Hit(
            message=f"in none of {data.tokens.rows} rows the end of the answer is trained: the model will not stop",
            cure="raise train.max_length",
        )


@rule("LW318", "warning", Data)
def begins_with_a_literal_bos(data: Data) -> Iterator[Hit]:
    """Rows hold BOS as text: the template or the tokenizer adds a second one.

    Cure: take it out of the texts.

    Source: EVIDENCE 5 (two BOS).
    """
    doubled = [row for row in data.rows if any(_begins(row, literal) for literal in LITERAL_BOS)]
    if data.tokens is not None and data.tokens.two_bos and not doubled:
        doubled = list(data.tokens.two_bos)
    if doubled:
        yield Hit(
            message=f"{len(doubled)} rows begin with BOS as text (lines {_lines(doubled)}): it will stand there twice",
            cure="take it out of the texts",
            line=doubled[0].where.line,
        )


@rule("LW307", "warning", Data)
def rows_are_cut(data: Data) -> Iterator[Hit]:
    """Rows are longer than max_length and are cut: their ends, often the answer, are lost.

    With a local base the tokens are counted; else a row of more than six characters a token is taken for too long.

    Cure: raise max_length, or split the rows.

    Source: EVIDENCE 5.
    """
    if data.tokens is not None:
        cut: Sequence[Row] = data.tokens.cut
        total, about = data.tokens.rows, ""
    elif data.setting is not None and data.setting.max_length and data.role == "train":
        limit = 6 * data.setting.max_length
        cut, total, about = [row for row in data.rows if _characters(row) > limit], len(data.rows), "about "
    else:
        return
    if len(cut) > 0.01 * total:
        yield Hit(
            message=f"{about}{len(cut)} of {total} rows exceed max_length (lines {_lines(cut)}) and will be cut",
            cure="raise max_length, or split these rows",
            line=cut[0].where.line,
        )


@rule("LW309", "warning", Data)
def validation_is_tiny(data: Data) -> Iterator[Hit]:
    """So few rows are held out that their loss is noise.

    Below 30 rows one row moves an exact-match score by more than 3 points.

    Cure: hold out 30 rows or more.

    Source: arithmetic; lorawise's own split warns at the same bound.
    """
    held_out = len(data.validation.rows) if data.validation is not None else data.held_out
    if held_out is not None and 0 < held_out < FEW and data.role == "train":
        yield Hit(message=f"{held_out} rows are held out: their loss is noise", cure=f"hold out {FEW} or more")


@rule("LW310", "error", Data)
def validation_leaks(data: Data) -> Iterator[Hit]:
    """Validation rows also stand in train: their score is flattered.

    Rows are equal when they differ only in case and white space.

    Cure: take them out of one of the two; a share instead of a file keeps copies together.

    Source: lorawise's own split (data/split.py).
    """
    if data.validation is None:
        return
    known = {row.fingerprint for row in data.rows}
    leaked = [row for row in data.validation.rows if row.fingerprint in known]
    if leaked:
        yield Hit(
            message=f"{len(leaked)} of {len(data.validation.rows)} validation rows also stand in train "
            f"(lines {_lines(leaked)})",
            cure="take them out of one of the two",
            line=leaked[0].where.line,
            path=data.validation.path,
        )


@rule("LW311", "note", Data)
def rows_repeat(data: Data) -> Iterator[Hit]:
    """Rows repeat: they are trained as often as they stand, and memorised first.

    More than a tenth is a warning.

    Cure: take copies out, or give them a weight on purpose.

    Source: lorawise's own reader; the guide on overfitting.
    """
    counts = Counter(row.fingerprint for row in data.rows)
    copies = len(data.rows) - len(counts)
    if copies:
        often = next(row for row in data.rows if counts[row.fingerprint] > 1)
        yield Hit(
            message=f"{copies} of {len(data.rows)} rows repeat another",
            cure="take the copies out",
            line=often.where.line,
            level="warning" if copies > MANY_COPIES * len(data.rows) else None,
        )


@rule("LW312", "warning", Data)
def fewer_tokens_than_parameters(data: Data) -> Iterator[Hit]:
    """The adapter has more parameters than there are trained tokens: it can learn the rows by heart.

    An adapter should be no larger than what it has to hold; below that, a lower rank loses nothing.

    Cure: a lower rank with the same scaling, or more rows.

    Source: LoRA Without Regret (capacity: adapter parameters against trained tokens).
    """
    trained = _trained_tokens(data)
    if data.parameters is None or trained is None or data.role != "train" or not data.whole:
        return
    if trained < 0.1 * data.parameters:
        yield Hit(
            message=f"{trained:,.0f} trained tokens for {data.parameters:,} adapter parameters: "
            "it can learn the rows by heart",
            cure="a lower rank with the same scaling, or more rows",
        )


@rule("LW313", "error", Data)
def rows_that_cannot_be_read(data: Data) -> Iterator[Hit]:
    """Rows that are no rows: broken JSON, missing fields, wrong roles.

    Cure: the message names it; `data.on_bad: skip` leaves them out.

    Source: lorawise's own reader (data/causes.py).
    """
    for bad in data.bad[:3]:
        yield Hit(message=bad.found, cure=bad.cure, line=bad.line)
    if data.bad_count > 3:
        more = data.bad_count - 3
        yield Hit(message=f"{more} more rows cannot be read", cure="mend them, or data.on_bad: skip", level="note")


@rule("LW319", "note", Data)
def several_formats_in_one_file(data: Data) -> Iterator[Hit]:
    """Rows of several formats in one file: mostly an accident of joining files.

    Cure: one format a file; the message counts them.

    Source: lorawise's own reader.
    """
    if len(data.formats) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in data.formats.most_common())
        yield Hit(message=f"rows are in several formats: {listed}", cure="one format a file")


def _begins(row: Row, literal: str) -> bool:
    first = row.messages[0]["content"] if row.messages else row.prompt or row.text
    return isinstance(first, str) and first.startswith(literal)


def _characters(row: Row) -> int:
    spoken = sum(len(str(message.get("content") or "")) for message in row.messages)
    return spoken + len(row.prompt) + len(row.completion) + len(row.text)


def _trained_tokens(data: Data) -> float | None:
    """Counted with a tokenizer, else four characters a token of what is trained."""
    if data.tokens is not None:
        return data.tokens.trained_a_row * len(data.rows)
    characters = 0
    for row in data.rows:
        characters += sum(len(str(row.messages[turn].get("content") or "")) for turn in row.trained_turns)
        characters += len(row.completion) + (len(row.text) if row.kind == "text" else 0)
    return characters / 4 if characters else None


def _lines(rows: Sequence[Row]) -> str:
    shown = ", ".join(str(row.where.line) for row in rows[:5])
    return shown + (", …" if len(rows) > 5 else "")
