"""What an adapter would adapt and train, from shapes alone.

    trainable = Σ r·(in + out) over the selected matrices, each with its own rank, + what is trained in full

The meaning of a setting is `lora/selection.py`, the same that real models are asked with.
"""

from lorawise.facts.model import Matrix, ModelFacts
from lorawise.lora.config import LoraConfig
from lorawise.lora.selection import ModuleNames, called_within, selected_names


def selected(facts: ModelFacts, config: LoraConfig) -> tuple[Matrix, ...]:
    """The matrices that `config` adapts, in model order; errors as `lora.target_modules` on the real model."""
    return tuple(facts.matrix(name) for name in selected_names(module_names(facts), config))


def trainable(facts: ModelFacts, config: LoraConfig) -> int:
    """Parameters that `config` trains on this model: adapters, `modules_to_save` and biases."""
    chosen = selected(facts, config)
    adapters = sum(config.rank_of(m.name) * (m.in_features + m.out_features) for m in chosen)
    return adapters + _trained_in_full(facts, config, frozenset(m.name for m in chosen))


def module_names(facts: ModelFacts) -> ModuleNames:
    """The model's modules as selection sees them: those that hold parameters, and those that contain them."""
    modules = [matrix for matrix in facts.matrices if matrix.kind != "experts"]
    owners = [parameter.name.rpartition(".")[0] for parameter in facts.others]
    fused: dict[str, tuple[str, tuple[str, ...]]] = {}
    for matrix in facts.experts:
        owner, _, key = matrix.name.rpartition(".")
        fused[owner] = ("fused experts", (*fused.get(owner, ("", ()))[1], key))
    holders = [*(m.name for m in modules), *owners, *fused]
    names = list(dict.fromkeys(part for name in ("", *holders) for part in _within(name)))
    refused = dict.fromkeys(names, "no linear layer")
    for matrix in modules:
        if matrix.role == "position":
            refused[matrix.name] = "position embeddings"
        else:
            del refused[matrix.name]
    return ModuleNames(
        model=facts.architecture,
        modules=names,
        linear=frozenset(matrix.name for matrix in facts.linear),
        refused=refused,
        holders=frozenset(holders),
        fused=fused,
        heads=frozenset(matrix.name for matrix in facts.heads),
    )


def _within(name: str) -> list[str]:
    """A module's name after the names of all that contain it."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _trained_in_full(facts: ModelFacts, config: LoraConfig, adapted: frozenset[str]) -> int:
    """Elements of the base's parameters that are trained as copies: of whole modules, and biases.

    A head tied to the embedding is one parameter under two names; each name that is saved has a copy of its own.
    """
    total = 0
    for matrix in facts.matrices:
        module = matrix.name.rpartition(".")[0] if matrix.kind == "experts" else matrix.name
        saved = any(called_within(module, wanted) for wanted in config.modules_to_save)
        biases = config.bias == "all" or (config.bias == "lora_only" and matrix.name in adapted)
        total += matrix.parameters if saved else (matrix.parameters - matrix.weights) * biases
    for parameter in facts.others:
        module, _, key = parameter.name.rpartition(".")
        saved = any(called_within(module, wanted) for wanted in config.modules_to_save)
        total += parameter.size if saved or (config.bias == "all" and "bias" in key) else 0
    return total
