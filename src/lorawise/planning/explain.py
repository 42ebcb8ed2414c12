"""`--explain lora.scaling`: one decision at length: value, range, why, the decider's own page, and its sources."""

import inspect
import re
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

from lorawise.base.errors import ConfigError, nearest
from lorawise.planning.deciders import deciders
from lorawise.planning.decision import Decision, Range, Value
from lorawise.planning.evidence import SOURCES

if TYPE_CHECKING:
    from lorawise.planning.plan import Plan

MEMORY_PAGE = """How activations are kept, and how many tokens at once.

speed keeps every activation; balanced computes every second layer again in backward, frugal every layer. Computed
again is exact: dropout masks follow from the step. The plan takes the first that fits the device with at least 1,024
tokens at once; fewer tokens at once cost idle multipliers, never the result, since an optimizer step is the sum of its
micro-batches."""
PAGES = {"train.memory": MEMORY_PAGE, "train.micro_batch_tokens": MEMORY_PAGE}


def explain(plan: "Plan", name: str, width: int = 100) -> str:
    """The long version of one decision, in lines of at most `width`; `ConfigError` with the nearest name."""
    decision = _find(plan, name)
    page = PAGES.get(decision.name) or inspect.getdoc(deciders[_page_of(decision.name)]) or ""
    lines = [
        f"{decision.name} = {shown(decision.value)}",
        *([f"  range    {shown_range(decision.range)}"] if decision.range else []),
        *_wrapped("because", decision.reason, width),
        "",
        *_filled(page, width),
    ]
    if decision.name == "train.learning_rate":
        lines += ["", *_filled(f"Strength here: alpha · lr = {plan.strength:.2g}, {plan.strength_in_words}.", width)]
    if decision.sources:
        lines += ["", *(line for key in decision.sources for line in _hung(f"{key}: {SOURCES[key]}", width, 2))]
    return "\n".join(lines)


def _find(plan: "Plan", name: str) -> Decision:
    known = {decision.name: decision for decision in plan.decisions}
    name = {"lora.alpha": "lora.scaling", "train.batch_size": "train.batch_tokens"}.get(name, name)
    leaves = {key.rpartition(".")[2]: key for key in known} | {"alpha": "lora.scaling", "lr": "train.learning_rate"}
    key = name if name in known else leaves.get(name)
    if key is None:
        raise ConfigError(f"nothing is decided about '{name}'", cure=nearest(name, [*known, *leaves]))
    return known[key]


def _page_of(name: str) -> str:
    return {"train.steps": "train.epochs", "train.batch_size": "train.batch_tokens"}.get(name, name)


def _filled(page: str, width: int) -> list[str]:
    """Prose flows into lines of `width`; a line with columns or an indent of its own (a formula, a row) stays one."""
    lines: list[str] = []
    for is_prose, group in groupby(page.splitlines(), key=lambda line: bool(line) and "  " not in line):
        if is_prose:
            lines += textwrap.wrap(" ".join(group), width, break_on_hyphens=False)
        else:
            lines += [part for line in group for part in _hung(line, width, _second_column(line))]
    return lines


def _second_column(line: str) -> int:
    """Where the text after a line's last wide gap begins."""
    gaps = [found.end() for found in re.finditer(r" {2,}", line)]
    return gaps[-1] if gaps else 0


def _hung(line: str, width: int, indent: int) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent=" " * indent, break_on_hyphens=False) or [""]


def _wrapped(label: str, text: str, width: int) -> list[str]:
    wrapped = textwrap.wrap(text, width - 11, break_on_hyphens=False) or [""]
    return [f"  {label:<9}{wrapped[0]}", *(f"  {'':<9}{line}" for line in wrapped[1:])]


def shown(value: Value) -> str:
    """A value as a person writes it: 2e-4, 4,096, 2."""
    if isinstance(value, float):
        if 0 < abs(value) < 0.01:
            mantissa, exponent = f"{value:.1e}".split("e")
            return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def shown_range(bounds: Range) -> str:
    if all(isinstance(bound, (int, float)) for bound in bounds) and len(bounds) == 2:
        return f"{shown(bounds[0])} to {shown(bounds[1])}"
    return " | ".join(shown(bound) for bound in bounds)
