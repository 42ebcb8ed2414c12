import json
import tracemalloc
from datetime import datetime
from time import process_time

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

from lorawise.base.errors import DataError, ModelError
from lorawise.data import sandbox
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


def grown(first: str, then: str) -> str:
    """A value made again of itself, sixty times over."""
    return f"{{% set ns = namespace(x={first}) %}}{{% for i in range(60) %}}{{% set ns.x = {then} %}}{{% endfor %}}"


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "text": "{{ 'a' * 999999999 }}",
    "doubling ~": grown("'ab'", "ns.x ~ ns.x"),
    "doubling +": grown("'ab'", "ns.x + ns.x"),
    "doubling list": grown("[1]", "ns.x + ns.x"),
    "doubling nest": grown("[1]", "[ns.x, ns.x]") + "{{ ns.x }}",
    "nest compared": "{% set n = namespace(x=[1],y=[1]) %}"
    "{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    "doubling dict": grown("1", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x|tojson }}",
    "doubling dict()": grown("1", "dict(a=ns.x, b=ns.x)") + "{{ ns.x|tojson }}",
    "doubling namespace": grown("1", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "ns holds": grown("[1]*1000", "[ns.x]*1000") + "{{ ns.x }}",
    "set block": "{% set ns = namespace(x='ab') %}"
    "{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "macro doubles": "{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='ab') %}"
    "{% for i in range(60) %}{% set ns.x = d(ns.x) %}{% endfor %}",
    "filter center": "{{ 'a'|center(9999999999) }}",
    "method center": "{{ 'a'.center(9999999999) }}",
    "ljust": "{{ 'a'.ljust(9999999999) }}",
    "zfill": "{{ 'a'.zfill(9999999999) }}",
    "expandtabs": "{{ ('\t' * 1000000).expandtabs(100000) }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "replace filter": "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "join": "{{ ('b' * 1000000).join('a' * 1000000) }}",
    "join filter": "{{ ('a' * 1000000)|join('b' * 1000000) }}",
    "indent": "{{ ('a\n' * 1000000)|indent('b' * 1000000) }}",
    "wordwrap": "{{ ('a' * 1000000)|wordwrap(1, true, 'b' * 1000000) }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "format {}": "{{ '{:{}}'.format(1, 9999999999) }}",
    "format map": "{{ '{a:9999999999}'.format_map({'a': 1}) }}",
    "format filter": "{{ '%9999999999d'|format(1) }}",
    "format many": "{{ ('{0}' * 1000000).format('b' * 1000000) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent *": "{{ '%*d' % (9999999999, 1) }}",
    "percent many": "{{ ('%(a)s' * 1000000) % {'a': 'b' * 1000000} }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "tojson": "{{ [[[[1]]]]|tojson(indent=9999999999) }}",
    "tojson sep": "{{ ([1] * 1000000)|tojson(separators=('b' * 1000000, ':')) }}",
    "batch": "{{ [1]|batch(9999999999, 'x')|list|length }}",
    "slice": "{{ [1]|slice(9999999999)|list|length }}",
    "round": "{{ 1.5|round(9999999999, 'ceil') }}",
    "to_bytes": "{{ (1).to_bytes(9999999999, 'big') }}",
    "map": "{{ range(99999)|map('string')|map('center', 99999)|join }}",
    "map list": "{{ range(99999)|map('string')|map('center', 99999)|list }}",
    "sum lists": "{{ ([[1]*10000] * 5000)|sum(start=[])|length }}",
    "power": "{{ 10 ** 100000 }}",
    "product": "{% set ns = namespace(x=9**60) %}"
    "{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x % 7 }}",
    "list": "{{ [1] * 999999999 }}",
    "output": "{% for a in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "pieces": "{% set ns = namespace(x=[]) %}"
    "{% for a in range(99999) %}{% set ns.x = ns.x + ['é' * 99999] %}{% endfor %}",
    "urlize": "{{ ('http://a.b ' * 100000)|urlize(rel='b' * 1000000) }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped_before_it_takes_much_time_or_memory(name, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_TURNS", 5_000)
    monkeypatch.setattr(sandbox, "MAX_MADE", 5_000_000)
    started = process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as met:
            ChatTemplate(ENDLESS[name], where="model/chat_template.jinja").render([user("x")])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert process_time() - started < 10
    assert peak < 100e6
    assert met.value.found.startswith("model/chat_template.jinja ")
    assert "data.template" in met.value.cure


@pytest.mark.parametrize(
    "code", ["{{ lipsum() }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{% for a in b %}" * 99]
)
def test_what_cannot_be_compiled_or_is_not_there_is_refused(code):
    with pytest.raises(DataError):
        ChatTemplate(code).render([user("x")])


def test_a_slow_template_is_stopped_by_the_clock(monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_SECONDS", -1.0)
    with pytest.raises(ModelError, match="seconds"):
        ChatTemplate("{% for a in range(5000) %}{% endfor %}").render([user("x")])


def test_bounds_begin_anew_with_each_rendering(monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_TURNS", 10)
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert all(template.render([user("x")] * 8) == "x" * 8 for _ in range(5))


def test_long_conversations_are_far_from_the_bounds():
    """A thousand long turns, through the templates that do most with them."""
    messages = [message for i in range(500) for message in (user(f"{i} " + "why " * 200), assistant("so " * 200))]
    for name in ("qwen3", "llama3", "gptoss"):
        text = ChatTemplate(source(name)).render(messages, variables={"bos_token": "<s>", "eos_token": "</s>"})
        assert len(text) > 600_000


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
