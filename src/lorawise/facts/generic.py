"""A family without a rule: its shapes as its files hold them, under the names they have there.

A matrix is what has two dimensions and is called `.weight`; embeddings and the head are told by name; the experts of
a layer, kept apart on disk, are put together as transformers does (gate and up in one). It is said in a note that this
is reading, not knowledge.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lorawise.base.errors import ModelError
from lorawise.base.findings import Finding
from lorawise.base.roles import role_of
from lorawise.facts.blocks import Part, linear
from lorawise.facts.config import Config, Dimensions, read_dimensions
from lorawise.facts.disk import BUFFERS, DTYPES, Stored
from lorawise.facts.families import Family
from lorawise.facts.kinds import architectures
from lorawise.facts.layout import Layout
from lorawise.facts.model import Matrix, Parameter

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")
_GATES = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "w1": "gate_up_proj", "w3": "gate_up_proj"}
_DOWN = {"w2": "down_proj"}


def layout_as_stored(
    values: Mapping[str, Any], stored: Mapping[str, Stored], where: str
) -> tuple[Layout, tuple[Finding, ...]]:
    """`ModelError` when the config lacks the sizes that planning needs, or the files hold no matrix."""
    config = Config(where=where, values=values, defaults={})
    dimensions = read_dimensions(
        config,
        intermediate="intermediate_size",
        widening=4,
        kv_heads=config.number("num_key_value_heads", "num_kv_heads"),
    )
    parts = list(_parts(stored))
    matrices = [part for part in parts if isinstance(part, Matrix)]
    if not matrices:
        raise ModelError(f"{where}: its safetensors hold no matrix", expected="the weights of a language model")
    tied = not any(m.role == "head" and m.layer is None for m in matrices)
    if tied:
        matrices.append(linear("lm_head", dimensions.hidden, dimensions.vocab))
    kind = str(values["model_type"])
    layout = Layout(
        family=Family(model_type=kind, architecture=_class_of(values), rule=_no_rule),
        config=config,
        dimensions=dimensions,
        matrices=tuple(matrices),
        others=tuple(part for part in parts if isinstance(part, Parameter)),
        tied=tied,
    )
    note = Finding(
        code="facts-unknown-family",
        level="warning",
        path=where,
        message=f"model type '{kind}' has no rule here: names and shapes are read from its files as they stand",
        cure="compare with `lorawise train --dry-run`, which opens the model itself",
    )
    return layout, (note,)


def _parts(stored: Mapping[str, Stored]) -> Iterator[Part]:
    experts: dict[str, list[tuple[int, Stored]]] = {}
    for name in sorted(stored, key=_natural):
        tensor = stored[name]
        module, _, key = name.rpartition(".")
        if name.endswith(BUFFERS) or (key == "bias" and f"{module}.weight" in stored and _is_matrix(stored, module)):
            continue
        if found := _EXPERT.fullmatch(name):
            leaf = _GATES.get(found[3]) or _DOWN.get(found[3], found[3])
            experts.setdefault(f"{found[1]}.{leaf}", []).append((int(found[2]), tensor))
        elif key == "weight" and _is_matrix(stored, module):
            yield _matrix(module, tensor, bias=f"{module}.bias" in stored)
        elif len(tensor.shape) == 3 and ".experts." in name and not key.endswith("bias"):
            count, out, inner = tensor.shape
            yield Matrix(name=name, in_features=inner, out_features=out, kind="experts", experts=count)
        else:
            yield Parameter(name=name, shape=tensor.shape)
    for name, members in experts.items():
        yield _fused(name, members)


def _is_matrix(stored: Mapping[str, Stored], module: str) -> bool:
    return len(stored[f"{module}.weight"].shape) == 2


def _matrix(module: str, tensor: Stored, *, bias: bool) -> Matrix:
    rows, columns = tensor.shape
    dtype = DTYPES.get(tensor.dtype, tensor.dtype)
    if role_of(module) in ("embedding", "position"):
        return Matrix(name=module, in_features=rows, out_features=columns, kind="embedding", stored=dtype)
    return Matrix(name=module, in_features=columns, out_features=rows, bias=bias, stored=dtype)


def _fused(name: str, members: list[tuple[int, Stored]]) -> Matrix:
    """Every expert's tensors of one kind as one parameter: their outputs side by side."""
    count = len({expert for expert, _ in members})
    _, columns = members[0][1].shape
    rows = sum(tensor.shape[0] for _, tensor in members) // count
    dtype = DTYPES.get(members[0][1].dtype, members[0][1].dtype)
    return Matrix(name=name, in_features=columns, out_features=rows, kind="experts", experts=count, stored=dtype)


def _natural(name: str) -> list[tuple[int, str]]:
    """layers.10 after layers.2."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _class_of(values: Mapping[str, Any]) -> str:
    return next(iter(architectures(values)), str(values["model_type"]))


def _no_rule(d: Dimensions, c: Config) -> Iterator[Part]:
    yield from ()
