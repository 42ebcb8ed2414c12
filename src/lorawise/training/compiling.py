"""Regional compilation: each decoder layer by itself, so that norms, rotary and the MLP's activation become few loops.

    train.compile   off    layers run as they are
                    on     compiled, or a finding says why not
                    auto   on an accelerator with Triton; off elsewhere, where a compiler's minute is seldom earned back

Shapes are compiled as variables, so that rows of another length do not compile again; attention document by document
stays outside, as its kernels are chosen by the lengths. A layer that is computed again in backward is not compiled.
"""

import torch
from transformers import AttentionInterface, PreTrainedModel

from lorawise.base.findings import Finding
from lorawise.models.attention import DOCUMENTS, document_attention
from lorawise.models.head import decoder_of


def compile_layers(model: PreTrainedModel, asked: str, *, memory: str) -> Finding | None:
    """Compile the decoder's layers where that is asked for and can be; else the reason why not, if it was `on`."""
    if asked == "off" or (asked == "auto" and model.device.type == "cpu"):
        return None
    why = why_not(model, memory=memory)
    if why is not None:
        return None if asked == "auto" else _not_compiled(why)
    outside = torch.compiler.disable(document_attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(DOCUMENTS, outside)
    for layer in layers_of_decoder(model):
        layer.compile(dynamic=True)
    return None


def why_not(model: PreTrainedModel, *, memory: str) -> str | None:
    """What stands against compiling; None: nothing does."""
    if memory != "speed":
        return f"train.memory is {memory}, and layers computed again are not compiled"
    if not layers_of_decoder(model):
        return f"{type(model).__name__} keeps its layers where they are not found"
    if model.device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton, which compiles for this GPU, is not installed"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler is found"
    return None


def layers_of_decoder(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The repeated layers, by the classes that transformers calls checkpointable."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in decoder_of(model).modules() if isinstance(module, GradientCheckpointingLayer)]


def _not_compiled(why: str) -> Finding:
    return Finding(
        code="not-compiled",
        level="warning",
        message=f"layers run uncompiled: {why}",
        cure="train.compile: off says so in the run file",
    )
