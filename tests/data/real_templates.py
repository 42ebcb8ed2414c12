"""Real chat templates (those TRL ships) with a small tokenizer for each: bytes, merges, the template's own tokens."""

import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lorawise.data.tokenizer import ChatTokenizer

TEMPLATES = Path(next(iter(find_spec("trl").submodule_search_locations))) / "chat_templates"

# Text of one family each; variants that TRL made for training are used as oracles only.
TEXT = [
    "cohere",
    "cohere2",
    "deepseek_r1_distill",
    "deepseekv3",
    "gemma",
    "gemma3",
    "gemma4",
    "gemma4_v3",
    "gemma4_v5",
    "glm4moe",
    "gptoss",
    "lfm2",
    "lfm2_2_5",
    "lfm2_v2",
    "llama3",
    "llama3_1",
    "llama3_2",
    "muse_glimmer",
    "nemotron_3_5_lightning",
    "nemotron_3_nano",
    "nemotron_3_super",
    "nemotron_3_ultra",
    "phi3",
    "phi3_5",
    "qwen2_5",
    "qwen2_5_vl",
    "qwen3",
    "qwen3_5_nothink",
    "qwen3_5_think",
    "qwen3_6",
    "qwen3_8",
    "qwen3_instruct_2507",
    "qwen3_vl",
]
PARTS = ["idefics3", "llava_next", "smolvlm"]  # these take content only as a list of parts

# What ends a turn, as the model's generation config lists it: only where the tokenizer's eos alone would mislead.
STOPS = {"glm4moe": ["<|user|>", "<|observation|>"], "gptoss": ["<|return|>", "<|call|>"], "phi3": ["<|end|>"]}
EOS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "gemma4": "<turn|>",
    "diffusion": "<turn|>",
    "gemma": "<end_of_turn>",
    "glm": "<|endoftext|>",
    "gptoss": "<|return|>",
    "idefics": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "nemotron": "<|im_end|>",
    "qwen": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llava": "</s>",
    "muse": "<|eot|>",
    "phi3": "<|endoftext|>",
}
CORPUS = [
    "The capital of France is Paris, and the capital of Peru is Lima.",
    'What is the weather in Lima? {"city": "Lima", "unit": "celsius"} It is warm and sunny there.',
    "You are a terse assistant. system user assistant model tool function think",
]
SPECIAL = re.compile(
    r"<[|｜][^<>\n{}]{1,40}?[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>|</?(?:start|end)_of_[a-z]+>|<s>|</s>|\[gMASK\]|<sop>|<bos>"
)
_NOT_SPECIAL = ("<think>", "</think>", "<tool_call>", "</tool_call>")


@cache
def source(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def eos_of(name: str) -> str:
    return EOS[max((key for key in EOS if name.startswith(key)), key=len)]


@cache
def trained_tokenizer(name: str) -> Tokenizer:
    special = sorted({*SPECIAL.findall(source(name)), eos_of(name), "<s>"})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400 + len(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in _NOT_SPECIAL if t in source(name)])
    return tokenizer


def write_folder(folder: Path, name: str, *, adds_bos: bool = False) -> Path:
    """A model folder with this template's tokenizer, as `ChatTokenizer.open` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_str(trained_tokenizer(name).to_str())
    if adds_bos:
        bos = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": eos_of(name)}))
    (folder / "chat_template.jinja").write_text(source(name), encoding="utf-8")
    if name in STOPS:
        stops = [tokenizer.token_to_id(token) for token in STOPS[name]]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    return folder


def open_tokenizer(folder: Path, name: str) -> ChatTokenizer:
    return ChatTokenizer.open(write_folder(folder / name, name))


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str, **more: object) -> dict:
    return {"role": "assistant", "content": content, **more}


PLAIN = [user("Where is Paris?"), assistant("In France. "), user("And Lima, is it in France?"), assistant("In Peru.")]
THINKING = [
    user("Where is Paris?"),
    assistant("In France.", reasoning_content="Paris is a city in France"),
    user("And Lima?"),
    assistant("In Peru.", reasoning_content="Lima is a city in Peru"),
]
CALLING = [
    user("What is the weather in Lima?"),
    assistant(
        "",
        tool_calls=[
            {
                "id": "call00001",
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"city": "Lima", "days": 3}},
            }
        ],
    ),
    {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "warm"},
    assistant("It is warm."),
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "its name"}},
                "required": ["city"],
            },
        },
    }
]


def in_parts(messages: list[dict]) -> list[dict]:
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
