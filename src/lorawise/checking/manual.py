"""The manual of the rules, made from their docstrings: docs/rules.md, and the page of one rule."""

from collections.abc import Iterator

from lorawise.base.errors import ConfigError, nearest
from lorawise.checking.rules import RULES, Rule

GROUPS = {
    "LW0": "Files",
    "LW1": "Scaling",
    "LW2": "Rank and targets",
    "LW3": "Data and template",
    "LW4": "Trainer",
    "LW5": "Runs",
    "LW6": "Adapters",
}
_HEAD = """\
# The rules of `lorawise check`

Made from the rules' docstrings by `python -m lorawise.checking.manual`; a test holds it current. "The guide" is the
LoRA scaling guide this project implements; "EVIDENCE" is the project's collection of figures with their sources.

A level is what the rule says by default: a project changes it under `levels` in `[tool.lorawise.check]`. A line is left
alone with `# lorawise: ignore[LW101]`, a file with `# lorawise: ignore-file[LW101]`.
"""


def page(code: str) -> str:
    """One rule's page as text. `ConfigError` for a code that is none."""
    if code not in RULES:
        raise ConfigError(f"no rule is called {code!r}", cure=nearest(code, list(RULES)))
    rule = RULES[code]
    return f"{code} {rule.name} ({rule.level})\n\n{rule.manual}"


def manual() -> str:
    """All of docs/rules.md."""
    return "\n".join([_HEAD, *_table(), *_pages()])


def _table() -> Iterator[str]:
    yield "| code | level | what it finds |"
    yield "|---|---|---|"
    for code in sorted(RULES):
        yield f"| [{code}](#{code.lower()}) | {RULES[code].level} | {RULES[code].title} |"


def _pages() -> Iterator[str]:
    group = ""
    for code in sorted(RULES):
        if not code.startswith(group) or not group:
            group = code[:3]
            yield f"\n## {GROUPS[group]}"
        yield from _page(RULES[code])


def _page(rule: Rule) -> Iterator[str]:
    title, _, rest = rule.manual.partition("\n")
    yield f'\n### <a id="{rule.code.lower()}"></a>{rule.code} `{rule.name}` ({rule.level})\n'
    yield f"**{title}**"
    if rest.strip():
        yield f"\n{rest.strip()}"


if __name__ == "__main__":
    print(manual())
