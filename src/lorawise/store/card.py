"""`README.md` of an adapter: a model card that says what was trained, how strongly, on what, and how to load it."""

import json
import re

import numpy as np
from numpy.typing import NDArray

from lorawise.lora.weights import StoredAdapter
from lorawise.store.provenance import Provenance
from lorawise.store.served import served_rank

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DIGESTS = (
    ("base", "base_digest"),
    ("tokenizer", "tokenizer_digest"),
    ("chat template", "template_digest"),
    ("data", "data_digest"),
)


def model_card(weights: StoredAdapter, provenance: Provenance, *, base: str) -> str:
    """Markdown with the hub's front matter."""
    sections = (_front_matter(weights, base), _setting(weights), _history(provenance), _loading(weights, base))
    return "\n".join(sections)


def _front_matter(weights: StoredAdapter, base: str) -> str:
    pipeline = "text-classification" if weights.task == "SEQ_CLS" else "text-generation"
    lines = ["library_name: peft", f"pipeline_tag: {pipeline}", "tags: [lora, lorawise]"]
    if _HUB_ID.fullmatch(base):
        lines.insert(0, f"base_model: {json.dumps(base)}")
    return "\n".join(("---", *lines, "---", ""))


def _setting(weights: StoredAdapter) -> str:
    config = weights.config
    trained = sum(a.size + b.size for a, b in weights.layers.values())
    trained += sum(tensor.size for tensor in weights.full.values())
    rows = [
        ("r", f"{config.r}"),
        ("alpha", f"{config.alpha:g}"),
        ("scaling", f"{config.scaling:g} = alpha / {'√r (rsLoRA)' if config.rslora else 'r'}"),
        ("dropout", f"{config.dropout:g}"),
        ("adapted modules", f"{len(weights.layers)}: {', '.join(_kinds_of_name(weights))}"),
        ("experts", _experts(weights)),
        ("rank of an expert", "" if config.expert_r is None else str(config.expert_r)),
        ("own rank", ", ".join(f"{k} → {v}" for k, v in config.rank_pattern.items())),
        ("own alpha", ", ".join(f"{k} → {v:g}" for k, v in config.alpha_pattern.items())),
        ("trained in full", ", ".join(config.modules_to_save)),
        ("bias", "" if config.bias == "none" else config.bias),
        ("parameters", f"{trained:,}"),
    ]
    table = [f"| {name} | {_cell(value)} |" for name, value in rows if value]
    return "\n".join(("# LoRA adapter", "", "| setting | value |", "|---|---|", *table, ""))


def _history(provenance: Provenance) -> str:
    found = [(name, getattr(provenance, field)) for name, field in _DIGESTS]
    lines = [f"- {name}: `sha256:{digest}`" for name, digest in found if digest]
    lines += [f"- parent adapter: `sha256:{digest}`" for digest in provenance.parents]
    made_with = ", ".join(f"{name} {number}" for name, number in provenance.versions.items())
    lines.append(f"- made {provenance.created} with {made_with}")
    return "\n".join(("## Trained on", "", *lines, "", "The full record is in `provenance.json`.", ""))


def _loading(weights: StoredAdapter, base: str) -> str:
    model_class = "AutoModelForSequenceClassification" if weights.task == "SEQ_CLS" else "AutoModelForCausalLM"
    name = json.dumps(base or "the base model")
    rank = max((a.shape[-2] for a, _ in weights.layers.values()), default=weights.config.r)
    lines = [
        "## Use",
        "",
        "```python",
        "import lorawise",
        "",
        f'loaded = lorawise.load({name}, adapters={{"mine": "this folder"}})',
        "```",
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {model_class}",
        "",
        f'model = PeftModel.from_pretrained({model_class}.from_pretrained({name}), "this folder")',
        "```",
        "",
    ]
    obstacle = _vllm_obstacle(weights)
    if obstacle:
        lines += [f"vLLM does not serve it as it is: {obstacle}.", ""]
    else:
        most = served_rank(rank) or rank
        command = f"vllm serve {name} --enable-lora --max-lora-rank {most} --lora-modules mine=this-folder"
        lines += ["```sh", command, "```", ""]
    return "\n".join(lines)


def _vllm_obstacle(weights: StoredAdapter) -> str:
    """Why vLLM would refuse the adapter, or serve it with another scaling (it reads one r and one lora_alpha)."""
    config = weights.config
    if "experts" in weights.kinds.values():
        return "it adapts fused experts, which are not exported yet"
    if weights.full:
        return "it holds modules or biases trained in full"
    if len({round(config.scaling_of(name), 12) for name in weights.layers} | {round(config.scaling, 12)}) > 1:
        return "its modules differ in scaling, and vLLM reads one for all"
    return ""


def _experts(weights: StoredAdapter) -> str:
    """`15 of 16 in 2 layers moved; the others got no gradient in training, and answer as the base`."""
    moved: dict[str, NDArray[np.bool_]] = {}
    for name, (_, b) in weights.layers.items():
        if weights.kinds.get(name) == "experts":
            owner = name.rpartition(".")[0]
            own = (b.bits() != 0).any(axis=(1, 2))
            moved[owner] = own | moved[owner] if owner in moved else own
    if not moved:
        return ""
    count, total = sum(int(each.sum()) for each in moved.values()), sum(each.size for each in moved.values())
    rest = "" if count == total else "; the others got no gradient in training, and answer as the base"
    return f"{count:,} of {total:,} in {len(moved)} layers moved{rest}"


def _kinds_of_name(weights: StoredAdapter) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[2] for name in weights.layers))


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
