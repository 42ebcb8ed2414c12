"""The cases: rows whose lengths are what makes a trainer fast or slow.

`uneven`  chats of very different lengths, cut at 1,024 tokens: several support messages answered in one conversation,
          their number drawn from a heavy tail. Padding is the cost here.
`equal`   short rows of plain text, 48 tokens each: no padding, so what is left is the step itself.

Every arm trains the same tokens: rows are tokenised once by lorawise and handed to the peers with their labels.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path

from lorawise.data.tokenizer import ChatTokenizer

ROWS_PER_STEP = 16  # the guide's batch 4 × accumulation 4


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    steps: int
    max_length: int
    target_modules: str = "attention"
    r: int = 16
    alpha: int = 32
    learning_rate: float = 2e-4

    @property
    def rows(self) -> int:
        return self.steps * ROWS_PER_STEP


CASES = {
    "uneven": Case(name="uneven", steps=4, max_length=1024),
    "equal": Case(name="equal", steps=8, max_length=48),
}


def write_rows(case: Case, tokenizer: ChatTokenizer, folder: Path) -> tuple[Path, Path]:
    """The training and validation rows of a case as JSONL: of messages, or of text as long as the case says."""
    source = [json.loads(line) for line in _support("train").splitlines()]
    held = [json.loads(line) for line in _support("validation").splitlines()]
    train, validation = folder / f"{case.name}-train.jsonl", folder / f"{case.name}-validation.jsonl"
    if case.name == "uneven":
        _write(train, _conversations(source, case.rows, seed=1))
        _write(validation, _conversations(held, 24, seed=2))
    else:
        _write(train, islice(_texts(source, tokenizer, case.max_length), case.rows))
        _write(validation, islice(_texts(held, tokenizer, case.max_length), 24))
    return train, validation


def _texts(source: list[dict], tokenizer: ChatTokenizer, length: int) -> Iterator[dict]:
    """The beginning of every conversation as plain text that, with its end, has exactly `length` tokens."""
    for row in source:
        whole = " ".join(m["content"] for m in row["messages"] if m["role"] != "system")
        text = tokenizer.decode(tokenizer.encode(whole)[0][: length - 1])
        if len(tokenizer.encode(text)[0]) == length - 1:
            yield {"text": text}


def _conversations(source: list[dict], count: int, *, seed: int) -> Iterator[dict]:
    draw = random.Random(seed)
    for _ in range(count):
        turns = min(14, max(1, round(draw.lognormvariate(0.6, 0.9))))
        picked = draw.sample(source, turns)
        system = [m for m in picked[0]["messages"] if m["role"] == "system"]
        yield {"messages": system + [m for row in picked for m in row["messages"] if m["role"] != "system"]}


def _support(part: str) -> str:
    return (files("lorawise.cli") / "support" / f"{part}.jsonl").read_text(encoding="utf-8")


def _write(path: Path, rows: Iterator[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
