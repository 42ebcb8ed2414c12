"""The rooms below speak of a run file's keys; a command that reads none names its own options instead.

with in_options({"train.max_length": "--max-length"}):   `raise train.max_length` is told as `raise --max-length`
"""

import contextlib
import re
from collections.abc import Iterator, Mapping

from lorawise.base.errors import LorawiseError

Options = Mapping[str, str]  # a run file's key → the option that stands for it


@contextlib.contextmanager
def in_options(options: Options) -> Iterator[None]:
    """Errors from the block, in words that the person who typed the command can act on."""
    try:
        yield
    except LorawiseError as problem:
        words = (reworded(text, options) for text in (problem.found, problem.expected, problem.cure))
        found, expected, cure = words
        raise type(problem)(found, expected=expected, cure=cure) from problem


def reworded(text: str, options: Options) -> str:
    """`data.on_bad: skip` → `--on-bad skip`, `train.max_length` → `--max-length`."""
    for key, option in options.items():
        text = re.sub(rf"\b{re.escape(key)}\b(?::(?= ))?", option, text)
    return text
