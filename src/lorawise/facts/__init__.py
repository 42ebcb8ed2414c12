"""What is true of a model and of a device, without weights, torch or transformers.

facts = read_model("meta-llama/Llama-3.1-8B")        shapes of every matrix, named as in memory
trainable(facts, LoraConfig(r=16))                   parameters an adapter would train
find_device("rtx-4090")                              memory, bandwidth, formats, throughput
"""

from typing import TYPE_CHECKING

from lorawise.base.lazy import loaded_when_used

if TYPE_CHECKING:
    from lorawise.facts.device import DeviceFacts as DeviceFacts
    from lorawise.facts.device import find_device as find_device
    from lorawise.facts.model import Matrix as Matrix
    from lorawise.facts.model import ModelFacts as ModelFacts
    from lorawise.facts.read import read_model as read_model
    from lorawise.facts.targets import selected as selected
    from lorawise.facts.targets import trainable as trainable

_HOMES = {
    "DeviceFacts": "device",
    "Matrix": "model",
    "ModelFacts": "model",
    "find_device": "device",
    "read_model": "read",
    "selected": "targets",
    "trainable": "targets",
}

__all__ = [*_HOMES]  # noqa: PLE0604

__getattr__, __dir__ = loaded_when_used("lorawise.facts", _HOMES)
