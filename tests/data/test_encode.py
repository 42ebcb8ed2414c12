import numpy as np
import pytest
from tests.data.real_templates import PLAIN, THINKING, assistant, open_tokenizer, user, write_folder

from lorawise.base.errors import ConfigError, DataError, ModelError
from lorawise.data import sandbox
from lorawise.data.encode import (
    EncodeOptions,
    encode_rows,
    final_answer,
    preview,
    prompt_and_answer,
)
from lorawise.data.rows import Row, Where
from lorawise.data.tokenizer import ChatTokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAWISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base_model(tmp_path):
    """A tokenizer that adds BOS, without chat template."""
    folder = write_folder(tmp_path / "base", "llama3", adds_bos=True)
    (folder / "chat_template.jinja").unlink()
    return ChatTokenizer.open(folder)


def row(kind, line=1, **fields):
    return Row(kind=kind, where=Where(path="train.jsonl", line=line), **fields)


def chat(*messages, line=1, turns=None):
    found = tuple(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return row("messages", line, messages=tuple(messages), trained_turns=found if turns is None else turns)


def trained(encoded, tokenizer):
    return [text for text, is_trained in preview(encoded, tokenizer) if is_trained]


def test_messages_train_all_turns_or_the_last(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "llama3")
    every = encode_rows([chat(*PLAIN)], tokenizer)[0]
    last = encode_rows([chat(*PLAIN)], tokenizer, EncodeOptions(train_on="last"))[0]
    assert trained(every, tokenizer) == ["In France.<|eot_id|>", "In Peru.<|eot_id|>"]
    assert trained(last, tokenizer) == ["In Peru.<|eot_id|>"]
    assert every.ids.tolist() == last.ids.tolist()


def test_turns_a_row_switches_off_are_not_trained(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "llama3")
    only_first = encode_rows([chat(*PLAIN, turns=(1,))], tokenizer)[0]
    assert trained(only_first, tokenizer) == ["In France.<|eot_id|>"]


def test_glm_gets_its_terminator_appended_and_it_is_a_stop_token(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "glm4moe")
    encoded = encode_rows([chat(*PLAIN)], tokenizer)
    assert trained(encoded[0], tokenizer)[-1].endswith("In Peru.<|user|>")
    assert tokenizer.tokenizer.token_to_id("<|user|>") in encoded.stop_ids


def test_a_terminator_the_tokenizer_does_not_name_as_eos_becomes_a_stop_token(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "phi3_5")
    stops = [tokenizer.decode([i]) for i in encode_rows([chat(*PLAIN)], tokenizer).stop_ids]
    assert stops == ["<|endoftext|>", "<|end|>"]


def test_completion_rows_of_a_base_model_train_the_completion_and_eos(base_model):
    encoded = encode_rows([row("completion", prompt="Where is Lima?", completion=" In Peru.")], base_model)[0]
    assert trained(encoded, base_model) == [" In Peru.<|eot_id|>"]
    assert encoded.ids.tolist().count(base_model.bos_id) == 1
    assert encoded.ids[0] == base_model.bos_id


def test_completion_rows_of_a_chat_model_become_a_conversation_unless_asked(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "llama3")
    rows = [row("completion", prompt="Where is Lima?\n", completion=" In Peru.")]
    as_chat = encode_rows(rows, tokenizer)[0]
    plain = encode_rows(rows, tokenizer, EncodeOptions(completion="plain"))[0]
    assert tokenizer.decode(as_chat.ids).startswith("<s><|start_header_id|>user")
    assert trained(as_chat, tokenizer) == ["In Peru.<|eot_id|>"]
    assert tokenizer.decode(plain.ids) == "Where is Lima?\n In Peru.<|eot_id|>"


def test_text_rows_train_all_but_the_first_token_with_one_bos_and_one_eos(base_model):
    rows = [row("text", text="Lima is in Peru."), row("text", 2, text="Paris.<|eot_id|>")]
    for encoded in encode_rows(rows, base_model):
        assert not encoded.trained[0]
        assert encoded.trained[1:].all()
        assert encoded.ids.tolist().count(base_model.bos_id) == 1
        assert encoded.ids.tolist().count(base_model.eos_id) == 1
        assert encoded.ids[-1] == base_model.eos_id


def test_the_first_token_of_a_row_is_never_a_target(tmp_path):
    folder = write_folder(tmp_path, "qwen3")
    tokenizer = ChatTokenizer.open(folder)
    encoded = encode_rows([row("text", text="Lima is in Peru.")], tokenizer)[0]
    assert encoded.trained.tolist() == [False] + [True] * (len(encoded) - 1)


def test_classification_rows_carry_a_class_and_train_no_token(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "llama3")
    options = EncodeOptions(labels=("bad", "good"))
    rows = [
        row("classification", text="fine", label="good"),
        row("classification", 2, text="a", text_pair="b", label="bad"),
    ]
    encoded = encode_rows(rows, tokenizer, options)
    assert [one.label for one in encoded] == [1, 0]
    assert not any(one.trained.any() for one in encoded)
    assert encoded.trained_tokens == 2  # what a head learns: one class a row
    assert [tokenizer.decode(one.ids) for one in encoded] == ["fine", "a\nb"]


def test_classification_as_generated_labels_trains_the_label(tmp_path, base_model):
    options = EncodeOptions(classification="generated")
    rows = [row("classification", text="fine", label="good")]
    chat_model = open_tokenizer(tmp_path, "llama3")
    assert trained(encode_rows(rows, chat_model, options)[0], chat_model) == ["good<|eot_id|>"]
    assert trained(encode_rows(rows, base_model, options)[0], base_model) == ["good<|eot_id|>"]


def test_a_label_that_is_no_class_is_a_problem_with_its_line(tmp_path):
    with pytest.raises(DataError, match=r"train\.jsonl:7: label 'odd'"):
        encode_rows(
            [row("classification", 7, text="x", label="odd")],
            open_tokenizer(tmp_path, "llama3"),
            EncodeOptions(labels=("bad", "good")),
        )


def test_what_is_cut_is_counted_and_told(base_model):
    rows = [row("text", text="Lima is in Peru. " * 20), row("text", 2, text="short")]
    whole = encode_rows(rows, base_model)
    cut = encode_rows(rows, base_model, EncodeOptions(max_length=16))
    assert (whole.cut_rows, whole.cut_tokens, whole.findings) == (0, 0, ())
    assert (cut.cut_rows, cut.cut_tokens) == (1, len(whole[0]) - 16)
    assert cut[0].ids.tolist() == whole[0].ids[:16].tolist()
    assert [finding.code for finding in cut.findings] == ["truncated"]
    assert "1 of 2 rows" in cut.findings[0].message


def test_a_row_whose_answer_is_cut_away_stops_with_its_line_or_is_skipped_and_listed(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "llama3")
    rows = [chat(user("long " * 50), assistant("yes"), line=3), chat(user("hi"), assistant("yes"), line=4)]
    options = EncodeOptions(max_length=40)
    with pytest.raises(DataError, match=r"train\.jsonl:3: no trained token in the first 40"):
        encode_rows(rows, tokenizer, options)
    kept = encode_rows(rows, tokenizer, options, on_bad="skip")
    assert [one.row for one in kept] == [1]
    assert [(problem.code, problem.line) for problem in kept.problems] == [("no-trained-tokens", 3)]


def test_a_row_without_a_trained_token_is_told_why_and_what_to_do(tmp_path):
    folder = write_folder(tmp_path / "silent", "llama3")
    (folder / "tokenizer_config.json").write_text("{}")  # names no end token
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }} {% endfor %}")
    tokenizer = ChatTokenizer.open(folder)
    rows = [row("text", text="a"), chat(*PLAIN, line=2)]
    problems = encode_rows([*rows, row("text", 3, text="two words")], tokenizer, on_bad="skip").problems
    assert [(problem.line, problem.code) for problem in problems] == [(1, "one-token"), (2, "no-answer-printed")]
    assert "max_length" not in "".join(problem.cure for problem in problems)


def test_control_tokens_spelled_out_in_a_conversation_are_told_with_the_first_line(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "llama3")
    rendered = row("completion", 3, prompt="<|start_header_id|>user<|end_header_id|>hi", completion="hello")
    rows = [chat(*PLAIN), chat(user("say <|eot_id|> now"), assistant("no"), line=2), rendered]
    [found] = encode_rows(rows, tokenizer).findings
    assert (found.code, found.line) == ("control-tokens", 2)
    assert "2 of 3 rows" in found.message
    assert "<|eot_id|>" in found.message
    plain = [chat(*PLAIN), row("text", text="<|eot_id|> is what it is"), chat(user("<think> <b>"), assistant("x"))]
    assert not encode_rows(plain, tokenizer).findings


def test_a_template_without_end_stops_at_its_first_row(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_TURNS", 1000)
    folder = write_folder(tmp_path / "endless", "llama3")
    (folder / "chat_template.jinja").write_text("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}")
    with pytest.raises(ModelError, match=r"chat_template\.jinja turned loops"):
        encode_rows([chat(*PLAIN)] * 100, ChatTokenizer.open(folder), on_bad="skip")


def test_all_rows_a_template_refuses_are_listed_at_once_up_to_a_limit(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "gemma")
    rows = [chat(user("a"), user("b"), assistant("c"), line=i) for i in range(1, 31)]
    with pytest.raises(DataError, match="must alternate") as caught:
        encode_rows(rows, tokenizer)
    assert "train.jsonl:20:" in caught.value.found
    assert "and 10 more" in caught.value.found
    assert "train.jsonl:21:" not in caught.value.found


def test_messages_without_a_template_are_refused_with_a_cure(base_model):
    with pytest.raises(DataError, match="no chat template") as caught:
        encode_rows([chat(*PLAIN)], base_model)
    assert "chatml" in caught.value.cure


def test_pad_is_eos_and_the_terminator_is_trained_all_the_same(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "qwen2_5")
    assert tokenizer.pad_id == tokenizer.eos_id
    encoded = encode_rows([chat(*PLAIN)], tokenizer)[0]
    assert encoded.ids[encoded.trained].tolist().count(tokenizer.eos_id) == 2


def test_weights_of_rows_are_kept_in_order(base_model):
    rows = [row("text", text="a b", weight=2.0), row("text", 2, text="c d", weight=0.5)]
    assert encode_rows(rows, base_model).weights.tolist() == [2.0, 0.5]


def test_preview_is_the_whole_row_in_runs(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "qwen3")
    encoded = encode_rows([chat(*PLAIN)], tokenizer)[0]
    runs = preview(encoded, tokenizer)
    assert "".join(text for text, _ in runs) == tokenizer.decode(encoded.ids)
    assert [is_trained for _, is_trained in runs] == [False, True, False, True, False]


@pytest.mark.parametrize("name", ["llama3", "qwen3", "glm4moe", "gptoss", "qwen3_5_think", "deepseekv3", "smolvlm"])
def test_the_prompt_for_generation_is_the_training_text_up_to_the_answer(name, tmp_path):
    tokenizer = open_tokenizer(tmp_path, name)
    prompt, answer = prompt_and_answer(chat(*PLAIN), tokenizer)
    encoded = encode_rows([chat(*PLAIN)], tokenizer)[0]
    assert answer == "In Peru."
    assert tokenizer.decode(encoded.ids).startswith(tokenizer.decode(prompt))
    assert tokenizer.decode(encoded.ids[len(prompt) :]).strip().startswith("In Peru.")


def test_a_row_with_reasoning_is_prompted_before_it(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "qwen3")
    prompt, answer = prompt_and_answer(chat(*THINKING), tokenizer)
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    assert answer == "In Peru."
    assert final_answer("<think>\nhm\n</think>\n\nIn Peru.") == answer


def test_the_prompt_of_a_base_model_is_the_prompt_with_bos(base_model):
    prompt, answer = prompt_and_answer(row("completion", prompt="Where?", completion=" In Peru."), base_model)
    assert base_model.decode(prompt) == "<s>Where?"
    assert answer == "In Peru."


def test_a_conversation_that_goes_on_after_the_last_trained_turn_is_cut_there(tmp_path):
    tokenizer = open_tokenizer(tmp_path, "llama3")
    prompt, answer = prompt_and_answer(chat(*PLAIN, turns=(1,)), tokenizer)
    assert answer == "In France."
    assert "Lima" not in tokenizer.decode(prompt)


@pytest.mark.parametrize(
    "wrong", [{"max_length": 1}, {"train_on": "first"}, {"completion": "x"}, {"classification": "x"}]
)
def test_options_refuse_nonsense(wrong):
    with pytest.raises(ConfigError):
        EncodeOptions(**wrong)


def test_ids_and_masks_are_of_one_length_and_type(tmp_path):
    encoded = encode_rows([chat(*PLAIN)], open_tokenizer(tmp_path, "llama3"))
    assert encoded[0].ids.dtype == np.int32
    assert encoded[0].trained.dtype == bool
    assert encoded[0].ids.shape == encoded[0].trained.shape
    assert encoded.tokens == len(encoded[0])
