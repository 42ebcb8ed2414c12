"""A model as its shapes: every matrix and every smaller parameter, named as transformers names them in memory.

    kind        module in memory                  weight          adapter of rank r
    linear      nn.Linear                         (out, in)       A (r, in), B (out, r)
    conv1d      GPT-2's Conv1D                    (in, out)       the same
    embedding   nn.Embedding, `in` = its rows     (in, out)       the same
    experts     one 3-D parameter for all of a    (experts, …)    A (experts, r, in), B (experts, out, r)
                layer's experts, not a module

Everything else (norms, routers' and attention sinks' parameters) is a `Parameter`. Counts follow the model's own: a
head tied to the embedding is a module, and is counted once, with the embedding.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

from lorawise.base.errors import ModelError
from lorawise.base.findings import Finding
from lorawise.base.roles import Role, role_of
from lorawise.lora.selection import layer_index

CLASSIFIER = "score"  # transformers' name for the head of a sequence classifier

Kind = Literal["linear", "conv1d", "embedding", "experts"]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One matrix of the model, or one layer's fused experts (`experts` of them, in × out each).

    stored   dtype on disk ("bfloat16"); None when the shape comes from a config alone
    """

    name: str
    in_features: int
    out_features: int
    kind: Kind = "linear"
    bias: bool = False
    experts: int = 1
    stored: str | None = None

    def __post_init__(self) -> None:
        if min(self.in_features, self.out_features, self.experts) < 1:
            raise ValueError(f"{self.name}: {self.experts} × {self.in_features} × {self.out_features}")

    @property
    def role(self) -> Role | None:
        return role_of(self.name)

    @property
    def layer(self) -> int | None:
        """The decoder layer it belongs to; None outside the layers."""
        return layer_index(self.name)

    @property
    def weights(self) -> int:
        """Elements of the weight alone."""
        return self.experts * self.in_features * self.out_features

    @property
    def parameters(self) -> int:
        """Elements of weight and bias."""
        return self.weights + (self.experts * self.out_features if self.bias else 0)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter that is no matrix of a module: a norm's weight, a router, attention sinks. Full name, shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What planning needs to know of a base model.

    tied      the output head is the embedding's weight
    dtype     of the weights: as stored, or as the config says
    exact     the shapes were seen in a file's header; False: they follow from the config and the family's rule
    config    what config.json says (its text part)
    notes     what a reader of the plan should know about where this came from
    """

    source: str
    model_type: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int | None
    tied: bool
    dtype: str
    matrices: tuple[Matrix, ...]
    others: tuple[Parameter, ...]
    sliding_window: int | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    exact: bool = False
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    notes: tuple[Finding, ...] = ()

    @cached_property
    def parameters(self) -> int:
        """All parameters, a tied head counted once: the model's own `num_parameters()`."""
        head = sum(matrix.weights for matrix in self.heads) if self.tied else 0
        return sum(matrix.parameters for matrix in self.matrices) - head + self.other_parameters

    @property
    def other_parameters(self) -> int:
        """Parameters outside the matrices and their biases."""
        return sum(parameter.size for parameter in self.others)

    @property
    def linear(self) -> tuple[Matrix, ...]:
        """Linear layers that are modules of their own (Conv1D too), the head among them."""
        return tuple(matrix for matrix in self.matrices if matrix.kind in ("linear", "conv1d"))

    @property
    def decoder(self) -> tuple[Matrix, ...]:
        """Matrices inside the decoder's layers, fused experts among them."""
        return tuple(matrix for matrix in self.matrices if matrix.layer is not None)

    @property
    def experts(self) -> tuple[Matrix, ...]:
        return tuple(matrix for matrix in self.matrices if matrix.kind == "experts")

    @property
    def embeddings(self) -> tuple[Matrix, ...]:
        return tuple(matrix for matrix in self.matrices if matrix.kind == "embedding")

    @property
    def heads(self) -> tuple[Matrix, ...]:
        """The output head (none in a model without one)."""
        return tuple(matrix for matrix in self.linear if matrix.role == "head" and matrix.layer is None)

    def as_classifier(self, labels: int) -> Self:
        """The decoder under a classifier's head: `score` (hidden → labels, no bias) in place of the output head."""
        if labels < 2:
            raise ModelError(f"{labels} labels", expected="two or more")
        score = Matrix(name=CLASSIFIER, in_features=self.hidden_size, out_features=labels)
        kept = tuple(matrix for matrix in self.matrices if matrix not in self.heads)
        name = self.architecture.replace("LMHeadModel", "ForCausalLM")
        return self.replace(
            matrices=(*kept, score),
            tied=False,
            architecture=name.replace("ForCausalLM", "ForSequenceClassification"),
        )

    @property
    def is_classifier(self) -> bool:
        return any(matrix.name == CLASSIFIER for matrix in self.heads)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def matrix(self, name: str) -> Matrix:
        """By its full name; KeyError when there is none."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Matrix]:
        return {matrix.name: matrix for matrix in self.matrices}
