"""What an adapter would adapt and train, from shapes alone.

    trainable = Σ r·(in + out) over the selected matrices, each with its own rank (for fused experts, times their
                number), + what is trained in full

The meaning of a setting is `lora/selection.py`, the same that real models are asked with.
"""

from collections.abc import Iterator

from lorawise.facts.model import Matrix, ModelFacts
from lorawise.lora.config import EXPERT_PARAMETERS, LoraConfig
from lorawise.lora.selection import ModuleNames, called_within, selected_names


def selected(facts: ModelFacts, config: LoraConfig) -> tuple[Matrix, ...]:
    """The matrices that `config` adapts, in model order; errors as `lora.target_modules` on the real model."""
    return tuple(facts.matrix(name) for name in selected_names(module_names(facts), config))


def trainable(facts: ModelFacts, config: LoraConfig) -> int:
    """Parameters that `config` trains on this model: adapters, `modules_to_save` and biases."""
    chosen = selected(facts, config)
    adapters = sum(m.experts * config.rank_of(m.name) * (m.in_features + m.out_features) for m in chosen)
    full = trained_in_full(facts, config, frozenset(m.name for m in chosen))
    return adapters + sum(size for _, size in full)


def module_names(facts: ModelFacts) -> ModuleNames:
    """The model's modules as selection sees them: those that hold parameters, and those that contain them."""
    modules = [matrix for matrix in facts.matrices if matrix.kind != "experts"]
    owners = [parameter.name.rpartition(".")[0] for parameter in facts.others]
    experts, fused = _experts(facts)
    parts = [part for those in experts.values() for part in those]
    holders = [*(m.name for m in facts.matrices if m.kind != "experts" or m.name in parts), *owners, *fused]
    names = list(dict.fromkeys(part for name in ("", *holders) for part in _within(name)))
    refused = dict.fromkeys((name for name in names if name not in parts and name not in experts), "no linear layer")
    for matrix in modules:
        if matrix.role == "position":
            refused[matrix.name] = "position embeddings"
        else:
            del refused[matrix.name]
    return ModuleNames(
        model=facts.architecture,
        modules=names,
        linear=frozenset((*(matrix.name for matrix in facts.linear), *parts)),
        refused=refused,
        holders=frozenset(holders),
        experts=experts,
        fused={owner: ("fused experts", keys) for owner, keys in fused.items()},
        heads=frozenset(matrix.name for matrix in facts.heads),
    )


def _experts(facts: ModelFacts) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Modules of fused experts that can be adapted → the full names of their parameters; the others → the keys."""
    keys: dict[str, tuple[str, ...]] = {}
    for matrix in facts.experts:
        owner, _, key = matrix.name.rpartition(".")
        keys[owner] = (*keys.get(owner, ()), key)
    adaptable = {owner: found for owner, found in keys.items() if sorted(found) == sorted(EXPERT_PARAMETERS)}
    return (
        {owner: tuple(f"{owner}.{key}" for key in EXPERT_PARAMETERS) for owner in adaptable},
        {owner: found for owner, found in keys.items() if owner not in adaptable},
    )


def _within(name: str) -> list[str]:
    """A module's name after the names of all that contain it."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def trained_in_full(
    facts: ModelFacts, config: LoraConfig, adapted: frozenset[str] | None = None
) -> Iterator[tuple[str, int]]:
    """(name, elements) of the base's parameters that are trained as copies: of whole modules, and biases. `adapted`
    are the names of `selected`, where the caller has them.

    A head tied to the embedding is one parameter under two names; each name that is saved has a copy of its own.
    """
    if not config.modules_to_save and config.bias == "none":
        return
    adapted = frozenset(m.name for m in selected(facts, config)) if adapted is None else adapted
    for matrix in facts.matrices:
        module = matrix.name.rpartition(".")[0] if matrix.kind == "experts" else matrix.name
        saved = any(called_within(module, wanted) for wanted in config.modules_to_save)
        biases = config.bias == "all" or (config.bias == "lora_only" and matrix.name in adapted)
        if saved:
            yield f"{matrix.name}.weight", matrix.weights
        if matrix.bias and (saved or biases):
            yield f"{matrix.name}.bias", matrix.parameters - matrix.weights
    for parameter in facts.others:
        module, _, key = parameter.name.rpartition(".")
        saved = any(called_within(module, wanted) for wanted in config.modules_to_save)
        if saved or (config.bias == "all" and "bias" in key):
            yield parameter.name, parameter.size
