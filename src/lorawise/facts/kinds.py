"""Models that a decoder's adapter cannot mean, told apart from config.json alone."""

from collections.abc import Mapping
from typing import Any

from lorawise.base.errors import ModelError


def refuse_other_kinds(config: Mapping[str, Any], source: str) -> None:
    """`ModelError` for models that read images or sound, and for those that are no decoder."""
    names = architectures(config)
    called = ", ".join(names) or config["model_type"]
    if "vision_config" in config or "audio_config" in config:
        found, cure = f"reads images or sound too ({called})", "take a text-only model"
    elif config.get("is_encoder_decoder") or any("ForMaskedLM" in name for name in names):
        found, cure = f"is not a decoder ({called})", "take a causal language model"
    else:
        return
    raise ModelError(f"{source} {found}", expected="a decoder language model in plain safetensors", cure=cure)


def architectures(config: Mapping[str, Any]) -> list[str]:
    """The class names that the config gives; none when it gives no list of them."""
    found = config.get("architectures")
    return [str(name) for name in found] if isinstance(found, list) else []


def quantised_with(config: Mapping[str, Any]) -> str | None:
    """The method that a checkpoint's weights are quantised with; None for plain ones."""
    found = config.get("quantization_config")
    if not found:
        return None
    return str(found.get("quant_method", "an unnamed method")) if isinstance(found, Mapping) else str(found)
