"""Regular expressions that come from files, matched with a limit.

An adapter's `target_modules` is input from strangers, and Python's `re` can be made to run for years by thirty
characters. So a pattern has a longest length, and every match a longest time (the `regex` package's timeout). That
package writes counted repeats out when it compiles, so `(?:(?:a{1000}){1000}){1000}` would take all memory: the product
of the counts has a limit too. A pattern that was too slow once is not tried again, and each one that was leaves the
next ones less time, so a thousand of them cost seconds.
"""

import math
import re
from functools import lru_cache
from typing import Protocol, cast

from lorawise.base.errors import ConfigError

MAX_LENGTH = 4_096  # characters; the longest seen in published adapters is about 600
MAX_COPIES = 10_000  # product of the counts in {2}, {1,3}, …
MAX_SECONDS = 0.25  # a match; an honest one takes microseconds
MIN_SECONDS = 0.01  # what is left of it after many slow ones

_slow: dict[str, str] = {}  # pattern → the name it was too slow on


class _Pattern(Protocol):
    def fullmatch(self, string: str, *, timeout: float) -> object | None: ...


def full_match(pattern: str, text: str) -> bool:
    """Whether the whole of `text` matches; `ConfigError` for a pattern that is no regex, too long, or too slow."""
    try:
        if pattern not in _slow:
            patience = max(MIN_SECONDS, MAX_SECONDS / (1 + len(_slow)))
            return _compiled(pattern).fullmatch(text, timeout=patience) is not None
    except TimeoutError:
        _slow[pattern] = text
    raise ConfigError(
        f"pattern {_short(pattern)} backtracks without end on the name {_slow[pattern]!r}",
        expected="a pattern without nested repeats such as (a+)+",
        cure="list the module names instead",
    )


def matches_key(key: str, name: str) -> bool:
    r"""Whether PEFT's pattern key names a module: the regex `(.*\.)?(key)` on the whole name.

    A key that is a plain name is compared as text: an adapter with a rank for each of its thousand modules has a
    thousand of them, each asked about every module.
    """
    plain = _plain_name(key)
    if plain is None:
        return full_match(rf"(.*\.)?({key})", name)
    if not name.endswith(plain.rpartition(".")[2]):
        return False
    end = name[-len(plain) :]
    before = name[: -len(plain)]
    fits = end == plain if "\\" in key or "." not in key else len(end) == len(plain) and _fits(plain, end)
    return fits and (not before or (before.endswith(".") and not key.startswith("^")))


@lru_cache(maxsize=8192)
def _plain_name(key: str) -> str | None:
    r"""`a\.b` or `a.b`, all dots escaped or none, with or without ^ before it, as a name; None for any other regex."""
    found = re.fullmatch(r"\^?((?:\w|-)+(?:\\\.(?:\w|-)+)*|(?:\w|-)+(?:\.(?:\w|-)+)*)", key)
    return found[1].replace("\\", "") if found and len(key) <= MAX_LENGTH else None


def _fits(plain: str, end: str) -> bool:
    """An unescaped dot stands for any character."""
    return all(wanted in (".", found) for wanted, found in zip(plain, end, strict=True))


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> _Pattern:
    import regex

    if len(pattern) > MAX_LENGTH:
        raise ConfigError(
            f"pattern {_short(pattern)} has {len(pattern):,} characters",
            expected=f"at most {MAX_LENGTH:,}",
            cure="list the module names instead",
        )
    if math.prod(_counts(pattern)) > MAX_COPIES:
        raise ConfigError(
            f"pattern {_short(pattern)} repeats its parts more than {MAX_COPIES:,} times",
            cure="list the module names instead",
        )
    try:
        return cast(_Pattern, regex.compile(pattern))  # type: ignore[no-untyped-call]
    except (regex.error, RecursionError) as problem:
        raise ConfigError(
            f"pattern {_short(pattern)} is not a regular expression: {problem}",
            expected="a preset, names of modules, or one regex such as .*(q|v)_proj",
        ) from None


def _counts(pattern: str) -> list[int]:
    """Of every counted repeat, the largest number in its braces."""
    braces = re.findall(r"\{(\d*)(?:,(\d*))?\}", pattern)
    return [max((int(number) for number in pair if number), default=1) or 1 for pair in braces]


def _short(pattern: str) -> str:
    return repr(pattern) if len(pattern) <= 60 else f"{pattern[:57]!r}…"
