"""One adapter's numbers, apart from any model: what is saved, loaded, combined and compared.

One form, two kinds of tensor: torch's while something trains or answers, and a file's own (`StoredTensor`, numpy, read
when asked) for work on files alone. `lorawise.store.torch_form` turns one into the other. No torch is imported here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from lorawise.base.tensors import StoredTensor
from lorawise.lora.config import LoraConfig

if TYPE_CHECKING:
    import torch  # noqa: F401 - for the text below

Task = Literal["CAUSAL_LM", "SEQ_CLS"]
LayerKind = Literal["linear", "conv1d", "embedding", "experts"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights(Generic[T]):
    """Unpadded tensors of one adapter.

    layers  module name → (A (r, in), B (out, r)); r is the module's own rank. An embedding has in = its rows
            (A (r, vocabulary)) and out = its width. Fused experts are named by their parameter,
            `….experts.gate_up_proj` → (A (experts, r, in), B (experts, out, r))
    kinds   module name → what is frozen there; a name not listed is `linear`. Disk formats need it, answers do not
    full    parameter name → tensor: `modules_to_save` and trained biases, by their names in the base model
    """

    config: LoraConfig
    layers: Mapping[str, tuple[T, T]]
    full: Mapping[str, T] = field(default_factory=dict)
    kinds: Mapping[str, LayerKind] = field(default_factory=dict)
    task: Task = "CAUSAL_LM"


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterWeights(Weights["torch.Tensor"]):
    """In torch, on the CPU."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredAdapter(Weights[StoredTensor]):
    """As files hold it: numpy, each tensor read or computed when its bits are asked for."""
