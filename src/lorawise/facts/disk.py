"""Names on disk and modules in memory: which stored tensors make up each parameter, and whether all of them are there.

    in memory                                  on disk
    transformer.h.0.attn.c_attn                also without the model's prefix: h.0.attn.c_attn
    model.layers.0.mlp.experts.gate_up_proj    mixtral: ….block_sparse_moe.experts.E.w1 and .w3, for every expert E
                                               granitemoe: ….input_linear.weight, for all experts
                                               others: ….mlp.experts.E.gate_proj and .up_proj
    lm_head of gpt_neox                        embed_out
    a tied lm_head                             nothing

transformers converts so when it loads (its conversion tables import torch); tests hold these against what it saves.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lorawise.base.errors import ModelError
from lorawise.base.findings import Finding
from lorawise.facts.layout import Layout
from lorawise.facts.model import Matrix

_RENAMED: dict[str, tuple[tuple[str, str], ...]] = {
    "mixtral": ((".mlp.", ".block_sparse_moe."),),
    "granitemoe": (
        (".experts.gate_up_proj", ".input_linear.weight"),
        (".experts.down_proj", ".output_linear.weight"),
        (".router.weight", ".router.layer.weight"),
    ),
    "gpt_neox": (("lm_head.", "embed_out."),),
}
_EXPERTS = {
    "mixtral": {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)},
    "experts": {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)},
}
# Buffers that older versions saved beside the parameters.
BUFFERS = (
    "inv_freq",
    "attn.bias",
    "attn.masked_bias",
    "attention.bias",
    "attention.masked_bias",
    "e_score_correction_bias",
)

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor of a file, before its bytes are read."""

    dtype: str
    shape: tuple[int, ...]


def seen_on_disk(layout: Layout, stored: Mapping[str, Stored], where: str) -> tuple[Layout, tuple[Finding, ...]]:
    """The layout with each matrix's stored dtype; notes on tensors that belong to no parameter.

    `ModelError` lists the parameters that no tensor makes up, and those of another shape than the config's.
    """
    wanted = dict(_wanted(layout))
    absent: list[str] = []
    other_shape: list[str] = []
    used: set[str] = set()
    for name, shape in wanted.items():
        found = _find(name, shape, layout, stored)
        if found is None:
            absent.append(name)
        elif sum(_size(stored[key].shape) for key in found) != _size(shape) or (
            len(found) == 1 and len(shape) < 3 and stored[found[0]].shape != shape
        ):
            other_shape.append(f"{found[0]} is {list(stored[found[0]].shape)}, the config says {list(shape)}")
        used.update(found or ())
    kind = layout.family.architecture
    if other_shape:
        raise ModelError(
            f"{where} does not fit its config.json: {_listed(other_shape, '; ')}",
            expected=f"the tensors of a {kind} of that config",
            cure="fetch config.json and the safetensors again, together",
        )
    if absent:
        raise ModelError(
            f"{where} lacks {len(absent)} tensors of a {kind}: {_listed(absent)}",
            expected=f"all {len(wanted)} of them",
            cure="fetch the model again, or take the model itself, not its encoder or one part of it",
        )
    matrices = tuple(replace(m, stored=_dtype(m, layout, stored)) for m in layout.matrices)
    extra = sorted(
        name for name in set(stored) - used if not name.endswith(BUFFERS) and not _is_tied_head(name, layout)
    )
    return replace(layout, matrices=matrices), tuple(_extra(extra, kind, where))


def weight_name(matrix: Matrix) -> str:
    return matrix.name if matrix.kind == "experts" else f"{matrix.name}.weight"


def weight_shape(matrix: Matrix) -> tuple[int, ...]:
    """As the parameter has it in memory (experts: of one layout; some families keep them transposed)."""
    m = matrix
    if m.kind == "experts":
        return (m.experts, m.out_features, m.in_features)
    return (m.out_features, m.in_features) if m.kind == "linear" else (m.in_features, m.out_features)


def _wanted(layout: Layout) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter that files must hold, by its name in memory, with its shape there."""
    for matrix in layout.matrices:
        if layout.tied and matrix.role == "head" and matrix.layer is None:
            if matrix.bias:
                yield f"{matrix.name}.bias", (matrix.out_features,)
            continue
        yield weight_name(matrix), weight_shape(matrix)
        if matrix.bias and matrix.kind == "experts":
            yield f"{matrix.name}_bias", (matrix.experts, matrix.out_features)
        elif matrix.bias:
            yield f"{matrix.name}.bias", (matrix.out_features,)
    for parameter in layout.others:
        yield parameter.name, parameter.shape


def _find(name: str, shape: tuple[int, ...], layout: Layout, stored: Mapping[str, Stored]) -> list[str] | None:
    """The tensors that make up one parameter; None when some are not there."""
    for spelling in _spellings(name, layout):
        if spelling in stored:
            return [spelling]
        owner, _, leaf = spelling.rpartition(".")
        parts = _EXPERTS.get(layout.family.disk, {}).get(leaf)
        if len(shape) == 3 and parts is not None:
            keys = [f"{owner}.{expert}.{part}.weight" for expert in range(shape[0]) for part in parts]
            if all(key in stored for key in keys):
                return keys
    return None


def _spellings(name: str, layout: Layout) -> Iterator[str]:
    prefix = layout.matrices[0].name.partition(".")[0] + "."
    renamed = name
    for old, new in _RENAMED.get(layout.family.disk, ()):
        renamed = renamed.replace(old, new)
    for each in dict.fromkeys((name, renamed)):
        yield each
        yield each.removeprefix(prefix)
        yield prefix + each


def _dtype(matrix: Matrix, layout: Layout, stored: Mapping[str, Stored]) -> str | None:
    found = _find(weight_name(matrix), weight_shape(matrix), layout, stored)
    return DTYPES.get(stored[found[0]].dtype, stored[found[0]].dtype) if found else None


def _is_tied_head(name: str, layout: Layout) -> bool:
    return layout.tied and name in ("lm_head.weight", "embed_out.weight")


def _extra(names: list[str], kind: str, where: str) -> Iterator[Finding]:
    if names:
        yield Finding(
            code="facts-other-tensors",
            level="note",
            path=where,
            message=f"{len(names)} tensors belong to no parameter of a {kind} and are left out: {_listed(names)}",
        )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _listed(names: list[str], separator: str = ", ", limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + rest
