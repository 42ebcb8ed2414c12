"""Tiny models with strong random adapters on every linear layer of their decoder, and the logits that ours compute."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.models.saved_models import VOCABULARY
from tests.tiny import tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lorawise import LoraConfig
from lorawise.lora.injection import attach
from lorawise.lora.weights import AdapterWeights
from lorawise.store import load_adapter, save_adapter
from lorawise.store.algebra.result import Source

IDS = list(range(5, 25))
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96}
MIXED = LoraConfig(r=8, alpha=16, rank_pattern={r".*layers\.1\..*": 4}, alpha_pattern={"down_proj": 5.0})
SETTINGS = {"plain": LoraConfig(r=4, scaling=1.3), "rslora": LoraConfig(r=6, alpha=4, rslora=True), "mixed": MIXED}


def model_of(family: str) -> PreTrainedModel:
    if family == "gemma":
        more = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
        config = AutoConfig.for_model("gemma", head_dim=16, max_position_embeddings=128, **more, **SIZES)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(config).eval()
    gemma = {"query_pre_attn_scalar": 16} if family.startswith("gemma") else {}
    heads = {} if family in ("gpt2", "gpt_neox") else {"head_dim": 16}
    return tiny_model(family, **SIZES, **heads, **gemma)


def adapted(model: PreTrainedModel, folder: Path, config: LoraConfig) -> Source:
    """Random A and B on every linear layer of the decoder, strong enough to move every logit."""
    generator = torch.Generator().manual_seed(1)
    layers = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if (
            weight is None
            or weight.ndim != 2
            or "embed" in name
            or name in ("lm_head", "transformer.wte", "transformer.wpe")
        ):
            continue
        width_in, width_out = weight.shape if type(module).__name__ == "Conv1D" else weight.shape[::-1]
        rank = config.rank_of(name)
        a, b = torch.randn(rank, width_in, generator=generator), torch.randn(width_out, rank, generator=generator)
        layers[name] = (a / width_in**0.5, b / 16)
    assert len(layers) >= 8
    save_adapter(folder, AdapterWeights(config=config, layers=layers), base="tiny")
    return Source.open(folder)


@torch.no_grad()
def ours(model: PreTrainedModel, adapter: Path | None = None) -> np.ndarray:
    if adapter is not None:
        attach(model, {"adapter": load_adapter(adapter)})
    return model(torch.tensor([IDS])).logits[0].numpy()


def apart(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference of a logit, of the largest logit."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
