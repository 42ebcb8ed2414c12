import json
from datetime import datetime

import jinja2
import pytest
from tests.data.real_templates import (
    CALLING,
    PARTS,
    PLAIN,
    TEXT,
    THINKING,
    TOOLS,
    assistant,
    eos_of,
    in_parts,
    source,
    trained_tokenizer,
    user,
)
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from lorawise.base.errors import DataError
from lorawise.data import template as template_module
from lorawise.data.template import ChatTemplate

SYSTEM = [{"role": "system", "content": "You are terse.  "}, *PLAIN]
NULLS = [user("hi"), assistant("hello", tool_calls=None, name=None)]
CONVERSATIONS = {
    "plain": (PLAIN, None),
    "system": (SYSTEM, None),
    "thinking": (THINKING, None),
    "thinking field": ([user("hi"), assistant("hello", thinking="a greeting")], None),
    "calling": (CALLING, TOOLS),
    "nulls": (NULLS, None),
    "markup": ([user("<b>\"é\" & 'ß'</b>\n  x"), assistant("{{ 1 }} {% if %}")], None),
}


def rendered_by_transformers(name, messages, tools, prompt, variables):
    """The oracle: text, or None when the template refuses."""
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        texts, _ = render_jinja_template(
            [plain], tools=tools, chat_template=source(name), add_generation_prompt=prompt, **variables
        )
    except (jinja2.TemplateError, TypeError, KeyError, AttributeError):
        return None
    return texts[0]


def rendered_by_us(template, messages, tools, prompt, variables):
    try:
        return template.render(messages, tools=tools, add_generation_prompt=prompt, variables=variables)
    except DataError:
        return None


@pytest.mark.parametrize("name", TEXT + PARTS)
def test_renders_as_transformers_does(name):
    variables = {"bos_token": "<s>", "eos_token": eos_of(name)}
    template = ChatTemplate(source(name))
    texts = 0
    for messages, tools in CONVERSATIONS.values():
        messages = in_parts(messages) if name in PARTS else messages
        for prompt in (False, True):
            expected = rendered_by_transformers(name, messages, tools, prompt, variables)
            assert rendered_by_us(template, messages, tools, prompt, variables) == expected
            texts += expected is not None
    assert texts >= 6, "nearly all conversations were refused: nothing was compared"


def test_at_least_nineteen_families_are_compared():
    assert len({name.rstrip("0123456789_v") for name in TEXT + PARTS}) >= 19


def test_renders_as_apply_chat_template_with_special_tokens_and_none_fields():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained_tokenizer("llama3"), bos_token="<s>", eos_token="<|eot_id|>"
    )
    tokenizer.chat_template = source("llama3")
    expected = tokenizer.apply_chat_template(NULLS, tokenize=False)
    ours = ChatTemplate(source("llama3")).render(NULLS, variables={"bos_token": "<s>", "eos_token": "<|eot_id|>"})
    assert ours == expected
    assert ours.startswith("<s>")


def test_a_refusal_carries_the_templates_own_words_and_its_file():
    template = ChatTemplate(source("gemma"), where="model/chat_template.jinja")
    with pytest.raises(DataError, match="System role not supported") as caught:
        template.render([{"role": "system", "content": "x"}, user("y")], variables={"bos_token": ""})
    assert "model/chat_template.jinja" in caught.value.found


def test_a_template_that_does_not_parse_is_a_data_error_with_its_line():
    with pytest.raises(DataError, match="line 2"):
        ChatTemplate("{{ messages }}\n{% for %}")


def test_python_failures_in_a_template_are_data_errors():
    with pytest.raises(DataError, match="TypeError"):
        ChatTemplate("{{ 'a' + messages }}").render([user("x")])


@pytest.mark.parametrize(
    "code",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ 'a' * 999999999 }}",
        "{{ [1] * 999999999 }}",
        "{{ 10 ** 100000 }}",
        "{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    ],
    ids=["loops", "recursion", "text", "list", "power", "output"],
)
def test_a_template_without_end_is_stopped(code, monkeypatch):
    monkeypatch.setattr(template_module, "MAX_LOOPS", 100_000)
    with pytest.raises(DataError):
        ChatTemplate(code).render([user("x")])


def test_a_slow_template_is_stopped_by_the_clock(monkeypatch):
    monkeypatch.setattr(template_module, "MAX_SECONDS", -1.0)
    with pytest.raises(DataError, match="seconds"):
        ChatTemplate("{% for a in range(5000) %}{% endfor %}").render([user("x")])


@pytest.mark.parametrize(
    "code",
    [
        "{{ messages.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ ''.format.__self__ }}",
    ],
)
def test_the_sandbox_gives_nothing_away(code):
    try:
        text = ChatTemplate(code).render([user("x")])
    except DataError as refused:
        text = str(refused).partition("refuses this conversation:")[2]
        assert "unsafe" in text or "not safely callable" in text
    else:
        assert text == ""


def test_generation_marks_print_their_body_and_keep_what_it_sets_inside():
    template = ChatTemplate("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}")
    assert template.render([user("x")]) == "21"


def test_loop_controls_work_inside_counted_loops():
    template = ChatTemplate(
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}"
        "{{ i }}{{ loop.first }}{% endfor %}"
    )
    assert template.render([user("x")]) == "0True2False"


def test_the_date_is_frozen_and_part_of_the_digest_only_where_it_is_printed():
    winter, summer = datetime(2026, 1, 2), datetime(2026, 7, 3)
    dated = "{{ strftime_now('%d %b %Y') }}"
    assert ChatTemplate(dated, now=winter).render([user("x")]) == "02 Jan 2026"
    assert ChatTemplate(dated, now=winter).digest != ChatTemplate(dated, now=summer).digest
    assert ChatTemplate(dated, now=winter).digest == ChatTemplate(dated, now=winter.replace(hour=9)).digest
    assert ChatTemplate("x", now=winter).digest == ChatTemplate("x", now=summer).digest


def test_rendering_does_not_change_the_messages():
    before = json.dumps(CALLING)
    ChatTemplate(source("qwen3")).render(CALLING, tools=TOOLS)
    assert json.dumps(CALLING) == before


def test_a_value_that_is_not_json_is_refused():
    with pytest.raises(DataError, match="datetime"):
        ChatTemplate("x").render([user(datetime(2026, 1, 1))])
