"""The base model as files: which tensor lies in which shard, and by what name an adapter's module is stored.

Names on disk and in memory differ by a first component for some models (`h.0.attn.c_attn.weight` is
`transformer.h.0.attn.c_attn` in memory): a module is looked up by its own name, then without and with such a component.
A head tied to the embedding is not stored at all.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorawise.base.errors import ModelError
from lorawise.base.roles import role_of
from lorawise.base.safetensors import SafetensorsFile, TensorHeader
from lorawise.facts.folder import weight_files
from lorawise.models.files import ModelFiles, stored_name

FLOATS = ("F64", "F32", "F16", "BF16")
INDEX = "model.safetensors.index.json"
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # model types whose projections are (in, out)
_EXPERT = re.compile(r"\.experts\.\d+\.")
_HEADS = {"gpt_neox": "embed_out"}  # elsewhere lm_head


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model's folder, its headers read; nothing of its weights is in memory."""

    files: ModelFiles
    shards: tuple[SafetensorsFile, ...]

    @classmethod
    def open(cls, files: ModelFiles) -> "Base":
        """`ModelError` for weights that are quantised or of types that hold no plain numbers."""
        quantised = files.config.get("quantization_config")
        if isinstance(quantised, dict):
            raise ModelError(
                f"{files.source} is quantised with {quantised.get('quant_method', 'an unknown method')}",
                expected="weights in bfloat16, float16 or float32",
                cure="merge into the model it was quantised from; --base nf4 then gives what an NF4 run saw",
            )
        return cls(files=files, shards=tuple(SafetensorsFile.open(path) for path in weight_files(files.folder)))

    @cached_property
    def tensors(self) -> dict[str, TensorHeader]:
        return {name: header for shard in self.shards for name, header in shard.tensors.items()}

    @property
    def model_type(self) -> str:
        return str(self.files.config["model_type"])

    def home(self, name: str) -> SafetensorsFile:
        """The shard that holds a tensor."""
        return next(shard for shard in self.shards if name in shard.tensors)

    def stored_name(self, parameter: str) -> str | None:
        """The name on disk of a parameter by its name in memory, or None."""
        return stored_name(parameter, self.tensors)

    @property
    def embedding(self) -> str | None:
        """The name on disk of the input embedding's weight."""
        return next((name for name in self.tensors if _has_role(name, "embedding")), None)

    @property
    def head(self) -> str | None:
        """The name on disk of the head's weight; None where it is tied to the embedding and not stored."""
        return next((name for name in self.tensors if _has_role(name, "head") and not name.startswith("score")), None)

    @property
    def head_name(self) -> str:
        """What the head's weight is called, stored or not."""
        return self.head or f"{_HEADS.get(self.model_type, 'lm_head')}.weight"

    @property
    def tied(self) -> bool:
        """Whether head and embedding are one weight."""
        told = self.files.config.get("tie_word_embeddings")
        return self.head is None or told is True

    def index(self) -> dict[str, Any] | None:
        """The index of a sharded model as it is on disk."""
        path = self.files.folder / INDEX
        if len(self.shards) == 1 and self.shards[0].path.name == "model.safetensors":
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def _has_role(tensor: str, role: str) -> bool:
    module, _, leaf = tensor.rpartition(".")
    return leaf == "weight" and role_of(module) == role


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is the weight of a layer that NF4 loading quantises: a matrix, neither embedding nor head, nor a
    router, nor one of experts that are fused in memory (bitsandbytes leaves both as they are)."""
    module, _, leaf = name.rpartition(".")
    if leaf != "weight" or len(shape) != 2 or _EXPERT.search(name):
        return False
    role = role_of(module)
    return role not in ("embedding", "position", "head") and (role != "router" or module.endswith("shared_expert_gate"))


def floats(tensors: Mapping[str, TensorHeader]) -> dict[str, TensorHeader]:
    return {name: header for name, header in tensors.items() if header.dtype in FLOATS}
