"""Each format recognised by its keys, its fields turned into a row, and what is wrong said by name."""

import pytest

from lorawise.data.causes import CURES, BadRow
from lorawise.data.formats import FORMATS, parse_row
from lorawise.data.rows import Where

HERE = Where(path="a.jsonl", line=3)
USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
CALL = {"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}, "type": "function", "id": "1"}


def row(record, format=None):
    return parse_row(record, HERE, format)[0]


def refusal(record, format=None):
    with pytest.raises(BadRow) as caught:
        parse_row(record, HERE, format)
    assert caught.value.cause in CURES
    return caught.value.cause, caught.value.found


RECOGNISED = [
    ({"messages": [USER, ASSISTANT]}, "messages"),
    ({"conversations": [USER, ASSISTANT]}, "messages"),
    ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, "sharegpt"),
    ({"messages": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, "sharegpt"),
    ({"prompt": "a", "completion": "b"}, "prompt_completion"),
    ({"prompt": [USER], "completion": [ASSISTANT]}, "prompt_completion"),
    ({"question": "a", "answer": "b"}, "prompt_completion"),
    ({"instruction": "a", "output": "b"}, "alpaca"),
    ({"instruction": "a", "input": "", "output": "b", "text": "rendered"}, "alpaca"),
    ({"instruction": "a", "context": "c", "response": "b", "category": "qa"}, "alpaca"),
    ({"text": "a", "meta": 1}, "text"),
    ({"text": "a", "label": 0}, "classification"),
    ({"sentence1": "a", "sentence2": "b", "label": "same"}, "classification"),
    ({"prompt": "p", "prompt_id": "x", "messages": [USER, ASSISTANT]}, "messages"),
    ({"messages": [USER, ASSISTANT], "prompt": None, "completion": None, "label": None}, "messages"),
    ({"messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]'}, "messages"),
]


@pytest.mark.parametrize(("record", "name"), RECOGNISED)
def test_a_row_is_recognised_by_its_keys(record, name):
    parsed, recognised = parse_row(record, HERE)
    assert recognised == name
    assert parsed.where == HERE


def test_every_format_has_a_row_that_is_recognised_as_it():
    assert {name for _, name in RECOGNISED} == set(FORMATS)


def test_alpaca_joins_instruction_and_input_by_a_blank_line():
    parsed = row({"instruction": "Add", "input": "1 2", "output": "3"})
    assert parsed.kind == "completion"
    assert parsed.as_messages()[0]["content"] == "Add\n\n1 2"
    assert (parsed.prompt, parsed.completion) == ("Add\n\n1 2\n\n", "3")


def test_alpaca_with_system_and_history_is_a_conversation():
    parsed = row({"instruction": "b", "output": "c", "system": "s", "history": [["q", "a"]]})
    assert [m["content"] for m in parsed.messages] == ["s", "q", "a", "b", "c"]
    assert parsed.trained_turns == (2, 4)


def test_of_a_conversational_prompt_only_the_completion_is_trained():
    parsed = row({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]})
    assert len(parsed.messages) == 4
    assert parsed.trained_turns == (3,)


def test_a_turn_of_weight_zero_is_not_trained_and_its_switch_is_not_rendered():
    parsed = row({"messages": [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]})
    assert parsed.trained_turns == (3,)
    assert parsed.messages[1] == ASSISTANT


def test_text_parts_become_one_string_and_null_keys_go():
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    parsed = row({"messages": [USER, {"role": "assistant", "content": parts, "tool_calls": None, "name": None}]})
    assert parsed.messages[1] == ASSISTANT


def test_tool_calls_carry_their_arguments_as_an_object():
    parsed = row(
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "", "tool_call_id": "1"},
                ASSISTANT,
            ],
            "tools": '[{"type": "function"}]',
        }
    )
    assert parsed.messages[1]["content"] == ""
    assert parsed.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
    assert parsed.tools == ({"type": "function"},)


def test_sharegpt_function_calls_and_observations_are_tool_turns():
    turns = [
        {"from": "human", "value": "weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "It rains."},
    ]
    parsed = row({"conversations": turns, "system": "s", "tools": "[]"})
    assert [m["role"] for m in parsed.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert parsed.messages[2]["tool_calls"] == [{"name": "weather", "arguments": {"city": "Oslo"}}]
    assert parsed.tools is None


@pytest.mark.parametrize(("label", "read"), [(1, 1), (1.0, 1), ("spam ", "spam"), (True, "true"), (0, 0)])
def test_a_label_is_a_number_or_a_name(label, read):
    assert row({"text": "a", "label": label}).label == read


BAD = [
    (3, "not-object", "a number"),
    ([USER], "not-object", "a list"),
    ({}, "unknown-format", "(none)"),
    ({"promt": "a", "completion": "b"}, "unknown-format", "nearest is prompt_completion (completion + prompt)"),
    ({"foo": 1}, "unknown-format", "known: messages (messages)"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "unknown-format", "preference pairs"),
    ({"messages": [{"speaker": "a", "text": "b"}]}, "unknown-format", "turns of messages have speaker, text"),
    ({"messages": []}, "empty-content", "messages is an empty list"),
    ({"messages": 3}, "wrong-type", "messages is a number"),
    ({"messages": ["hi"]}, "wrong-type", "messages[0] is a text"),
    ({"messages": "hi"}, "wrong-type", "does not read as JSON"),
    ({"messages": [USER, ASSISTANT], "instruction": "a", "output": "b"}, "ambiguous-format", "messages and alpaca"),
    ({"messages": [USER]}, "no-assistant", "no assistant turn among user"),
    ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "no-assistant", "switched off"),
    ({"messages": [USER, {**ASSISTANT, "weight": "x"}]}, "wrong-type", "messages[1].weight is 'x'"),
    ({"messages": [{"role": "human", "content": "a"}, ASSISTANT]}, "wrong-role", "messages[0] has role 'human'"),
    ({"messages": [{"role": "asistant", "content": "a"}]}, "wrong-role", "did you mean 'assistant'?"),
    ({"messages": [USER, {"content": "a"}]}, "wrong-role", "messages[1] has no role"),
    ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "empty-content", "messages[1] (assistant)"),
    ({"messages": [USER, {"role": "assistant"}]}, "empty-content", "messages[1]"),
    ({"messages": [USER, {"role": "assistant", "content": 3}]}, "wrong-type", "messages[1].content is a number"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT]}, "not-text", "image_url"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{"x": 1}]}]}, "bad-tool-call", "without a name"),
    (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
        "bad-tool-call",
        "arguments of 'f' are not JSON",
    ),
    ({"conversations": [{"from": "humn", "value": "a"}]}, "wrong-role", "did you mean 'human'?"),
    ({"prompt": "", "completion": "b"}, "empty-content", "prompt is empty"),
    ({"prompt": "a", "completion": 3}, "wrong-type", "a text that does not read as JSON"),
    ({"text": " "}, "empty-content", "text is empty"),
    ({"text": "a", "label": ""}, "missing-field", "label is missing"),
    ({"text": "a", "label": 0.5}, "wrong-type", "0.5"),
    ({"text": "a\ud800"}, "not-utf8", "surrogate"),
]


@pytest.mark.parametrize(("record", "cause", "said"), BAD)
def test_what_is_wrong_with_a_row_is_named(record, cause, said):
    found = refusal(record)
    assert found[0] == cause
    assert said in found[1]


def test_a_named_format_settles_an_ambiguous_row_and_asks_for_its_own_fields():
    record = {"messages": [USER, ASSISTANT], "instruction": "a", "output": "b"}
    assert row(record, "alpaca").completion == "b"
    assert row({"text": "a", "label": 1}, "text").kind == "text"
    assert refusal({"foo": 1}, "text") == ("missing-field", "needs text; the row has foo")
    assert refusal({"text": "a"}, "classification")[0] == "missing-field"
