"""Adapters on fused experts in PEFT's files: `target_parameters`, both ways.

    ….experts.base_layer.lora_A.weight (E·r, in), lora_B.weight (out, r·E)    gate_up_proj, when down_proj is there too
    ….experts.lora_A.weight, lora_B.weight                                    the only one, or down_proj
    here: A (E, r, in), B (E, out, r)                                         the expert is slowest in A, fastest in B

Which parameter a key means is not in the key: PEFT nests its wrappers in the order of the module's own parameters, and
the config names them. Up to 0.18 PEFT took the second axis of a parameter for its inputs, and 0.19.0 took the wrong
one of every parameter: there A holds what B is, turned round. Both projections together tell by their shapes (what
gate_up_proj reads, down_proj writes; it writes twice what down_proj reads); one alone tells by `peft_version`, or is
refused where that does not settle it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import AdapterError
from lorawise.base.patterns import full_match
from lorawise.base.tensors import StoredTensor
from lorawise.lora.config import EXPERT_PARAMETERS

Pair = tuple[StoredTensor, StoredTensor]
GATE_UP, DOWN = EXPERT_PARAMETERS
_NESTED = ".base_layer"
_RIGHT_SINCE = (0, 19, 1)
_WRONG = (0, 19, 0)


@dataclass(frozen=True, kw_only=True)
class Places:
    """What the modules of a file's keys are called in the model: linear layers as they are, experts by parameter."""

    names: Mapping[str, str]
    experts: frozenset[str]
    problems: tuple[str, ...] = ()


def key_of(place: str, adapted: Iterable[str]) -> str:
    """The module that PEFT's keys name for an adapted parameter of experts."""
    owner, _, parameter = place.rpartition(".")
    return f"{owner}{_NESTED}" if parameter == GATE_UP and f"{owner}.{DOWN}" in adapted else owner


def places_of(modules: Sequence[str], fields: Mapping[str, Any]) -> Places:
    """Which of the modules are parameters of experts by the config's `target_parameters`, and which."""
    wanted = list(fields.get("target_parameters") or ())
    strange = [name for name in wanted if name.rpartition(".")[2] not in EXPERT_PARAMETERS]
    if not wanted or strange:
        problems = [f"target_parameters names {name}, which is no projection of fused experts" for name in strange]
        return Places(names={name: name for name in modules}, experts=frozenset(), problems=tuple(problems))
    chains: dict[str, list[str]] = {}
    for name in modules:
        chains.setdefault(_owner(name), []).append(name)
    names: dict[str, str] = {}
    problems = []
    for owner, chain in chains.items():
        keys = [key for key in EXPERT_PARAMETERS if _is_wanted(f"{owner}.{key}", wanted)]
        if _is_target(owner, fields):
            continue
        if not keys:
            problems.append(f"{owner} has tensors, and neither target_modules nor target_parameters names it")
            continue
        expected = [f"{owner}{_NESTED * depth}" for depth in range(len(keys))]
        if sorted(chain) != sorted(expected):
            problems.append(
                f"{owner} has tensors for {len(chain)} parameters, target_parameters names {' and '.join(keys)}"
            )
        names |= dict(zip(expected, (f"{owner}.{key}" for key in reversed(keys)), strict=True))
    found = list(names.values())
    problems += [f"target_parameters names {each}, no tensor does" for each in wanted if not _names_any(each, found)]
    return Places(
        names={name: names.get(name, name) for name in modules},
        experts=frozenset(place for name, place in names.items() if place != name),
        problems=tuple(problems),
    )


def flattened(pair: Pair) -> Pair:
    """A (E, r, in), B (E, out, r) as PEFT writes them."""
    a, b = pair
    (count, rank, width), out = a.shape, b.shape[1]
    return (
        _reshaped(a, (count * rank, width), lambda bits: bits.reshape(count * rank, width)),
        _reshaped(b, (out, rank * count), lambda bits: bits.transpose(1, 2, 0).reshape(out, rank * count)),
    )


def stacked(pair: Pair, rank: int, *, turned: bool = False) -> Pair:
    """The inverse of `flattened` for a known rank. `turned`: A and B change places, as old PEFT wrote them."""
    a, b = pair
    count, width, out = a.shape[0] // rank, a.shape[1], b.shape[0]

    def of_a(bits: NDArray[Any]) -> NDArray[Any]:
        return bits.reshape(count, rank, width)

    def of_b(bits: NDArray[Any]) -> NDArray[Any]:
        return bits.reshape(out, rank, count).transpose(2, 0, 1)

    if not turned:
        return _reshaped(a, (count, rank, width), of_a), _reshaped(b, (count, out, rank), of_b)
    return (
        _reshaped(b, (count, rank, out), lambda bits: of_b(bits).transpose(0, 2, 1)),
        _reshaped(a, (count, width, rank), lambda bits: of_a(bits).transpose(0, 2, 1)),
    )


def is_stack(pair: Pair, rank: int) -> bool:
    """Whether a pair on disk can be that of experts of this rank: 2-D, and as many experts in A as in B."""
    a, b = pair
    flat = len(a.shape) == len(b.shape) == 2 and 0 not in (*a.shape, *b.shape)
    return flat and a.shape[0] == b.shape[1] and a.shape[0] % rank == 0


def turned_owners(pairs: Mapping[str, Pair], fields: Mapping[str, Any]) -> frozenset[str]:
    """Experts modules whose pairs old PEFT wrote the wrong way round. `pairs`: place → as on disk.

    `AdapterError` when shapes fit no gated experts, or when one projection alone and its version do not tell.
    """
    turned = set()
    for owner in dict.fromkeys(place.rpartition(".")[0] for place in pairs):
        first, second = (pairs.get(f"{owner}.{key}") for key in EXPERT_PARAMETERS)
        if first is None or second is None:
            if _told_turned(owner, fields.get("peft_version")):
                turned.add(owner)
            continue
        (reads, writes), (inner, hidden) = ((a.shape[1], b.shape[0]) for a, b in (first, second))
        if reads == hidden and writes == 2 * inner:
            continue
        if writes == inner and reads == 2 * hidden:
            turned.add(owner)
            continue
        raise AdapterError(
            f"{owner}: gate_up_proj is {writes} × {reads} and down_proj {hidden} × {inner} (out × in)",
            expected="gate_up_proj (2·inner × hidden) and down_proj (hidden × inner)",
            cure="take both files from the same save",
        )
    return frozenset(turned)


def _told_turned(owner: str, version: object) -> bool:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version) if isinstance(version, str) else None
    number = tuple(int(part) for part in found.groups()) if found else ()
    if number >= _RIGHT_SINCE:
        return False
    if number == _WRONG:
        return True
    raise AdapterError(
        f"{owner}: one projection of the experts alone, saved by PEFT {version or 'of an unknown version'}",
        expected=f"PEFT {'.'.join(map(str, _RIGHT_SINCE))} or newer, or both projections: older ones mixed up inputs "
        "and outputs on some models, which shapes alone do not tell",
        cure="load it in the PEFT that trained it, merge, and use the merged model",
    )


def _reshaped(tensor: StoredTensor, shape: tuple[int, ...], turn: Any) -> StoredTensor:
    return StoredTensor(
        dtype=tensor.dtype, shape=shape, bits=lambda: np.ascontiguousarray(turn(tensor.bits().reshape(tensor.shape)))
    )


def _owner(module: str) -> str:
    while module.endswith(_NESTED):
        module = module.removesuffix(_NESTED)
    return module


def _is_wanted(place: str, wanted: Sequence[str]) -> bool:
    return any(place == name or place.endswith(f".{name}") for name in wanted)


def _names_any(wanted: str, places: Sequence[str]) -> bool:
    return any(_is_wanted(place, (wanted,)) for place in places)


def _is_target(module: str, fields: Mapping[str, Any]) -> bool:
    """Whether target_modules names the module itself, as a linear layer."""
    targets = fields.get("target_modules") or ()
    if isinstance(targets, str):
        return (targets.lower() == "all-linear" and "experts" not in module.split(".")) or full_match(targets, module)
    return any(module == name or module.endswith(f".{name}") for name in targets)
