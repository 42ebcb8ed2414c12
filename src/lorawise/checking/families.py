"""What is known of model families by their names: module names, dtype on disk, tied heads, BOS, experts.

Used only where no shapes are at hand; a model whose name says nothing is not judged.
Sources: the families' config.json and tokenizer_config.json on the hub; transformers' module names.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lorawise.base.roles import role_of

LLAMA_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Family:
    """names      linear modules of a decoder layer
    bfloat16      its weights are stored so
    tied          head and embedding share one weight, by a pattern on the model's name ("" for none, "." for all)
    bos           its template writes BOS and its tokenizer adds one too
    fused_experts PEFT's all-linear leaves its experts out
    generation    its template marks what the assistant says
    """

    title: str
    pattern: str
    names: tuple[str, ...] = LLAMA_NAMES
    bfloat16: bool = True
    tied: str = ""
    bos: bool = False
    fused_experts: bool = False
    marks_answers: bool = False


FAMILIES = (
    Family(title="gpt-oss", pattern=r"gpt-oss", names=(*LLAMA_NAMES[:4], "router"), fused_experts=True),
    Family(
        title="Phi-3",
        pattern=r"(?<!unsloth/)phi-?(3|4)(?!.*(small|moe))",  # Unsloth's copies have Llama's layers
        names=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    ),
    Family(
        title="GPT-2",
        pattern=r"(^|/)(distil)?gpt-?2|dialogpt",
        names=("c_attn", "c_proj", "c_fc"),
        bfloat16=False,
        tied=".",
    ),
    Family(
        title="GPT-NeoX",
        pattern=r"pythia|gpt-neox|dolly-v2",
        names=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        bfloat16=False,
    ),
    Family(
        title="Falcon",
        pattern=r"falcon-(7|40|180)b|falcon-rw",
        names=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    ),
    Family(
        title="BLOOM",
        pattern=r"bloomz?(-|$)",
        names=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        tied=".",
    ),
    Family(
        title="OPT",
        pattern=r"(^|/)opt-",
        names=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        bfloat16=False,
        tied=".",
    ),
    Family(title="Llama 2", pattern=r"llama-?2", bfloat16=False, bos=True),
    Family(title="Llama", pattern=r"llama-?3|tinyllama|meta-llama", bos=True, tied=r"3\.2-(1|3)b"),
    Family(title="SmolLM", pattern=r"smollm", tied="."),
    Family(title="Mistral", pattern=r"mistral|mixtral|zephyr", bos=True),
    Family(title="Gemma", pattern=r"gemma", bos=True, tied="."),
    Family(title="Qwen", pattern=r"qwen", tied=r"2(\.5)?-(0\.5|1\.5|3)b|qwen3-(0\.6|1\.7|4)b"),
)


def family_of(model: str | None) -> Family | None:
    """The family a hub id or a folder's name speaks of; None when it speaks of none."""
    if not model:
        return None
    name = "/".join(model.lower().replace("\\", "/").rstrip("/").split("/")[-2:])[:200]
    return next((family for family in FAMILIES if re.search(family.pattern, name)), None)


def has_experts(model: str | None) -> bool:
    """Whether the model's name speaks of a mixture of experts: `…MoE`, `30B-A3B`, Mixtral, gpt-oss, DeepSeek."""
    return bool(model and re.search(r"moe|-a\d+(\.\d+)?b|mixtral|gpt-oss|deepseek-(v|r)\d", model.lower()[:200]))


def is_tied(model: str | None) -> bool:
    family = family_of(model)
    return bool(family and family.tied and model and re.search(family.tied, model.lower()))


def known_modules() -> frozenset[str]:
    """Every linear module name of every family here."""
    return frozenset(name for family in FAMILIES for name in family.names)


def families_with(name: str) -> Iterator[Family]:
    return (family for family in FAMILIES if name in family.names)


# Linear layers of models that have no family here: state-space and convolutional mixers, audio towers, diffusion.
_ELSEWHERE = frozenset(
    ("in_proj", "x_proj", "dt_proj", "output_proj", "proj", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out")
)


def is_known(name: str) -> bool:
    if name in _ELSEWHERE:
        return True
    return name in known_modules() or role_of(name) is not None or role_of(f"mlp.{name}") is not None
