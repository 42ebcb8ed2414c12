"""Chat templates: messages in, the text the model reads out, as transformers' `apply_chat_template` renders it.

A template is a Jinja program that came with a model, so it is input: it runs in a sandbox where it can neither reach
outside nor run away (`sandbox.py`), and its failures are `DataError`s that carry its own words. `{% generation %}`
marks are read and ignored. The clock a template may ask for is frozen when the template is made, so that the same
rows give the same text all through a run.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from lorawise.base.errors import DataError, ModelError
from lorawise.base.files import digest_text
from lorawise.base.registry import Registry
from lorawise.data.sandbox import BoundedEnvironment, RunsAway

Message = Mapping[str, Any]

MAX_SOURCE = 1_000_000  # characters of a template; the longest known is below 20,000

CHATML = (
    "{{ bos_token if starts_with_bos else '' }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
)

known_templates: Registry[str] = Registry("chat template")
known_templates.register("chatml")(CHATML)

# The names a message's reasoning goes by; templates read the first (gpt-oss's reads the second).
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

# What a template's own expressions can raise, beside jinja2's errors: `str + None`, a missing key, a division by zero.
_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """One compiled template. `render` is a pure function of its arguments and of `now`."""

    def __init__(self, source: str, *, where: str = "chat template", now: datetime | None = None) -> None:
        self.source = source
        self.where = where
        self.now = now or datetime.now()
        if len(source) > MAX_SOURCE:
            raise DataError(f"{where}: {len(source):,} characters", expected=f"at most {MAX_SOURCE:,}")
        self._environment = _Environment(self.now)
        try:
            self._template = self._environment.from_string(source)
        except RunsAway as problem:
            raise _endless(where, str(problem)) from None
        except (*_TEMPLATE_FAILURES, SyntaxError) as problem:
            raise DataError(f"{where} cannot be read: {_words(problem)}", cure=_CURE) from problem

    @property
    def digest(self) -> str:
        """sha256 of the source, and of the date if the template prints one."""
        formats = re.findall(r"strftime_now\(\s*[\"']([^\"']*)[\"']", self.source)
        dates = [self.now.strftime(form) for form in formats]
        if "strftime_now" in self.source and not dates:
            dates = [self.now.isoformat()]
        return digest_text(self.source, *dates)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The conversation as text. `variables` are the tokenizer's special tokens and what else the template reads.

        `DataError` with the template's own message when it refuses the conversation; `ModelError` when it would not end
        or would fill the memory: no other row would fare better, so nobody should go on to the next.
        """
        given = {
            **(variables or {}),
            "messages": [_prepared(message) for message in messages],
            "tools": _plain(list(tools)) if tools is not None else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        self._environment.start()
        try:
            return self._template.render(given)
        except RunsAway as problem:
            raise _endless(self.where, str(problem)) from None
        except RecursionError:
            raise _endless(self.where, "calls itself without end") from None
        except _TEMPLATE_FAILURES as problem:
            raise DataError(f"{self.where} refuses this conversation: {_words(problem)}", cure=_CURE) from problem


_CURE = "change the messages to what the template takes, or name another template"


def _endless(where: str, found: str) -> ModelError:
    return ModelError(
        f"{where} {found}",
        expected="a chat template that prints a conversation and ends",
        cure="do not trust this model, or name another template with data.template",
    )


def _words(problem: BaseException) -> str:
    line = f" (template line {problem.lineno})" if isinstance(problem, jinja2.TemplateSyntaxError) else ""
    name = "" if isinstance(problem, jinja2.TemplateError) else f"{type(problem).__name__}: "
    return f"{name}{problem}{line}"


def _prepared(message: Message) -> dict[str, Any]:
    """A copy in plain JSON types, without keys that are None, with reasoning under each name templates read."""
    plain = {key: _plain(value) for key, value in message.items() if value is not None}
    for field in REASONING_FIELDS:
        if field in plain:
            return {"thinking": plain[field], **plain, "reasoning_content": plain[field]}
    return plain


def _plain(value: object) -> Any:
    """Only JSON types reach a template: an object with methods could do more than print."""
    match value:
        case None | str() | bool() | int() | float():
            return value
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    raise DataError(
        f"a message holds a value of type {type(value).__name__}",
        expected="text, numbers, lists and objects, as in JSON",
    )


class _Environment(BoundedEnvironment):
    """The bounded sandbox, set up as transformers sets up jinja2."""

    def __init__(self, now: datetime) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = now.strftime
        self.bound_filters()


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` prints its body: the mask is found without it (masks.py)."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in transformers, so that what the body sets stays inside it.
        return nodes.CallBlock(self.call_method("_printed"), [], [], body).set_lineno(line)

    @staticmethod
    def _printed(caller: Any) -> str:
        return str(caller())


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML; models were trained without."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)
