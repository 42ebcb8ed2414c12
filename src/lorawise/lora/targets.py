"""Which modules of a real model an adapter adapts; what a setting means by its names is in `lora/selection.py`.

A layer's fused experts are one module with two parameters, each adapted under its own name
(`model.layers.0.mlp.experts.gate_up_proj`): that name is a *place*, as a linear layer's is.
"""

from collections.abc import Iterator

from torch import nn

from lorawise.base.roles import role_of
from lorawise.lora.bank import BankLayer, Conv1DBank, EmbeddingBank, LinearBank
from lorawise.lora.config import EXPERT_PARAMETERS, LoraConfig
from lorawise.lora.experts_bank import ExpertsBank, adaptable_experts
from lorawise.lora.selection import ModuleNames, selected_names
from lorawise.lora.wrapping import base_modules, unwrapped

_CLASSIFIERS = ("score", "classifier")


def bank_kind(module: nn.Module) -> type[BankLayer] | None:
    """The bank class for a base module; None when lorawise adapts no such module."""
    if isinstance(module, nn.Linear):
        return LinearBank
    if isinstance(module, nn.Embedding):
        return EmbeddingBank
    if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
        return Conv1DBank
    return ExpertsBank if adaptable_experts(module) else None


def places_of(name: str, module: nn.Module) -> tuple[str, ...]:
    """The names under which one base module can be adapted: its own, or its parameters' for fused experts."""
    if bank_kind(module) is ExpertsBank:
        return tuple(f"{name}.{key}" for key in EXPERT_PARAMETERS)
    return (name,)


def places(model: nn.Module) -> dict[str, nn.Module]:
    """Every place of the base model, in model order, and the module that it is in."""
    return {place: module for name, module in base_modules(model) for place in places_of(name, module)}


def target_modules(model: nn.Module, config: LoraConfig) -> list[str]:
    """Full names of the modules that `config` adapts, in model order; the errors are those of `selected_names`."""
    return selected_names(module_names(model), config)


def module_names(model: nn.Module) -> ModuleNames:
    """The base model's modules as selection sees them, as if it had never been injected."""
    modules = dict(base_modules(model))
    parts = {name: places_of(name, module) for name, module in modules.items() if bank_kind(module) is ExpertsBank}
    named = places(model)
    kinds = {name: bank_kind(module) for name, module in named.items()}
    return ModuleNames(
        model=type(model).__name__,
        modules=[part for name in modules for part in (name, *parts.get(name, ()))],
        linear=frozenset(name for name, kind in kinds.items() if kind not in (None, EmbeddingBank)),
        refused={name: reason for name, module in named.items() if (reason := _refusal(name, module))},
        holders=frozenset(name for name, module in named.items() if _holds_parameters(module)),
        experts=parts,
        fused={name: (type(m).__name__, _expert_keys(m)) for name, m in modules.items() if _fused_experts(m)},
        heads=frozenset(_heads(model, modules)),
    )


def _refusal(name: str, module: nn.Module) -> str | None:
    if bank_kind(module) is None:
        return f"a {type(module).__name__}"
    if not isinstance(module, nn.Embedding):
        return None
    if role_of(name) == "position":
        return "position embeddings"
    if type(module).forward is not nn.Embedding.forward and getattr(module, "embed_scale", None) is None:
        return f"an embedding whose class {type(module).__name__} computes in its own way"
    return None


def _holds_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _fused_experts(module: nn.Module) -> bool:
    """Experts kept as one 3-D parameter each (convolutions have 3-D weights too, and live in torch.nn)."""
    if type(module).__module__.startswith("torch.nn.") or bank_kind(module) is not None:
        return False
    shapes = [parameter.dim() for key, parameter in module.named_parameters(recurse=False) if "bias" not in key]
    return sum(dim == 3 for dim in shapes) >= 2 or ("Expert" in type(module).__name__ and 3 in shapes)


def _expert_keys(module: nn.Module) -> tuple[str, ...]:
    return tuple(key for key, parameter in module.named_parameters(recurse=False) if parameter.dim() == 3)


def _heads(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[str]:
    """The output head: what the model calls its output embeddings, or a classifier's last layer."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if output is not None:
        yield from (name for name, module in modules.items() if module is unwrapped(output))
    elif type(model).__name__.endswith("ForSequenceClassification"):
        head = next((name for name in _CLASSIFIERS if name in modules), None)
        if head is not None:
            yield head
