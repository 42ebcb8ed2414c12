"""Adapters of transformers 4, where every expert was three linear layers, in the layout of its fused experts.

    ….mlp.experts.3.gate_proj, up_proj, down_proj           ….mlp.experts.gate_up_proj, down_proj
    mixtral: ….block_sparse_moe.experts.3.w1, w3, w2        the same

    gate and up   A = [A_gate ; A_up] (r_gate + r_up, in)   B = [[B_gate, 0], [0, B_up]] (2·inner, r_gate + r_up)

which is exact: gate_up_proj's rows are gate's, then up's. Scalings are kept, so alpha grows with the rank. One of gate
and up may be missing: its rows of B are zero, and no rank is spent on it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import AdapterError
from lorawise.base.tensors import StoredTensor
from lorawise.lora.config import LoraConfig
from lorawise.store.expert_layout import DOWN, GATE_UP, flattened, key_of
from lorawise.store.peft_config import WRITTEN_FOR, from_peft

_KEY = re.compile(
    r"(?P<prefix>base_model\.model\.)(?P<owner>.+\.experts)\.(?P<expert>\d{1,5})\.(?P<leaf>\w+)"
    r"\.lora_(?P<half>[AB])(?:\.default)?\.weight"
)
_ANY = re.compile(r"base_model\.model\.(.+)\.lora_\w.*")
_ROLES = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
_CURE = "take both files from the same save, or load it in PEFT, merge, and use the merged model"


@dataclass(frozen=True, kw_only=True)
class _Role:
    """One projection of all experts of a layer: their pairs in order, and the scaling that all have."""

    pairs: Sequence[tuple[StoredTensor, StoredTensor]]
    scaling: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(r, in, out)"""
        a, b = self.pairs[0]
        return a.shape[0], a.shape[1], b.shape[0]


def fused_form(
    fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> tuple[Mapping[str, Any], Mapping[str, StoredTensor]]:
    """PEFT's fields and tensors with experts fused; the same objects where none are apart.

    `AdapterError` with everything that does not fit: experts missing, of other shapes, ranks, types or scalings.
    """
    found: dict[str, dict[str, dict[int, dict[str, str]]]] = {}
    apart = set()
    for key in tensors:
        match = _KEY.fullmatch(key)
        if match and match["leaf"] in _ROLES:
            roles = found.setdefault(match["owner"], {})
            roles.setdefault(match["leaf"], {}).setdefault(int(match["expert"]), {})[match["half"]] = key
            apart.add(key)
    if not found:
        return fields, tensors
    others = {key: tensor for key, tensor in tensors.items() if key not in apart}
    modules = [f"{owner}.{e}.{leaf}" for owner, leaves in found.items() for leaf, each in leaves.items() for e in each]
    rest = list(dict.fromkeys(match[1] for key in others if (match := _ANY.fullmatch(key))))
    config = from_peft(fields, [*rest, *modules])
    problems: list[str] = []
    made: dict[str, tuple[StoredTensor, StoredTensor, float]] = {}
    for owner, leaves in found.items():
        judged = {_ROLES[leaf]: _role(owner, leaf, each, tensors, config, problems) for leaf, each in leaves.items()}
        whole = {name: role for name in ("gate", "up", "down") if (role := judged.get(name)) is not None}
        place = owner.replace(".block_sparse_moe.", ".mlp.") if "w1" in leaves or "w2" in leaves else owner
        if len(whole) == len(judged):
            made |= _fused(place, whole, problems)
    if problems:
        raise AdapterError("\n  ".join(problems[:12]), expected="every expert's pair of a projection alike", cure=_CURE)
    return _as_target_parameters(fields, rest, made, config), others | _keys(made)


def _role(
    owner: str,
    leaf: str,
    each: Mapping[int, Mapping[str, str]],
    tensors: Mapping[str, StoredTensor],
    config: LoraConfig,
    problems: list[str],
) -> _Role | None:
    """The pairs of one projection, judged; None and a problem when they are not alike."""
    name = f"{owner}.*.{leaf}"
    if sorted(each) != list(range(len(each))) or any(set(halves) != {"A", "B"} for halves in each.values()):
        problems.append(f"{name}: not every expert has lora_A and lora_B (experts {min(each)} to {max(each)})")
        return None
    pairs = [(tensors[each[e]["A"]], tensors[each[e]["B"]]) for e in range(len(each))]
    kinds = {(a.shape, b.shape, a.dtype, b.dtype) for a, b in pairs}
    scalings = {round(config.scaling_of(f"{owner}.{e}.{leaf}"), 12) for e in each}
    ranks = {config.rank_of(f"{owner}.{e}.{leaf}") for e in each}
    a, b = pairs[0]
    fits = len(a.shape) == len(b.shape) == 2 and ranks == {a.shape[0]} == {b.shape[1]} and 0 not in (*a.shape, *b.shape)
    if len(kinds) > 1 or len(scalings) > 1 or not fits or a.dtype != b.dtype:
        problems.append(f"{name}: A {a.shape} and B {b.shape} of expert 0, by the config its rank is {sorted(ranks)}")
        return None
    return _Role(pairs=pairs, scaling=config.scaling_of(f"{owner}.0.{leaf}"))


def _fused(
    owner: str, roles: Mapping[str, _Role], problems: list[str]
) -> dict[str, tuple[StoredTensor, StoredTensor, float]]:
    """Place → A (E, r, in), B (E, out, r) and the scaling."""
    counts = {len(role.pairs) for role in roles.values()}
    first = [role for name in ("gate", "up") if (role := roles.get(name)) is not None]
    alike = len({(role.shape[1:], role.pairs[0][0].dtype, round(role.scaling, 12)) for role in first}) <= 1
    down = roles.get("down")
    meets = not first or down is None or down.shape[1:] == first[0].shape[:0:-1]
    if len(counts) > 1 or not alike or not meets:
        shapes = ", ".join(f"{name} {role.shape[2]} × {role.shape[1]}" for name, role in roles.items())
        problems.append(f"{owner}: {shapes} (out × in), and as many experts and one scaling in each")
        return {}
    made: dict[str, tuple[StoredTensor, StoredTensor, float]] = {}
    if first:
        made[f"{owner}.{GATE_UP}"] = (*_gate_up(roles), first[0].scaling)
    if down is not None:
        A, B = (_stack([pair[half] for pair in down.pairs]) for half in (0, 1))
        made[f"{owner}.{DOWN}"] = (A, B, down.scaling)
    return made


def _gate_up(roles: Mapping[str, _Role]) -> tuple[StoredTensor, StoredTensor]:
    gate, up = roles.get("gate"), roles.get("up")
    some = gate or up
    assert some is not None
    count, (_, width, inner), dtype = len(some.pairs), some.shape, some.pairs[0][0].dtype
    ranks = [0 if role is None else role.shape[0] for role in (gate, up)]

    def a_bits() -> NDArray[Any]:
        rows = [[role.pairs[e][0].bits() for role in (gate, up) if role is not None] for e in range(count)]
        return np.stack([np.concatenate(each) for each in rows])

    def b_bits() -> NDArray[Any]:
        whole = np.zeros((count, 2 * inner, sum(ranks)), dtype=some.pairs[0][1].bits().dtype)
        for e in range(count):
            if gate is not None:
                whole[e, :inner, : ranks[0]] = gate.pairs[e][1].bits()
            if up is not None:
                whole[e, inner:, ranks[0] :] = up.pairs[e][1].bits()
        return whole

    return (
        StoredTensor(dtype=dtype, shape=(count, sum(ranks), width), bits=a_bits),
        StoredTensor(dtype=dtype, shape=(count, 2 * inner, sum(ranks)), bits=b_bits),
    )


def _stack(tensors: Sequence[StoredTensor]) -> StoredTensor:
    return StoredTensor(
        dtype=tensors[0].dtype,
        shape=(len(tensors), *tensors[0].shape),
        bits=lambda: np.stack([tensor.bits() for tensor in tensors]),
    )


def _as_target_parameters(
    fields: Mapping[str, Any],
    rest: Sequence[str],
    made: Mapping[str, tuple[StoredTensor, StoredTensor, float]],
    config: LoraConfig,
) -> dict[str, Any]:
    """The fields that name the linear layers and the parameters of experts in full, each with its rank and scaling."""
    ranks = {name: a.shape[1] for name, (a, _, _) in made.items()}
    root = math.sqrt if config.rslora else float
    alphas = {name: scaling * root(ranks[name]) for name, (_, _, scaling) in made.items()}
    return {
        **fields,
        "target_modules": list(rest),
        "target_parameters": list(made),
        "exclude_modules": None,
        "layers_to_transform": None,
        "rank_pattern": {re.escape(name): r for name, r in ranks.items()} | dict(fields.get("rank_pattern") or {}),
        "alpha_pattern": {re.escape(n): alpha for n, alpha in alphas.items()} | dict(fields.get("alpha_pattern") or {}),
        "peft_version": WRITTEN_FOR,
    }


def _keys(made: Mapping[str, tuple[StoredTensor, StoredTensor, float]]) -> dict[str, StoredTensor]:
    keys: dict[str, StoredTensor] = {}
    for place, (a, b, _) in made.items():
        flat = flattened((a, b))
        at = f"base_model.model.{key_of(place, made)}"
        keys |= {f"{at}.lora_A.weight": flat[0], f"{at}.lora_B.weight": flat[1]}
    return keys
