"""LoRA without guesswork.

Names are loaded when first used, so that importing `lorawise` costs milliseconds and never loads torch.
"""

from typing import TYPE_CHECKING

from lorawise.base.lazy import loaded_when_used

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lorawise import lora as lora
    from lorawise.checking.checker import check as check
    from lorawise.lora.config import LoraConfig as LoraConfig
    from lorawise.merging.merge import merge as merge
    from lorawise.merging.verify import verify as verify
    from lorawise.models.load import load as load
    from lorawise.planning.planner import plan as plan
    from lorawise.training.run import train as train
    from lorawise.tuning.study import tune as tune

_HOMES: dict[str, str | None] = {
    "LoraConfig": "lora.config",
    "check": "checking.checker",
    "load": "models.load",
    "lora": None,
    "merge": "merging.merge",
    "plan": "planning.planner",
    "train": "training.run",
    "tune": "tuning.study",
    "verify": "merging.verify",
}

__all__ = ["LoraConfig", "__version__", "check", "load", "lora", "merge", "plan", "train", "tune", "verify"]

__getattr__, __dir__ = loaded_when_used("lorawise", _HOMES)
