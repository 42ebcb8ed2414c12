"""LoRA without guesswork.

Names are loaded when first used, so that importing `lorawise` costs milliseconds and never loads torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lorawise import lora as lora
    from lorawise.checking.checker import check as check
    from lorawise.lora.config import LoraConfig as LoraConfig
    from lorawise.merging.merge import merge as merge
    from lorawise.merging.verify import verify as verify
    from lorawise.models.load import load as load
    from lorawise.planning.plan import plan as plan
    from lorawise.training.run import train as train
    from lorawise.tuning.study import tune as tune

_HOMES = {
    "LoraConfig": "lorawise.lora.config",
    "check": "lorawise.checking.checker",
    "load": "lorawise.models.load",
    "merge": "lorawise.merging.merge",
    "plan": "lorawise.planning.plan",
    "train": "lorawise.training.run",
    "tune": "lorawise.tuning.study",
    "verify": "lorawise.merging.verify",
}

__all__ = ["LoraConfig", "__version__", "check", "load", "lora", "merge", "plan", "train", "tune", "verify"]


def __getattr__(name: str) -> object:
    if name == "lora":
        return import_module("lorawise.lora")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lorawise' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
