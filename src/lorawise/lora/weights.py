"""One adapter's numbers, apart from any model: what is saved, loaded, combined and compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from lorawise.lora.config import LoraConfig

Task = Literal["CAUSAL_LM", "SEQ_CLS"]
LayerKind = Literal["linear", "conv1d", "embedding"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterWeights:
    """Unpadded tensors of one adapter, on the CPU.

    layers  module name → (A (r, in), B (out, r)); r is the module's own rank. An embedding has in = its rows
            (A (r, vocabulary)) and out = its width
    kinds   module name → what is frozen there; a name not listed is `linear`. Disk formats need it, answers do not
    full    parameter name → tensor: `modules_to_save` and trained biases, by their names in the base model
    """

    config: LoraConfig
    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    full: Mapping[str, torch.Tensor] = field(default_factory=dict)
    kinds: Mapping[str, LayerKind] = field(default_factory=dict)
    task: Task = "CAUSAL_LM"
