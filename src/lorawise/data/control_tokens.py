"""Control tokens spelled out in the words of a conversation.

The tokenizer reads `<|im_end|>` in a message as the end of the turn, wherever it stands: an answer is cut short, or a
text can play the system. Most often such rows were rendered once already, and the template is put around them again.
"""

import re
from collections.abc import Iterator, Sequence

from lorawise.base.findings import Finding
from lorawise.data.rows import Row
from lorawise.data.template import REASONING_FIELDS
from lorawise.data.tokenizer import ChatTokenizer

_WORDS = ("content", *REASONING_FIELDS)


def spelled_out(rows: Sequence[Row], tokenizer: ChatTokenizer) -> Iterator[Finding]:
    """One finding for all rows that a template is put around and whose words hold a special token."""
    names = sorted(map(re.escape, tokenizer.special_words), key=len, reverse=True)
    if not names:
        return
    pattern = re.compile("|".join(names))
    found = [(row, hit[0]) for row in rows if (hit := pattern.search("\n".join(_words_of(row)))) is not None]
    if found:
        row, token = found[0]
        yield Finding(
            code="control-tokens",
            level="warning",
            message=f"{len(found):,} of {len(rows):,} rows spell out control tokens of the model, such as {token}: the "
            "tokenizer reads them as such, in the middle of a turn",
            cure='take them out; rows that were rendered already are plain text: {"text": …}',
            path=row.where.path,
            line=row.where.line,
        )


def _words_of(row: Row) -> Iterator[str]:
    if row.kind not in ("messages", "completion"):
        return
    for message in row.as_messages():
        yield from (text for field in _WORDS if isinstance(text := message.get(field), str))
