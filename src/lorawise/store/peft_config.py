"""`adapter_config.json`: PEFT's fields for a LoRA setting, both ways.

What the fields mean in PEFT 0.21 (tests/parity holds us to it):
    r, lora_alpha of a module   from the first entry of rank_pattern, alpha_pattern whose key, as the regex
                                `(.*\\.)?(key)`, matches the whole module name; else the global ones
    scaling of a module         lora_alpha / r, with use_rslora lora_alpha / √r
    target_modules              a list: the whole name, or its last components; a string: a regex on the whole name
    target_parameters           names of bare parameters (here of fused experts), whole or their last components
Read, it is input from strangers: every field's type is checked, and what we cannot represent is refused by name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lorawise.base.errors import AdapterError, ConfigError
from lorawise.base.patterns import full_match
from lorawise.lora.config import EXPERT_PARAMETERS, PRESETS, LoraConfig, pattern_matches
from lorawise.lora.weights import StoredAdapter, Task

WRITTEN_FOR = "0.21.2"  # the PEFT release whose fields we write
MAX_NUMBER = 1e12  # beyond any rank or alpha anybody meant; NaN and infinity are not below it

_MERGE = "load it in PEFT, call merge_and_unload() and use the merged model"
_CONVERT = "save it again in PEFT with path_initial_model_for_weight_conversion, which makes it plain LoRA"

_UNSUPPORTED: dict[str, tuple[str, str]] = {
    "use_dora": ("DoRA (a trained magnitude per output)", _MERGE),
    "lora_bias": ("a trained bias on lora_B", _MERGE),
    "alora_invocation_tokens": ("aLoRA (active only after its invocation tokens)", "serve it with PEFT or vLLM"),
    "trainable_token_indices": ("single trained rows of the embedding", _MERGE),
    "layer_replication": ("replicated layers", "use the replicated model PEFT builds"),
    "megatron_config": ("Megatron's parallel layers", "convert it to transformers' layers with Megatron's tools"),
    "use_qalora": ("QA-LoRA (pooled inputs)", _MERGE),
    "use_bdlora": ("BD-LoRA (block-diagonal factors)", _MERGE),
    "arrow_config": ("Arrow routing between adapters", "load the routed adapters one by one"),
    "monteclora_config": ("MonteCLoRA (sampled factors)", _MERGE),
    "kasa_config": ("KaSA (a truncated base and trained singular values)", _MERGE),
    "ensure_weight_tying": ("one adapter shared by tied layers", _MERGE),
}
_CHANGES_BASE = {
    "pissa": _CONVERT,
    "olora": _CONVERT,
    "corda": _CONVERT,
    "lora_ga": _CONVERT,
    "loftq": "merge it in PEFT onto its LoftQ base",
}
_KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_IRRELEVANT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "runtime_config"),
        *("fan_in_fan_out", "megatron_core", "qalora_group_size", "velora_config"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    }
)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _is_indices(value: object) -> bool:
    return _is_int(value) or (isinstance(value, list) and all(_is_int(index) for index in value))


def _is_pattern(value: object) -> bool:
    return isinstance(value, dict) and all(_is_number(entry) for entry in value.values())


_FIELDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "peft_type": ('"LORA"', lambda v: isinstance(v, str)),
    "task_type": ('"CAUSAL_LM" or "SEQ_CLS"', lambda v: v is None or isinstance(v, str)),
    "r": ("a whole number", _is_int),
    "lora_alpha": ("a number", _is_number),
    "lora_dropout": ("a number", lambda v: v is None or _is_number(v)),
    "use_rslora": ("true or false", lambda v: v is None or isinstance(v, bool)),
    "bias": ("none, all or lora_only", lambda v: v is None or isinstance(v, str)),
    "target_modules": ("names or one regex", lambda v: v is None or isinstance(v, str) or _is_names(v)),
    "target_parameters": ("names", lambda v: v is None or _is_names(v)),
    "exclude_modules": ("names or one regex", lambda v: v is None or isinstance(v, str) or _is_names(v)),
    "modules_to_save": ("names", lambda v: v is None or _is_names(v)),
    "layers_to_transform": ("layer indices", lambda v: v is None or _is_indices(v)),
    "layers_pattern": ("names", lambda v: v is None or isinstance(v, str) or _is_names(v)),
    "rank_pattern": ("an object of numbers", lambda v: v is None or _is_pattern(v)),
    "alpha_pattern": ("an object of numbers", lambda v: v is None or _is_pattern(v)),
    "init_lora_weights": ("true, false or a name", lambda v: v is None or isinstance(v, (bool, str))),
}


def to_peft(weights: StoredAdapter, *, base: str, modules: Iterable[str] = ()) -> dict[str, Any]:
    """The fields that make PEFT adapt exactly the modules of `weights`, each with its exact scaling.

    modules  names of every module of the base model; with them the targets are written as the shortest suffixes that
             no other module shares (`q_proj`), without them as full names
    """
    config = weights.config
    names = list(weights.layers)
    experts = [name for name in names if weights.kinds.get(name) == "experts"]
    ordered = config.replace(
        rank_pattern=dict(sorted(config.rank_pattern.items())), alpha_pattern=dict(sorted(config.alpha_pattern.items()))
    )
    return {
        "peft_type": "LORA",
        "peft_version": WRITTEN_FOR,
        "task_type": weights.task,
        "base_model_name_or_path": base,
        "revision": None,
        "auto_mapping": None,
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": _plain(config.alpha),
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": _targets([name for name in names if name not in experts], modules),
        "target_parameters": _targets(experts, _parameters(modules)) or None,
        "exclude_modules": None,
        "rank_pattern": _experts_own(config.expert_r, LoraConfig.rank_of, experts, config)
        | _in_any_order(config.rank_pattern, LoraConfig.rank_of, names, config, ordered),
        "alpha_pattern": _experts_own(config.expert_r, LoraConfig.alpha_of, experts, config)
        | _in_any_order(config.alpha_pattern, LoraConfig.alpha_of, names, config, ordered),
        "modules_to_save": _saved_modules(weights) or None,
        "bias": config.bias,
        "fan_in_fan_out": "conv1d" in weights.kinds.values(),
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "layer_replication": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "loftq_config": {},
        "use_dora": False,
        "lora_bias": False,
    }


def from_peft(fields: Mapping[str, Any], modules: Sequence[str]) -> LoraConfig:
    """The setting PEFT's fields mean. `modules`: the adapted ones, as the tensors name them.

    Targets that only make sense beside PEFT (a `layers_pattern`, no targets at all) become those very names.
    `AdapterError` with every problem at once.
    """
    try:
        config = LoraConfig(
            r=fields["r"],
            alpha=fields["lora_alpha"],
            rslora=fields.get("use_rslora") or False,
            dropout=fields.get("lora_dropout") or 0.0,
            rank_pattern=fields.get("rank_pattern") or {},
            alpha_pattern=fields.get("alpha_pattern") or {},
            modules_to_save=tuple(fields.get("modules_to_save") or ()),
            bias=fields.get("bias") or "none",
            init="gaussian" if fields.get("init_lora_weights") == "gaussian" else "kaiming",
            **_selection(fields, modules),
        )
        unnamed = _unnamed(config, modules)
        for name in modules:
            config.scaling_of(name)  # a pattern that is no regex, or too slow, is met here and not in training
    except ConfigError as problem:
        raise AdapterError(
            f"adapter_config.json: {problem.found}", expected=problem.expected, cure=problem.cure or _RESTORE
        ) from None
    if unnamed:
        raise AdapterError(
            f"tensors for {listing(unnamed)}, which target_modules in adapter_config.json does not name",
            expected="tensors of the target modules only (PEFT would drop the others without a word)",
            cure="add these modules to target_modules",
        )
    return config


_RESTORE = "restore adapter_config.json from where the adapter was trained"


def check_fields(fields: Mapping[str, Any]) -> None:
    """Refuse wrong types and whatever we cannot represent, each by its name, all at once."""
    if fields.get("peft_type") != "LORA":
        raise AdapterError(
            f"peft_type is {fields.get('peft_type')!r} in adapter_config.json",
            expected='"LORA"',
            cure=_MERGE if isinstance(fields.get("peft_type"), str) else _RESTORE,
        )
    problems = [f"{name} is missing" for name in ("r", "lora_alpha") if name not in fields]
    for name, value in fields.items():
        if name in _FIELDS:
            expected, accepts = _FIELDS[name]
            if not accepts(value):
                problems.append(f"{name} is {_short(value)}, not {expected}")
        elif name in _UNSUPPORTED and value:
            noun, cure = _UNSUPPORTED[name]
            problems.append(f"{name}: {noun} is not supported; {cure}")
        elif name not in _IRRELEVANT and name not in _UNSUPPORTED and value:
            problems.append(f"{name}={_short(value)} is an option lorawise does not know; {_MERGE}")
    init = fields.get("init_lora_weights")
    known = str(init).partition("_niter_")[0]
    if known in _CHANGES_BASE:
        problems.append(f"init_lora_weights is {init!r}, which changed the base weights; {_CHANGES_BASE[known]}")
    elif init not in _KEEPS_BASE and isinstance(init, str):
        problems.append(f"init_lora_weights is {_short(init)}, which lorawise does not know; {_MERGE}")
    if isinstance(fields.get("task_type"), str) and fields["task_type"] not in ("CAUSAL_LM", "SEQ_CLS"):
        problems.append(f"task_type is {_short(fields['task_type'])}, not CAUSAL_LM or SEQ_CLS; use it in PEFT")
    if problems:
        raise AdapterError(
            "adapter_config.json: " + "\n  ".join(problems),
            expected="a plain LoRA adapter as PEFT writes it",
            cure="see the end of each line" if any(";" in line for line in problems) else _RESTORE,
        )


def task_of(fields: Mapping[str, Any]) -> Task:
    return "SEQ_CLS" if fields.get("task_type") == "SEQ_CLS" else "CAUSAL_LM"


def listing(names: Sequence[str], limit: int = 8) -> str:
    """`a, b, c and 3 more`."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _selection(fields: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    targets, indices = fields.get("target_modules"), fields.get("layers_to_transform")
    if fields.get("target_parameters"):
        return {"target_modules": tuple(modules)}
    if isinstance(targets, str) and targets.lower() == "all-linear":
        targets = "all-linear"
    elif not targets or fields.get("layers_pattern"):
        return {"target_modules": tuple(modules)}
    elif targets in PRESETS:
        targets = f"(?:{targets})"  # to PEFT a regex
    excludes = fields.get("exclude_modules") or ()
    layers = None if indices is None or indices == [] else [indices] if isinstance(indices, int) else indices
    return {
        "target_modules": targets if isinstance(targets, str) else tuple(targets),
        "exclude_modules": excludes if isinstance(excludes, str) else tuple(excludes),
        "layers": layers if layers is None else tuple(layers),
    }


def _unnamed(config: LoraConfig, modules: Sequence[str]) -> list[str]:
    """The modules that the setting's targets do not name. Experts come by the ten thousand, each named in full: a
    module's endings are looked up among the names, not every name compared."""
    if isinstance(config.target_modules, str):
        regex = config.target_modules
        return [] if regex in PRESETS else [module for module in modules if not full_match(regex, module)]
    named = set(config.target_modules)
    return [module for module in modules if named.isdisjoint(_suffixes(module))]


def _targets(names: Sequence[str], modules: Iterable[str]) -> list[str]:
    """The shortest suffixes of `names` that no other module of the model shares; full names if the model is unknown."""
    others = set(modules) - set(names)
    if not others:
        return list(names)
    taken = {suffix for other in others for suffix in _suffixes(other)}
    return list(dict.fromkeys(next((s for s in _suffixes(name) if s not in taken), name) for name in names))


def _parameters(modules: Iterable[str]) -> list[str]:
    """What every module's parameters would be called if it were one of fused experts."""
    return [f"{module}.{key}" for module in modules if module for key in EXPERT_PARAMETERS]


def _suffixes(name: str) -> list[str]:
    """q_proj, self_attn.q_proj, 0.self_attn.q_proj, …"""
    parts = name.split(".")
    return [".".join(parts[-k:]) for k in range(1, len(parts) + 1)]


def _experts_own(
    rank: int | None, value_of: Callable[[LoraConfig, str], float], experts: Sequence[str], config: LoraConfig
) -> dict[str, Any]:
    """What fused experts have of their own as a pattern: the number that all have, else one for each parameter."""
    if rank is None or not experts:
        return {}
    values = {name: _plain(value_of(config, name)) for name in experts}
    if len(set(values.values())) == 1:
        return {r"experts\.\w+": next(iter(values.values()))}
    return {name.replace(".", r"\."): value for name, value in values.items()}


def _in_any_order(
    pattern: Mapping[str, float],
    value_of: Callable[[LoraConfig, str], float],
    names: Sequence[str],
    config: LoraConfig,
    ordered: LoraConfig,
) -> dict[str, Any]:
    """`pattern` without the keys that match nothing (PEFT warns of them), or, where the order of its keys decides, its
    values spelt out by module: PEFT sorts the keys when it saves."""
    matched = {key: [name for name in names if pattern_matches(key, name)] for key in pattern}
    if all(value_of(config, name) == value_of(ordered, name) for name in names):
        return {key: _plain(value) for key, value in pattern.items() if matched[key]}
    chosen = set().union(*matched.values())
    return {name.replace(".", r"\."): _plain(value_of(config, name)) for name in names if name in chosen}


def _saved_modules(weights: StoredAdapter) -> list[str]:
    """Full names of the modules trained in full: PEFT matches by ending, a full name matches nothing else."""
    return list(dict.fromkeys(filter(None, (saved_module(weights.config, name) for name in weights.full))))


def saved_module(config: LoraConfig, parameter: str) -> str | None:
    """The module of `modules_to_save` that holds a parameter, or None: `score.weight` → `score`."""
    for module in reversed(_prefixes(parameter)):
        if any(module == name or module.endswith(f".{name}") for name in config.modules_to_save):
            return module
    return None


def _prefixes(parameter: str) -> list[str]:
    """Of a.b.weight: a.b, a."""
    parts = parameter.split(".")
    return [".".join(parts[:k]) for k in range(len(parts) - 1, 0, -1)]


def _plain(value: float) -> float:
    """32.0 → 32, for readers that insist on whole numbers."""
    return int(value) if float(value).is_integer() else value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
