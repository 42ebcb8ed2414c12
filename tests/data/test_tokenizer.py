import json

import pytest
from tests.data.real_templates import PLAIN, TOOLS, source, trained_tokenizer, user, write_folder
from transformers import PreTrainedTokenizerFast

from lorawise.base.errors import DataError
from lorawise.data.tokenizer import ChatTokenizer


def edit(folder, name, **changes):
    path = folder / name
    content = json.loads(path.read_text()) if path.is_file() else {}
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gemma3", "glm4moe", "cohere2", "phi3_5", "deepseekv3"])
def test_ids_equal_those_of_apply_chat_template(name, tmp_path):
    folder = write_folder(tmp_path, name)
    expected = PreTrainedTokenizerFast.from_pretrained(folder).apply_chat_template(PLAIN, return_dict=True)["input_ids"]
    tokenizer = ChatTokenizer.open(folder)
    assert tokenizer.encode(tokenizer.render(PLAIN), bos=True)[0].tolist() == expected


def test_offsets_cover_the_text_and_decode_undoes_encode(tmp_path):
    tokenizer = ChatTokenizer.open(write_folder(tmp_path, "qwen3"))
    text = "Ünïcode 🙂 and\n  space"
    ids, offsets = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert offsets[0, 0] == 0
    assert offsets[-1, 1] == len(text)
    assert offsets.shape == (len(ids), 2)


@pytest.mark.parametrize("template", ["llama3", "qwen3"], ids=["template prints it", "template does not"])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_stands_at_most_once_and_always_when_the_tokenizer_uses_it(template, adds_bos, tmp_path):
    tokenizer = ChatTokenizer.open(write_folder(tmp_path, template, adds_bos=adds_bos))
    ids = tokenizer.encode(tokenizer.render(PLAIN), bos=True)[0].tolist()
    assert ids.count(tokenizer.bos_id) == (1 if adds_bos or template == "llama3" else 0)
    assert tokenizer.encode("plain", bos=True)[0].tolist().count(tokenizer.bos_id) == int(adds_bos)
    assert tokenizer.encode("", bos=True)[0].tolist() == ([tokenizer.bos_id] if adds_bos else [])


def test_a_config_that_turns_bos_off_is_obeyed(tmp_path):
    folder = write_folder(tmp_path, "qwen3", adds_bos=True)
    edit(folder, "tokenizer_config.json", add_bos_token=False)
    assert not ChatTokenizer.open(folder).adds_bos


def test_a_tokenizer_without_pad_fills_with_eos_and_without_eos_with_zero(tmp_path):
    folder = write_folder(tmp_path, "qwen3")
    tokenizer = ChatTokenizer.open(folder)
    assert tokenizer.pad_id == tokenizer.eos_id == trained_tokenizer("qwen3").token_to_id("<|im_end|>")
    edit(folder, "tokenizer_config.json", eos_token=None)
    bare = ChatTokenizer.open(folder)
    assert (bare.eos_id, bare.pad_id) == (None, 0)


def test_special_tokens_may_be_objects_or_stand_in_the_special_tokens_map(tmp_path):
    folder = write_folder(tmp_path, "qwen3")
    edit(folder, "tokenizer_config.json", eos_token={"content": "<|im_end|>", "lstrip": False}, bos_token=None)
    edit(folder, "special_tokens_map.json", bos_token="<s>", pad_token={"content": "<|im_start|>"})
    tokenizer = ChatTokenizer.open(folder)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<|im_start|>"}


def test_generation_stops_at_every_eos_of_the_model(tmp_path):
    tokenizer = ChatTokenizer.open(write_folder(tmp_path, "glm4moe"))
    stops = [tokenizer.decode([i]) for i in tokenizer.stop_ids]
    assert stops == ["<|endoftext|>", "<|user|>", "<|observation|>"]


def test_templates_of_a_folder_come_before_the_config_and_tools_take_tool_use(tmp_path):
    folder = write_folder(tmp_path, "qwen3")
    edit(folder, "tokenizer_config.json", chat_template="from config")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    tokenizer = ChatTokenizer.open(folder)
    assert set(tokenizer.templates) == {"default", "tool_use"}
    assert tokenizer.render(PLAIN, TOOLS) == "with tools"
    assert tokenizer.render(PLAIN).startswith("<|im_start|>")


@pytest.mark.parametrize("listed", [True, False])
def test_the_config_may_hold_one_template_or_several_by_name(listed, tmp_path):
    folder = write_folder(tmp_path, "qwen3")
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    edit(folder, "tokenizer_config.json", chat_template=named if listed else "one")
    tokenizer = ChatTokenizer.open(folder)
    assert tokenizer.render(PLAIN) == "one"
    assert tokenizer.render(PLAIN, TOOLS) == ("two" if listed else "one")


def test_a_template_that_reads_parts_gets_parts(tmp_path):
    tokenizer = ChatTokenizer.open(write_folder(tmp_path, "smolvlm"))
    assert "Where is Paris?" in tokenizer.render(PLAIN)


def test_a_model_without_chat_template_says_what_to_do(tmp_path):
    folder = write_folder(tmp_path, "qwen3")
    (folder / "chat_template.jinja").unlink()
    tokenizer = ChatTokenizer.open(folder)
    assert not tokenizer.has_template
    assert tokenizer.template_digest == ""
    with pytest.raises(DataError, match="no chat template") as caught:
        tokenizer.render(PLAIN)
    assert "chatml" in caught.value.cure


def test_a_template_can_be_named_or_given_as_a_file(tmp_path):
    folder = write_folder(tmp_path / "model", "qwen3")
    chatml = ChatTokenizer.open(folder, template="chatml")
    assert chatml.render([user("hi")], add_generation_prompt=True) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    path = tmp_path / "mine.jinja"
    path.write_text(source("llama3"), encoding="utf-8")
    assert "<|eot_id|>" in ChatTokenizer.open(folder, template=str(path)).render(PLAIN)
    with pytest.raises(DataError, match="no chat template 'chatmi'"):
        ChatTokenizer.open(folder, template="chatmi")


def test_chatml_begins_with_bos_once_where_the_tokenizer_uses_one(tmp_path):
    tokenizer = ChatTokenizer.open(write_folder(tmp_path, "qwen3", adds_bos=True), template="chatml")
    assert tokenizer.render(PLAIN).startswith("<s><|im_start|>")
    assert tokenizer.encode(tokenizer.render(PLAIN), bos=True)[0].tolist().count(tokenizer.bos_id) == 1


def test_a_folder_without_tokenizer_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.json") as caught:
        ChatTokenizer.open(tmp_path)
    assert caught.value.expected
    assert "save_pretrained" in caught.value.cure


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_torn_file_is_a_data_error_with_its_path(name, tmp_path):
    folder = write_folder(tmp_path, "qwen3")
    path = folder / name
    path.write_text(path.read_text()[: len(path.read_text()) // 2])
    with pytest.raises(DataError, match=name):
        ChatTokenizer.open(folder)


def test_digests_follow_the_content(tmp_path):
    one = ChatTokenizer.open(write_folder(tmp_path / "a", "qwen3"))
    same = ChatTokenizer.open(write_folder(tmp_path / "b", "qwen3"))
    other = ChatTokenizer.open(write_folder(tmp_path / "c", "qwen3", adds_bos=True))
    assert one.digest == same.digest != other.digest
    assert one.template_digest == same.template_digest
    assert one.template_digest != ChatTokenizer.open(tmp_path / "a", template="chatml").template_digest


def test_padding_and_truncation_written_in_the_tokenizer_are_not_applied(tmp_path):
    folder = write_folder(tmp_path, "qwen3")
    tokenizer = trained_tokenizer("qwen3")
    from_file = type(tokenizer).from_str(tokenizer.to_str())
    from_file.enable_truncation(4)
    from_file.enable_padding(length=64)
    from_file.save(str(folder / "tokenizer.json"))
    assert 4 < len(ChatTokenizer.open(folder).encode("The capital of France is Paris")[0]) < 64
