"""Adapters into a model, and out of it again.

`inject` starts fresh adapters to train, `attach` brings trained ones to answer with; `eject` leaves the base model
exactly as it was, the same module objects in the same places.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from lorawise.base.errors import AdapterError
from lorawise.lora.adapters import Adapters, check_names
from lorawise.lora.config import LoraConfig
from lorawise.lora.full_modules import full_parameters_of
from lorawise.lora.merge import forget_base, unmerge
from lorawise.lora.routing import BANK, BASE, Routing, single
from lorawise.lora.slots import hold, require_fit
from lorawise.lora.targets import bank_kind, places, target_modules
from lorawise.lora.weights import AdapterWeights, Task
from lorawise.lora.wrapping import Wrapper, base_parameters


def inject(
    model: nn.Module, config: LoraConfig | Sequence[LoraConfig], *, names: Sequence[str] | None = None
) -> Adapters:
    """Freeze `model` and put one fresh adapter a config into it, ready to train; a fresh adapter changes nothing.

    One config is one slot, called 'default'; several are a bank, called '0', '1', … unless `names` says otherwise.
    Rows of a bank's batch belong to the slots in equal shares, slot after slot.

    Raises `AdapterError` or `ConfigError` when a target matches nothing or cannot be adapted, when the model already
    carries adapters, and when several slots would share `modules_to_save` or biases.
    """
    configs = tuple(config) if isinstance(config, (list, tuple)) else (config,)
    if strange := [each for each in configs if not isinstance(each, LoraConfig)]:
        raise AdapterError(f"{type(strange[0]).__name__} given as a config", expected="a LoraConfig, or a list of them")
    names = tuple(names) if names is not None else (("default",) if len(configs) == 1 else _numbers(len(configs)))
    _check_call(model, configs, names)
    routing = Routing(task=task_of(model), route=BANK)
    adapters = {name: fresh_adapter(model, each) for name, each in zip(names, configs, strict=True)}
    return _installed(model, routing, adapters, trains=True)


def attach(model: nn.Module, adapters: Mapping[str, AdapterWeights]) -> Adapters:
    """Put trained adapters into `model` to answer with, the first of them in use; no gradient is asked for.

    Each keeps its own targets, ranks, scaling and whole modules. Raises `AdapterError` with the list of what does not
    fit the model, and has changed nothing then. To go on training one, `inject` its config and `load` it.
    """
    _refuse_injected(model)
    check_names(list(adapters))
    for name, weights in adapters.items():
        require_fit(model, name, weights)
    routing = Routing(task=task_of(model), route=single(0) if adapters else BASE)
    return _installed(model, routing, adapters, trains=False)


def eject(model: nn.Module) -> None:
    """The base model exactly as before injection: its own modules, parameters and `requires_grad`. Unmerges first."""
    routing = adapters_of(model).routing
    if routing.merged is not None:
        unmerge(model, routing)
    _leave(model, routing)


def merge_and_eject(model: nn.Module, weights: Mapping[str, float] | None = None) -> None:
    """The base model with adapters merged for good (as `Adapters.merge`), without wrappers or kept copies."""
    adapters = adapters_of(model)
    if adapters.merged is None or weights is not None:
        adapters.merge(weights)
    forget_base(model)
    _leave(model, adapters.routing)


def adapters_of(model: nn.Module) -> Adapters:
    """The adapters of an injected model; `AdapterError` when it has none."""
    routing = _routing_of(model)
    if routing is None:
        raise AdapterError(f"{type(model).__name__} carries no adapters", cure="inject(model, LoraConfig(...)) first")
    return Adapters(model, routing)


def fresh_adapter(model: nn.Module, config: LoraConfig) -> AdapterWeights:
    """What `config` starts from on this model: A and B drawn from its seed, copies of what it trains in full."""
    targets = target_modules(model, config)
    modules = places(model)
    layers = {}
    for name in targets:
        kind = bank_kind(modules[name])
        assert kind is not None
        layers[name] = kind.fresh(modules[name], name, config)
    full = {name: value.detach() for name, value in full_parameters_of(model, config, targets).items()}
    return AdapterWeights(config=config, layers=layers, full=full, task=task_of(model))


def task_of(model: nn.Module) -> Task:
    """PEFT's name for what the model's head does."""
    return "SEQ_CLS" if type(model).__name__.endswith("ForSequenceClassification") else "CAUSAL_LM"


def _installed(model: nn.Module, routing: Routing, adapters: Mapping[str, AdapterWeights], *, trains: bool) -> Adapters:
    routing.thawed = frozenset(name for name, parameter in base_parameters(model) if parameter.requires_grad)
    for _, parameter in base_parameters(model):
        parameter.requires_grad_(False)
    hold(model, routing, adapters)
    handle = Adapters(model, routing)
    for _, parameter in handle.trainable():
        parameter.requires_grad_(trains)
    return handle


def _leave(model: nn.Module, routing: Routing) -> None:
    hold(model, routing, {})
    for name, parameter in base_parameters(model):
        parameter.requires_grad_(name in routing.thawed)


def _check_call(model: nn.Module, configs: Sequence[LoraConfig], names: Sequence[str]) -> None:
    _refuse_injected(model)
    if not configs:
        raise AdapterError("no config was given", expected="one LoraConfig, or several")
    if len(names) != len(configs):
        raise AdapterError(f"{len(names)} names for {len(configs)} configs", expected="one name a config")
    check_names(names)
    whole = [name for name, each in zip(names, configs, strict=True) if each.modules_to_save or each.bias != "none"]
    if whole and len(configs) > 1:
        raise AdapterError(
            f"{', '.join(whole)} trains whole modules or biases, which {len(configs)} slots cannot share",
            cure="train it alone (one config), or drop modules_to_save and bias",
        )


def _refuse_injected(model: nn.Module) -> None:
    if _routing_of(model) is not None:
        raise AdapterError(
            f"{type(model).__name__} already carries adapters",
            cure="eject(model) first, or add beside them: adapters_of(model).add(name, weights)",
        )


def _routing_of(model: nn.Module) -> Routing | None:
    return next((module.routing for module in model.modules() if isinstance(module, Wrapper)), None)


def _numbers(n: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(n))
