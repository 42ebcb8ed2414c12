"""PEFT as the oracle: its models, with random non-zero adapters, its files, and its logits."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from tests.tiny import tiny_model
from transformers import AutoModelForSequenceClassification, PreTrainedModel

IDS = torch.tensor([[5, 17, 200, 3, 44, 91, 8, 130, 77, 12], [9, 250, 31, 66, 102, 4, 18, 211, 58, 23]])
_KNOWN = (
    "`is_gradient_checkpointing` is deprecated",
    "Setting `save_embedding_layers`",
    "Could not find a config file in b",
    "Model has `tie_word_embeddings=True`",
)
# Of settings that a test asks PEFT for; a file we wrote must not make PEFT say these.
_CHOSEN_BADLY = (r".*_pattern keys did not match any targeted module", "fan_in_fan_out is set to False")


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Warnings stay errors, but for those PEFT always gives here."""
    with warnings.catch_warnings():
        for message in _KNOWN:
            warnings.filterwarnings("ignore", message=message)
        yield


def peft_injected(model: PreTrainedModel, *, seed: int = 0, **fields: Any) -> peft.PeftModel:
    """A PEFT model whose A and B (and whatever else trains) are random."""
    with quiet_peft():
        for message in _CHOSEN_BADLY:
            warnings.filterwarnings("ignore", message=message)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**({"task_type": "CAUSAL_LM"} | fields)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return wrapped.eval()


def peft_saved(wrapped: peft.PeftModel, folder: Path) -> Path:
    with quiet_peft():
        wrapped.save_pretrained(str(folder))
    return folder


def peft_loaded(model: PreTrainedModel, folder: Path, *, is_trainable: bool = False) -> peft.PeftModel:
    """What PEFT makes of a folder; a warning (missing or unexpected keys) is an error."""
    with quiet_peft():
        return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable).eval()


def adapted_by_peft(wrapped: peft.PeftModel) -> dict[str, float]:
    """Module name → scaling of every module PEFT adapted."""
    modules = wrapped.get_base_model().named_modules()
    return {name: module.scaling["default"] for name, module in modules if isinstance(module, LoraLayer)}


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


def tiny_classifier(family: str = "llama", *, labels: int = 3, seed: int = 0) -> PreTrainedModel:
    config = tiny_model(family).config
    config.num_labels = labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return model.eval()
