import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.real_templates import (
    CALLING,
    CORPUS,
    PARTS,
    PLAIN,
    SPECIAL,
    TEMPLATES,
    TEXT,
    THINKING,
    TOOLS,
    assistant,
    eos_of,
    open_tokenizer,
    source,
    user,
    write_folder,
)
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from lorawise.base.errors import DataError
from lorawise.data.masks import TurnFinder, token_mask
from lorawise.data.template import ChatTemplate
from lorawise.data.tokenizer import ChatTokenizer

# What the model writes before the answer of a last turn without reasoning, where the template prints such a thing.
LEADS = {
    "glm4moe": "\n<think></think>\n",
    "gptoss": "<|channel|>final<|message|>",
    "muse_glimmer": " to=user<|message|>",
    "nemotron_3": "</think>",
    "qwen3_5_think": "\n</think>\n\n",
    "qwen3_6": "\n</think>\n\n",
    "qwen3_8": "\n</think>\n\n",
    "idefics3": " ",
    "smolvlm": " ",
}


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    opened = {}

    def find(name):
        if name not in opened:
            opened[name] = open_tokenizer(folder, name)
        return opened[name]

    find.folder = folder
    return find


def renderer(tokenizer, tools=None):
    return lambda messages, prompt: tokenizer.render(messages, tools, add_generation_prompt=prompt)


def turns_of(messages):
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


def trained_texts(tokenizer, messages, *, tools=None, turns=None, finder=None):
    """What is trained, decoded, a text for each run of trained tokens; and the tokens that end turns."""
    finder = finder or TurnFinder()
    marked = finder.find(messages, renderer(tokenizer, tools), turns_of(messages) if turns is None else turns)
    ids, offsets = tokenizer.encode(marked.text)
    trained, ends = token_mask(marked, offsets, ids, stops=frozenset(tokenizer.stop_ids), special=tokenizer.special_ids)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]]).astype(int))).reshape(-1, 2)
    return [tokenizer.decode(ids[a:b]) for a, b in edges], [tokenizer.decode([i]) if i >= 0 else "" for i in ends]


@pytest.mark.parametrize("name", TEXT + PARTS)
def test_each_turn_trains_its_answer_and_the_terminator_and_nothing_else(name, tokenizer_of):
    first, last = trained_texts(tokenizer_of(name), PLAIN)[0]
    ends = trained_texts(tokenizer_of(name), PLAIN)[1]
    lead = LEADS.get(name) or next((lead for family, lead in LEADS.items() if name.startswith(family)), "")
    for text, answer in ((first, "In France."), (last, "In Peru.")):
        before, _, after = text.partition(answer)
        assert before in ("", lead, "<think>\n\n</think>\n\n")
        assert after.strip() in (*ends, "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "<|end|>\n<|endoftext|>")
    if name != "glm4moe":
        assert last.endswith(tuple(filter(None, ends)))
    if lead:
        assert last.startswith(lead)


def test_qwen3_trains_the_empty_thinking_it_prints_in_the_last_turn_only(tokenizer_of):
    texts, _ = trained_texts(tokenizer_of("qwen3"), PLAIN)
    assert texts == ["In France. <|im_end|>", "<think>\n\n</think>\n\nIn Peru.<|im_end|>"]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_vl", "glm4moe", "deepseekv3", "gptoss", "lfm2_2_5", "qwen3_6"])
def test_thinking_stripped_from_earlier_turns_is_not_looked_for_there(name, tokenizer_of):
    texts, _ = trained_texts(tokenizer_of(name), THINKING)
    assert "Paris is" not in texts[0]
    assert "In France." in texts[0]


@pytest.mark.parametrize("name", ["qwen3", "glm4moe", "gptoss", "qwen3_5_think", "nemotron_3_nano", "gemma4_v5"])
def test_reasoning_of_the_last_turn_is_trained(name, tokenizer_of):
    texts, _ = trained_texts(tokenizer_of(name), THINKING)
    assert "Lima is a city in Peru" in texts[-1]
    assert texts[-1].index("Lima is a city") < texts[-1].index("In Peru.")


def test_thinking_written_inside_the_content_is_trained_where_the_template_keeps_it(tokenizer_of):
    messages = [
        user("Where?"),
        assistant("<think>\nhm\n</think>\n\nHere."),
        user("And?"),
        assistant("<think>a</think>b"),
    ]
    texts, _ = trained_texts(tokenizer_of("qwen3"), messages)
    assert texts == ["Here.<|im_end|>", "<think>\na\n</think>\n\nb<|im_end|>"]


@pytest.mark.parametrize(
    "name", ["gemma4", "glm4moe", "gptoss", "lfm2_2_5", "llama3_1", "muse_glimmer", "qwen2_5", "qwen3", "qwen3_5_think"]
)
def test_a_tool_call_is_trained_whole_with_its_name_and_its_result_is_not(name, tokenizer_of):
    texts, _ = trained_texts(tokenizer_of(name), CALLING, tools=TOOLS)
    assert len(texts) == 2
    assert "get_weather" in texts[0]
    assert "Lima" in texts[0]
    assert "warm" not in texts[0]
    assert texts[1].partition("It is warm.")[1]
    assert "get_weather" not in texts[1]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe", "llama3_1"])
@pytest.mark.parametrize("arguments", [{}, {"days": 3}, {"on": True, "where": {"city": "Lima"}}, {"list": [1, "}"]}])
def test_arguments_of_any_shape_are_trained_to_their_end(name, arguments, tokenizer_of):
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [CALLING[0], assistant("", tool_calls=[call]), *CALLING[2:]]
    tokenizer = tokenizer_of(name)
    texts, _ = trained_texts(tokenizer, messages, tools=TOOLS)
    rendered = tokenizer.render(messages, TOOLS)
    start = rendered.index(texts[0])
    assert (
        rendered[start + len(texts[0]) :]
        .lstrip()
        .startswith(("<|im_start|>", "\n<tool_response>", "<|start_header_id|>", "<tool_response>"))
    )


def test_parallel_calls_are_trained_together(tokenizer_of):
    calls = [
        {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
        for city in ("Lima", "Oslo")
    ]
    answers = [{"role": "tool", "content": "warm"}, {"role": "tool", "content": "cold"}]
    texts, _ = trained_texts(
        tokenizer_of("qwen3"), [user("weather?"), assistant("Looking.", tool_calls=calls), *answers], tools=TOOLS
    )
    assert len(texts) == 1
    assert texts[0].startswith("<think>\n\n</think>\n\nLooking.") or texts[0].startswith("Looking.")
    assert "Oslo" in texts[0]
    assert texts[0].endswith("</tool_call><|im_end|>")


@pytest.mark.parametrize("name", ["llama3", "qwen3", "phi3", "gemma", "glm4moe", "gptoss"])
def test_an_answer_that_occurs_elsewhere_is_found_in_its_own_place(name, tokenizer_of):
    tokenizer = tokenizer_of(name)
    messages = [user("yes"), assistant("yes"), user("yes"), assistant("user"), user("assistant"), assistant("yes")]
    marked = TurnFinder().find(messages, renderer(tokenizer), [1, 3, 5])
    assert [marked.text[turn.answer : turn.end] for turn in marked.turns] == ["yes", "user", "yes"]
    places = [turn.answer for turn in marked.turns]
    assert places == sorted(places)
    assert places[0] > marked.text.index("yes")


def test_the_last_turn_alone_is_trained_when_only_it_is_asked_for(tokenizer_of):
    texts, _ = trained_texts(tokenizer_of("llama3"), PLAIN, turns=[3])
    assert texts == ["In Peru.<|eot_id|>"]


def test_consecutive_assistant_turns_are_each_trained(tokenizer_of):
    messages = [user("Where?"), assistant("One."), assistant("Two.")]
    texts, _ = trained_texts(tokenizer_of("llama3"), messages)
    assert texts == ["One.<|eot_id|>", "Two.<|eot_id|>"]


def test_a_conversation_that_the_assistant_begins_is_trained(tokenizer_of):
    texts, _ = trained_texts(tokenizer_of("qwen2_5"), [assistant("Hello!"), user("Hi."), assistant("So?")])
    assert texts == ["Hello!<|im_end|>", "So?<|im_end|>"]


def test_an_empty_answer_trains_its_terminator(tokenizer_of):
    texts, _ = trained_texts(
        tokenizer_of("llama3"), [user("Say nothing."), assistant(" "), user("Good."), assistant("So?")]
    )
    assert texts == ["<|eot_id|>", "So?<|eot_id|>"]


def test_private_use_characters_in_the_data_do_not_confuse_the_mark(tokenizer_of):
    texts, _ = trained_texts(tokenizer_of("llama3"), [user("\ue100\ue101"), assistant("\ue100 ok \ue102")])
    assert texts == ["\ue100 ok \ue102<|eot_id|>"]


def test_glm_closes_its_last_turn_with_the_token_that_opens_the_next(tokenizer_of):
    tokenizer = tokenizer_of("glm4moe")
    assert "" in trained_texts(tokenizer, PLAIN)[1], "GLM prints nothing after the last answer"
    closing = TurnFinder().closing(PLAIN, renderer(tokenizer))
    assert closing.startswith("<|user|>")


def test_text_between_an_earlier_prompt_and_an_answer_without_one_is_not_trained():
    """After a tool's result this template lets the assistant go on without a new header, though it prompts with one."""
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'assistant' and not (loop.previtem and loop.previtem.role == 'tool') %}"
        "<|a|>{% elif m.role != 'assistant' %}<|{{ m.role }}|>{% endif %}{{ m.content }}{% endfor %}"
        "{{ '<|a|>' if add_generation_prompt else '' }}"
    )
    messages = [user("one"), assistant("two"), {"role": "tool", "content": "three"}, assistant("four")]
    marked = TurnFinder().find(messages, lambda m, p: template.render(m, add_generation_prompt=p), [1, 3])
    assert [marked.text[turn.start : turn.end] for turn in marked.turns] == ["two", "four"]


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_trained_under_each_of_its_names(field, tokenizer_of):
    messages = [user("Where?"), assistant("Here.", **{field: "near"})]
    texts, _ = trained_texts(tokenizer_of("qwen3"), messages)
    assert texts == ["<think>\nnear\n</think>\n\nHere.<|im_end|>"]


def test_a_template_that_prints_an_answer_twice_is_refused():
    template = ChatTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError, match="message 2"):
        TurnFinder().find([user("a"), assistant("b")], lambda m, p: template.render(m, add_generation_prompt=p), [1])


def test_a_template_that_lets_an_answer_rewrite_what_follows_is_refused():
    code = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ messages[1].content | length }}"
    template = ChatTemplate(code)
    with pytest.raises(DataError, match="message 2"):
        TurnFinder().find([user("a"), assistant("bcd")], lambda m, p: template.render(m, add_generation_prompt=p), [1])


def test_a_special_token_that_takes_the_white_space_beside_it_stays_where_it_belongs(tmp_path):
    """Phi-3's role tokens strip what follows them, other tokenizers' terminators what comes before."""
    folder = write_folder(tmp_path, "phi3")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["rstrip"] = token["content"] in ("<|assistant|>", "<|user|>")
        token["lstrip"] = token["content"] == "<|end|>"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    messages = [user("Where?"), assistant("  In Peru.  "), user("And?"), assistant("Here.")]
    texts, _ = trained_texts(ChatTokenizer.open(folder), messages)
    assert texts == ["In Peru.<|end|>", "Here.<|end|>"]


def metaspace_tokenizer(name, prepend):
    """Built as Llama 2's and Gemma's are: a normalizer writes ▁ for spaces, what is unknown falls back to bytes."""
    names = sorted({*SPECIAL.findall(source(name)), eos_of(name), "<s>"})
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepend else replace
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *([decoders.Strip(" ", 1, 0)] * prepend)]
    )
    special = ["<unk>", *names, *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = not token["content"].startswith("<0x")
    content["added_tokens"] = [token for token in content["added_tokens"] if token["special"]]
    return Tokenizer.from_str(json.dumps(content))


@pytest.mark.parametrize("name", ["phi3", "gemma", "llama3", "cohere"])
@pytest.mark.parametrize("prepend", [False, True], ids=["gemma's way", "llama 2's way"])
def test_answers_are_found_through_normalizers_and_byte_fallback(name, prepend, tmp_path):
    folder = write_folder(tmp_path, name)
    metaspace_tokenizer(name, prepend).save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer = ChatTokenizer.open(folder)
    messages = [user("Where is Łódź 🙂?"), assistant("ça va 🙂 ñandú"), user("So?"), assistant("日本")]
    marked = TurnFinder().find(messages, renderer(tokenizer), [1, 3])
    ids, offsets = tokenizer.encode(marked.text)
    trained, _ = token_mask(marked, offsets, ids, stops=frozenset(tokenizer.stop_ids), special=tokenizer.special_ids)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]]).astype(int))).reshape(-1, 2)
    texts = [tokenizer.decode(ids[a:b], skip_special_tokens=True).strip() for a, b in edges]
    assert texts == ["ça va 🙂 ñandú", "日本"]
    assert all(int(ids[b - 1]) in tokenizer.special_ids for _, b in edges)


words = st.text(st.characters(categories=("L", "N", "P", "Zs"), exclude_characters="<>|{}[]"), min_size=1, max_size=30)
said = words.filter(lambda text: text.strip() == text and text.strip() != "")


@pytest.mark.parametrize("name", ["llama3", "qwen3", "phi3", "gemma", "deepseekv3", "gptoss", "cohere2"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(said, said), min_size=1, max_size=3))
def test_for_any_words_only_answers_are_trained_and_what_was_learned_changes_nothing(name, tokenizer_of, turns):
    tokenizer = tokenizer_of(name)
    messages = [message for question, answer in turns for message in (user(question), assistant(answer))]
    wanted = turns_of(messages)
    finder = TurnFinder()
    for earlier in (PLAIN, THINKING):
        finder.find(earlier, renderer(tokenizer), turns_of(earlier))
    learned = finder.find(messages, renderer(tokenizer), wanted)
    assert learned == TurnFinder().find(messages, renderer(tokenizer), wanted)
    assert [learned.text[turn.answer : turn.end] for turn in learned.turns] == [answer for _, answer in turns]


ORACLES = sorted(path.stem for path in TEMPLATES.glob("*_training.jinja") if not path.stem.startswith(tuple(PARTS)))


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("messages", [PLAIN, THINKING], ids=["plain", "thinking"])
def test_agrees_with_the_generation_tags_that_trl_put_into_its_training_templates(name, messages, tokenizer_of):
    """Ours ignores the tags and finds the turns itself: the same tokens, but for the prompt and the line end after."""
    tokenizer = tokenizer_of(name)
    oracle = PreTrainedTokenizerFast.from_pretrained(tokenizer_of.folder / name).apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )
    marked = TurnFinder().find(messages, renderer(tokenizer), [1, 3])
    ids, offsets = tokenizer.encode(marked.text)
    ours, _ = token_mask(marked, offsets, ids, stops=frozenset(tokenizer.stop_ids), special=tokenizer.special_ids)
    theirs = np.array(oracle["assistant_masks"], dtype=bool)
    assert ids.tolist() == oracle["input_ids"]
    assert not (ours & ~theirs).any()
    prompt = tokenizer.render(messages[:1], add_generation_prompt=True)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], theirs & ~ours, [False]]).astype(int))).reshape(-1, 2)
    for start, end in edges:
        rest = tokenizer.decode(ids[start:end]).strip()
        assert rest in prompt, "not trained, though the model has to write it"
