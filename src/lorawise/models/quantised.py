"""A base model in 4 or 8 bits: quantised weight by weight while it loads, then held in lorawise's packed layers.

    nf4    every linear layer but the head in NF4; with `double_quant` its scales in 8 bits (QLoRA, arXiv 2305.14314)
    int8   the same layers in 8 bits with one scale a row (LLM.int8, arXiv 2208.07339)

transformers reads one tensor at a time, bitsandbytes quantises it, and its 16-bit form is gone before the next is read:
the peak of loading is the quantised model and one matrix. What stays as it is (embeddings, norms, biases, the head) is
in the compute dtype. bitsandbytes' layers then give way to `lora.packed`, which hold the same bits: theirs repack
themselves on a CPU with bfloat16 units when they first answer, and pass no gradient afterwards; and their 8-bit
product rounds the activations as well, which training has no need of.
"""

import importlib
import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorawise.base.errors import ModelError
from lorawise.lora.packed import NF4_BLOCK, Int8Linear, Nf4Linear, PackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def loading_options(name: str, *, compute: torch.dtype, double_quant: bool, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told to quantise as it loads, straight onto `device`."""
    require_bitsandbytes(name)
    from transformers import BitsAndBytesConfig

    if device.type not in ("cpu", "cuda"):
        raise ModelError(
            f"base.dtype {name} on {device.type}", expected="a CPU or a CUDA device", cure="use bfloat16 or float16"
        )
    settings: dict[str, dict[str, Any]] = {
        "nf4": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": double_quant,
            "bnb_4bit_compute_dtype": compute,
        },
        "int8": {"load_in_8bit": True},
    }
    config = BitsAndBytesConfig(**settings[name])  # type: ignore[no-untyped-call]
    return {"quantization_config": config, "device_map": {"": str(device)}}


def require_bitsandbytes(name: str) -> None:
    """Import it; `ModelError` where it is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"base.dtype {name}: bitsandbytes is not installed",
            expected="bitsandbytes 0.50 or later, which quantises the weights",
            cure="pip install 'lorawise[qlora]', or base.dtype: bfloat16",
        )
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)  # on a CPU it advises another package for a kernel that is not called here
    try:
        importlib.import_module("bitsandbytes")
    finally:
        log.setLevel(level)


def refuse_fused_experts(model_class: Any, config: "PreTrainedConfig", dtype: str) -> None:
    """Before anything is read: experts kept as one tensor each would stay in 16 bits, and are most of the model."""
    with torch.device("meta"):
        skeleton = model_class.from_config(config)
    fused = [
        (name, module, key, parameter)
        for name, module in skeleton.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and not type(module).__module__.startswith("torch.nn.")
    ]
    if fused:
        where, module, _, _ = fused[0]
        keys = ", ".join(key for name, _, key, _ in fused if name == where)
        share = sum(parameter.numel() for *_, parameter in fused) / sum(p.numel() for p in skeleton.parameters())
        raise ModelError(
            f"base.dtype {dtype}: {where} ({type(module).__name__}) keeps its experts as one tensor each ({keys}), "
            f"which bitsandbytes leaves in 16 bits; they are {share:.0%} of this model",
            expected="a model whose weights are linear layers",
            cure="base.dtype: bfloat16 on a device that holds it, or a model without experts",
        )


def pack(model: "PreTrainedModel", compute: torch.dtype) -> None:
    """Put a packed layer in each bitsandbytes layer's place, over the same tensors, and forget how it was loaded."""
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            packed = _packed(child, compute)
            if packed is not None:
                packed.train(child.training)
                setattr(parent, key, packed)
    for left_by_loading in ("hf_quantizer", "is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method"):
        vars(model).pop(left_by_loading, None)
    vars(model)["is_quantized"] = False
    vars(model.config).pop("quantization_config", None)


def packed_layers(model: nn.Module) -> dict[str, PackedLinear]:
    """By the names they have in the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def _packed(layer: nn.Module, compute: torch.dtype) -> PackedLinear | None:
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    if not isinstance(layer, (Linear4bit, Linear8bitLt)):
        return None
    weight: Any = layer.weight
    common: dict[str, Any] = {
        "in_features": layer.in_features,
        "out_features": layer.out_features,
        "bias": layer.bias,
        "compute_dtype": compute,
    }
    if isinstance(layer, Linear8bitLt):
        return Int8Linear(**common, bits=weight.CB, scales=weight.SCB)
    state = weight.quant_state
    assert state.blocksize == NF4_BLOCK, "bitsandbytes' own for nf4"
    if state.nested:
        common |= {
            "scales_code": state.state2.code,
            "scales_scale": state.state2.absmax,
            "scales_mean": state.offset,
        }
    return Nf4Linear(**common, bits=weight.data, scales=state.absmax)
