"""The mathematics: adapters as banks of n ≥ 1 slots over frozen layers, for people who write their own loop.

    adapters = inject(model, LoraConfig(r=16, scaling=2.0))
    print(trainable_parameters(model))
    optimizer = torch.optim.AdamW(parameter for _, parameter in adapters.trainable())

Names are loaded when first used: `lorawise.lora.config` and planning need no torch.
"""

from typing import TYPE_CHECKING

from lorawise.base.lazy import loaded_when_used

if TYPE_CHECKING:
    from lorawise.lora.adapters import Adapters as Adapters
    from lorawise.lora.adapters import BankParameter as BankParameter
    from lorawise.lora.bank import BankLayer as BankLayer
    from lorawise.lora.config import LoraConfig as LoraConfig
    from lorawise.lora.count import ParameterCount as ParameterCount
    from lorawise.lora.count import trainable_parameters as trainable_parameters
    from lorawise.lora.injection import adapters_of as adapters_of
    from lorawise.lora.injection import attach as attach
    from lorawise.lora.injection import eject as eject
    from lorawise.lora.injection import inject as inject
    from lorawise.lora.injection import merge_and_eject as merge_and_eject
    from lorawise.lora.targets import target_modules as target_modules
    from lorawise.lora.weights import AdapterWeights as AdapterWeights

_HOMES = {
    "AdapterWeights": "weights",
    "Adapters": "adapters",
    "BankLayer": "bank",
    "BankParameter": "adapters",
    "LoraConfig": "config",
    "ParameterCount": "count",
    "adapters_of": "injection",
    "attach": "injection",
    "eject": "injection",
    "inject": "injection",
    "merge_and_eject": "injection",
    "target_modules": "targets",
    "trainable_parameters": "count",
}

__all__ = [*_HOMES]  # noqa: PLE0604

__getattr__, __dir__ = loaded_when_used("lorawise.lora", _HOMES)
