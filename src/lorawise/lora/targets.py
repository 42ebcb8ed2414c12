"""Which modules an adapter adapts: presets, names, one regex; exclusions and layer indices on top.

    qv          query and value projections; on models that fuse them (Phi-3, GPT-NeoX, Falcon, GPT-2) the whole fused
                projection, since it cannot be adapted in parts
    attention   every projection of attention, fused or not
    mlp         every projection of the feed-forward blocks
    all-linear  every linear layer but the output head (a classifier's `score` included), as in PEFT
    names       the whole module name or its last components, as in PEFT; every name must match something
    a regex     matched against the whole module name, as in PEFT; limited in length and time, since files bring it

What is meant must be what moves: a module that is meant but cannot be adapted is refused by name, never skipped.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from lorawise.base.errors import AdapterError, ConfigError, nearest
from lorawise.base.patterns import full_match
from lorawise.base.roles import ATTENTION_ROLES, role_of
from lorawise.lora.bank import BankLayer, Conv1DBank, EmbeddingBank, LinearBank
from lorawise.lora.config import LoraConfig
from lorawise.lora.full_modules import called_within
from lorawise.lora.wrapping import base_modules, unwrapped

_ROLES = {"qv": frozenset({"q", "v", "qkv"}), "attention": ATTENTION_ROLES, "mlp": frozenset({"mlp"})}
PRESETS = (*_ROLES, "all-linear")
_CLASSIFIERS = ("score", "classifier")


def bank_kind(module: nn.Module) -> type[BankLayer] | None:
    """The bank class for a base module; None when lorawise adapts no such module."""
    if isinstance(module, nn.Linear):
        return LinearBank
    if isinstance(module, nn.Embedding):
        return EmbeddingBank
    if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
        return Conv1DBank
    return None


def target_modules(model: nn.Module, config: LoraConfig) -> list[str]:
    """Full names of the modules that `config` adapts, in model order; empty when it only has `modules_to_save`.

    Raises `AdapterError` for a name that matches nothing (with the nearest), and for what is meant but cannot be
    adapted: fused experts, position embeddings, modules of other kinds; `ConfigError` for layer indices out of range.
    """
    tree = _Tree.of(model)
    admits = _admission(tree, config)
    if not config.target_modules:
        return []
    if isinstance(config.target_modules, str) and config.target_modules in PRESETS:
        chosen = _by_preset(tree, config.target_modules, admits)
    elif isinstance(config.target_modules, str):
        chosen = _by_regex(tree, config.target_modules, admits)
    else:
        chosen = _by_names(tree, config.target_modules, admits)
    if not chosen and not config.modules_to_save:
        raise AdapterError(
            f"target_modules={_shown(config.target_modules)} selects no module of {type(model).__name__}",
            expected="at least one, after exclude_modules, layers and modules_to_save took theirs away",
            cure=f"its linear layers are called {', '.join(sorted(tree.leaves()))}",
        )
    return chosen


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """The base model's modules by name, parted by what can be done with them."""

    model: nn.Module
    modules: dict[str, nn.Module]
    adaptable: dict[str, type[BankLayer]]
    fused: dict[str, str]  # module name of fused 3-D experts → its class
    heads: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module) -> "_Tree":
        modules = dict(base_modules(model))
        kinds = {name: kind for name, module in modules.items() if (kind := bank_kind(module))}
        fused = {name: type(module).__name__ for name, module in modules.items() if _fused_experts(module)}
        return cls(model=model, modules=modules, adaptable=kinds, fused=fused, heads=frozenset(_heads(model, modules)))

    def linear(self) -> list[str]:
        return [name for name, kind in self.adaptable.items() if kind is not EmbeddingBank]

    def leaves(self) -> set[str]:
        return {name.rpartition(".")[2] for name in self.linear() if name not in self.heads}


Admits = Callable[[str], bool]


def _admission(tree: _Tree, config: LoraConfig) -> Admits:
    """Whether a module name survives exclude_modules, modules_to_save and layers."""
    names = list(tree.modules)
    excluded: set[str] = set()
    if isinstance(config.exclude_modules, str):
        excluded = {name for name in names if full_match(config.exclude_modules, name)}
    else:
        for wanted in config.exclude_modules:
            found = {name for name in names if _is_called(name, wanted)}
            _require(found, wanted, names, "exclude_modules")
            excluded |= found
    for wanted in config.modules_to_save:
        found = {name for name in names if called_within(name, wanted)}
        _require(found, wanted, names, "modules_to_save")
        excluded |= found
    layers = None if config.layers is None else frozenset(config.layers)
    if layers is not None:
        known = {index for name in names if (index := layer_index(name)) is not None}
        if missing := sorted(layers - known):
            raise ConfigError(
                f"layers={list(config.layers or ())} names {missing}, which {type(tree.model).__name__} does not have",
                expected=f"indices from 0 to {max(known)}" if known else "a model with numbered layers",
            )
    return lambda name: name not in excluded and (layers is None or layer_index(name) in layers)


def layer_index(name: str) -> int | None:
    """The decoder layer a module belongs to: the first number in its name (as in PEFT); None outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _by_preset(tree: _Tree, preset: str, admits: Admits) -> list[str]:
    if preset in ("mlp", "all-linear"):
        _refuse_fused([name for name in tree.fused if admits(name)], tree, f"the preset '{preset}'")
    if preset == "all-linear":
        return [name for name in tree.linear() if name not in tree.heads and admits(name)]
    roles = _ROLES[preset]
    return [name for name in tree.linear() if role_of(name) in roles and name not in tree.heads and admits(name)]


def _by_regex(tree: _Tree, pattern: str, admits: Admits) -> list[str]:
    matched = [name for name in tree.modules if name and full_match(pattern, name) and admits(name)]
    if not matched:
        plain = re.fullmatch(r"[\w.]+", pattern) is not None
        raise AdapterError(
            f"target_modules={_shown(pattern)} is not a preset, and as a regex matches no module name",
            expected=f"a preset ({', '.join(PRESETS)}), a regex on whole module names, or a list of names",
            cure=f"write a list: [{pattern}]"
            if plain and pattern in tree.leaves()
            else nearest(pattern, [*PRESETS, *tree.leaves()]),
        )
    _refuse_fused([name for name in matched if name in tree.fused], tree, f"target_modules={_shown(pattern)}")
    holders = [name for name in matched if any(True for _ in tree.modules[name].parameters(recurse=False))]
    return _adaptable(tree, [name for name in holders if name in matched], pattern)


def _by_names(tree: _Tree, wanted: Sequence[str], admits: Admits) -> list[str]:
    chosen: set[str] = set()
    for name in wanted:
        matched = [full for full in tree.modules if full and _is_called(full, name)]
        experts = [full for full in tree.fused if _is_called(full, name) or _names_expert(tree, full, name)]
        _refuse_fused([full for full in experts if admits(full)], tree, f"the target '{name}'")
        if not experts:
            _require(matched, name, _leaf_names(tree), "target_modules")
        chosen.update(_adaptable(tree, [full for full in matched if admits(full) and full not in tree.fused], name))
    return [full for full in tree.modules if full in chosen]


def _adaptable(tree: _Tree, names: Sequence[str], wanted: str) -> list[str]:
    """`names`, or a refusal that lists those that cannot be adapted."""
    refused = [f"{name} ({reason})" for name in names if (reason := _refusal(tree, name))]
    if refused:
        raise AdapterError(
            f"target_modules={_shown(wanted)} selects what cannot be adapted: {_listed(refused)}",
            expected="linear layers, GPT-2's Conv1D, or token embeddings",
            cure=f"name linear layers ({', '.join(sorted(tree.leaves()))}), or train it whole with modules_to_save",
        )
    return list(names)


def _refusal(tree: _Tree, name: str) -> str | None:
    module = tree.modules[name]
    if name not in tree.adaptable:
        return f"a {type(module).__name__}"
    if not isinstance(module, nn.Embedding):
        return None
    if role_of(name) == "position":
        return "position embeddings"
    if type(module).forward is not nn.Embedding.forward and getattr(module, "embed_scale", None) is None:
        return f"an embedding whose class {type(module).__name__} computes in its own way"
    return None


def _refuse_fused(names: Sequence[str], tree: _Tree, what: str) -> None:
    if names:
        raise AdapterError(
            f"{what} means the fused experts of this model: {_listed([f'{n} ({tree.fused[n]})' for n in names])}",
            expected="layers that are modules of their own; fused 3-D experts cannot be adapted yet",
            cure="target attention (the preset 'attention' or 'qv'), or leave them out: exclude_modules: [experts]",
        )


def _fused_experts(module: nn.Module) -> bool:
    """Experts kept as one 3-D parameter each (convolutions have 3-D weights too, and live in torch.nn)."""
    if type(module).__module__.startswith("torch.nn.") or bank_kind(module) is not None:
        return False
    shapes = [parameter.dim() for key, parameter in module.named_parameters(recurse=False) if "bias" not in key]
    return sum(dim == 3 for dim in shapes) >= 2 or ("Expert" in type(module).__name__ and 3 in shapes)


def _names_expert(tree: _Tree, full: str, wanted: str) -> bool:
    keys = [key for key, parameter in tree.modules[full].named_parameters(recurse=False) if parameter.dim() == 3]
    return any(_is_called(f"{full}.{key}", wanted) for key in keys)


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


def _is_called(full: str, wanted: str) -> bool:
    return full == wanted or full.endswith(f".{wanted}")


def _leaf_names(tree: _Tree) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in tree.adaptable})


def _require(found: object, wanted: str, known: Sequence[str], field: str) -> None:
    if not found:
        leaves = sorted({name.rpartition(".")[2] for name in known if name} - {str(i) for i in range(1000)})
        raise AdapterError(f"{field} names '{wanted}', which no module is called", cure=nearest(wanted, leaves))


def _shown(target: str | Sequence[str]) -> str:
    text = repr(target) if isinstance(target, str) else "[" + ", ".join(target) + "]"
    return text if len(text) <= 100 else f"{text[:97]}…"


def _listed(names: Sequence[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
