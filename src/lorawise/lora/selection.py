"""Which names a setting means: presets, names, one regex; exclusions and layer indices on top. Without torch.

    qv          query and value projections; on models that fuse them (Phi-3, GPT-NeoX, Falcon, GPT-2) the whole fused
                projection, since it cannot be adapted in parts
    attention   every projection of attention, fused or not
    mlp         every projection of the feed-forward blocks
    all-linear  every linear layer but the output head (a classifier's `score` included), as in PEFT
    names       the whole module name or its last components, as in PEFT; every name must match something
    a regex     matched against the whole module name, as in PEFT; limited in length and time, since files bring it

The experts of a mixture are linear layers too, though they lie in two fused parameters: `mlp` and `all-linear` mean
them, `experts.gate_up_proj` names one of the two, `experts` both. Routers are in no preset: they stay frozen unless
named.

A real model (`lora/targets.py`) and a model known by its shapes alone (`facts/targets.py`) are both asked this way, so
that what is planned is what is trained. What is meant must be what moves: a module that is meant but cannot be adapted
is refused by name, never skipped.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lorawise.base.errors import AdapterError, ConfigError, nearest
from lorawise.base.patterns import full_match
from lorawise.base.roles import ATTENTION_ROLES, role_of
from lorawise.lora.config import PRESETS, LoraConfig

_ROLES = {"qv": frozenset({"q", "v", "qkv"}), "attention": ATTENTION_ROLES, "mlp": frozenset({"mlp"})}


@dataclass(frozen=True, kw_only=True)
class ModuleNames:
    """A base model's modules by name, in model order, parted by what can be done with them.

    model     what the model's class is called
    modules   every module's name; the model itself is ""
    linear    the linear layers (GPT-2's Conv1D too)
    refused   module → why it cannot be adapted, "a LlamaMLP"; what is neither linear nor here is an embedding, which
              can be adapted when it is named
    holders   modules with parameters of their own
    experts   module of fused experts → the full names of its parameters, which are adapted as linear layers are
    fused     module of fused 3-D experts that cannot be adapted → (its class, the names of those parameters)
    heads     the output head, which presets leave alone
    """

    model: str
    modules: Sequence[str]
    linear: frozenset[str]
    refused: Mapping[str, str]
    holders: frozenset[str]
    experts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    heads: frozenset[str] = frozenset()

    def linear_in_order(self) -> list[str]:
        """What presets choose from: neither the output head nor routers."""
        chosen = self.linear - self.heads
        return [name for name in self.modules if name in chosen and role_of(name) != "router"]

    def parts(self) -> frozenset[str]:
        """The parameters of fused experts, by their full names."""
        return frozenset(part for parts in self.experts.values() for part in parts)

    def spread(self, chosen: Iterable[str]) -> list[str]:
        """`chosen` with each module of fused experts replaced by its parameters, nothing twice."""
        return list(dict.fromkeys(part for name in chosen for part in self.experts.get(name, (name,))))

    def leaves(self) -> set[str]:
        """The last components of the linear layers' names, as people write them into target_modules."""
        return {name.rpartition(".")[2] for name in self.linear - self.heads}

    def adaptable_leaves(self) -> list[str]:
        return sorted({name.rpartition(".")[2] for name in self.modules if name not in self.refused})


def selected_names(names: ModuleNames, config: LoraConfig) -> list[str]:
    """Full names of the modules that `config` adapts, in model order; empty when it only has `modules_to_save`.

    Raises `AdapterError` for a name that matches nothing (with the nearest), and for what is meant but cannot be
    adapted: fused experts, position embeddings, modules of other kinds; `ConfigError` for layer indices out of range.
    """
    admits = _admission(names, config)
    if not config.target_modules:
        return []
    if isinstance(config.target_modules, str) and config.target_modules in PRESETS:
        chosen = _by_preset(names, config.target_modules, admits)
    elif isinstance(config.target_modules, str):
        chosen = _by_regex(names, config.target_modules, admits)
    else:
        chosen = _by_names(names, config.target_modules, admits)
    if not chosen and not config.modules_to_save:
        raise AdapterError(
            f"target_modules={_shown(config.target_modules)} selects no module of {names.model}",
            expected="at least one, after exclude_modules, layers and modules_to_save took theirs away",
            cure=f"its linear layers are called {', '.join(sorted(names.leaves()))}",
        )
    if config.dropout and (experts := [name for name in chosen if name in names.parts()]):
        raise ConfigError(
            f"dropout={config.dropout:g} on fused experts: {_listed(experts)}",
            expected="dropout 0 there, in PEFT too: nothing that reads the adapter applies it to them",
            cure="set dropout to 0, or leave the experts out: exclude_modules: [experts]",
        )
    return chosen


def called_within(name: str, wanted: str) -> bool:
    """Whether a module is called `wanted` (the whole name or its last components), or lies inside one that is."""
    return f".{name}.".find(f".{wanted}.") >= 0


def layer_index(name: str) -> int | None:
    """The decoder layer a module belongs to: the first number in its name (as in PEFT); None outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


Admits = Callable[[str], bool]


def _admission(names: ModuleNames, config: LoraConfig) -> Admits:
    """Whether a module name survives exclude_modules, modules_to_save and layers."""
    known, parts = list(names.modules), names.parts()
    excluded: set[str] = set()
    if isinstance(config.exclude_modules, str):
        excluded = {name for name in known if full_match(config.exclude_modules, name)}
    else:
        for wanted in config.exclude_modules:
            found = {name for name in known if _is_called(name, wanted)}
            _require(found, wanted, known, "exclude_modules")
            excluded |= found
    for wanted in config.modules_to_save:
        found = {name for name in known if called_within(name, wanted) and name not in parts}
        _require(found, wanted, known, "modules_to_save")
        excluded |= found
    excluded |= {*names.spread(excluded)}
    layers = None if config.layers is None else frozenset(config.layers)
    if layers is not None:
        indices = {index for name in known if (index := layer_index(name)) is not None}
        if missing := sorted(layers - indices):
            raise ConfigError(
                f"layers={list(config.layers or ())} names {missing}, which {names.model} does not have",
                expected=f"indices from 0 to {max(indices)}" if indices else "a model with numbered layers",
            )
    return lambda name: name not in excluded and (layers is None or layer_index(name) in layers)


def _by_preset(names: ModuleNames, preset: str, admits: Admits) -> list[str]:
    if preset in ("mlp", "all-linear"):
        _refuse_fused([name for name in names.fused if admits(name)], names, f"the preset '{preset}'")
    admitted = [name for name in names.linear_in_order() if admits(name)]
    if preset == "all-linear":
        return admitted
    return [name for name in admitted if role_of(name) in _ROLES[preset]]


def _by_regex(names: ModuleNames, pattern: str, admits: Admits) -> list[str]:
    matched = [name for name in names.modules if name and full_match(pattern, name) and admits(name)]
    if not matched:
        plain = re.fullmatch(r"[\w.]+", pattern) is not None
        raise AdapterError(
            f"target_modules={_shown(pattern)} is not a preset, and as a regex matches no module name",
            expected=f"a preset ({', '.join(PRESETS)}), a regex on whole module names, or a list of names",
            cure=f"write a list: [{pattern}]"
            if plain and pattern in names.leaves()
            else nearest(pattern, [*PRESETS, *names.leaves()]),
        )
    _refuse_fused([name for name in matched if name in names.fused], names, f"target_modules={_shown(pattern)}")
    meant = [name for name in names.spread(matched) if name in names.holders and admits(name)]
    return _adaptable(names, meant, pattern)


def _by_names(names: ModuleNames, wanted: Sequence[str], admits: Admits) -> list[str]:
    chosen: set[str] = set()
    for name in wanted:
        matched = [full for full in names.modules if full and _is_called(full, name)]
        experts = [full for full in names.fused if _is_called(full, name) or _names_expert(names, full, name)]
        _refuse_fused([full for full in experts if admits(full)], names, f"the target '{name}'")
        if not experts:
            _require(matched, name, names.adaptable_leaves(), "target_modules")
        meant = [full for full in names.spread(matched) if admits(full) and full not in names.fused]
        chosen.update(_adaptable(names, meant, name))
    return [full for full in names.modules if full in chosen]


def _adaptable(names: ModuleNames, matched: Sequence[str], wanted: str) -> list[str]:
    """`matched`, or a refusal that lists those that cannot be adapted."""
    refused = [f"{name} ({names.refused[name]})" for name in matched if name in names.refused]
    if refused:
        raise AdapterError(
            f"target_modules={_shown(wanted)} selects what cannot be adapted: {_listed(refused)}",
            expected="linear layers, GPT-2's Conv1D, fused experts, or token embeddings",
            cure=f"name linear layers ({', '.join(sorted(names.leaves()))}), or train it whole with modules_to_save",
        )
    return list(matched)


def _refuse_fused(matched: Sequence[str], names: ModuleNames, what: str) -> None:
    if matched:
        raise AdapterError(
            f"{what} means the fused experts of this model: {_listed([f'{n} ({names.fused[n][0]})' for n in matched])}",
            expected="gated experts that transformers computes through its experts interface, or layers that are "
            "modules of their own",
            cure="target attention (the preset 'attention' or 'qv'), or leave them out: exclude_modules: [experts]",
        )


def _names_expert(names: ModuleNames, full: str, wanted: str) -> bool:
    return any(_is_called(f"{full}.{key}", wanted) for key in names.fused[full][1])


def _is_called(full: str, wanted: str) -> bool:
    return full == wanted or full.endswith(f".{wanted}")


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
