"""New adapters out of old ones: computed a module at a time as they are written, with their parents in the history.

The error told of every result is measured on what the file holds, rounding included, against the exact update:
‖ΔW_written − ΔW_exact‖ / ‖ΔW_exact‖ over all modules.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import AdapterError, ConfigError, nearest
from lorawise.base.tensors import StoredTensor, as_bits
from lorawise.lora.config import LoraConfig
from lorawise.lora.weights import StoredAdapter
from lorawise.store.algebra.factors import Factors, distance
from lorawise.store.peft_format import read_adapter, read_fields, read_history, write_adapter
from lorawise.store.provenance import Provenance, stored_digest

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
FactorsOf = Callable[[str], Factors]


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """An adapter on disk, what is known of its history, and the digest that children name as their parent."""

    folder: Path
    adapter: StoredAdapter
    base: str
    history: Provenance | None
    digest: str

    @classmethod
    def open(cls, folder: Path) -> "Source":
        """`AdapterError` when it is no adapter, or not the one that its history tells of."""
        adapter = read_adapter(folder)
        history = read_history(folder, adapter)
        base = read_fields(folder).get("base_model_name_or_path")
        told = history.base if history is not None else ""
        base = base if isinstance(base, str) else told
        return cls(folder=folder, adapter=adapter, base=base, history=history, digest=stored_digest(adapter))


@dataclass(frozen=True, kw_only=True)
class Written:
    """`error` over all modules, `errors` of each."""

    path: Path
    error: float
    errors: Mapping[str, float]
    rank: int
    parameters: int


def computed(
    like: StoredAdapter, config: LoraConfig, shapes: Mapping[str, tuple[int, int]], factors: FactorsOf, dtype: str
) -> StoredAdapter:
    """An adapter whose tensors are computed when they are written.

    shapes   module → (in, out);  factors  module → ΔW as it must come out, scaling included: B is divided by the
    scaling that `config` gives the module. Modules trained in full, kinds, numbers of experts and task are those of
    `like`.
    """

    @lru_cache(maxsize=1)  # A and B of a module are asked for one after the other
    def made(module: str) -> Factors:
        return factors(module)

    def half(module: str, name: str, scale: float) -> Callable[[], NDArray[Any]]:
        return lambda: as_bits(getattr(made(module), name) * scale, dtype)

    layers = {}
    for module, (width_in, width_out) in shapes.items():
        rank, stack = config.rank_of(module), like.layers[module][0].shape[:-2]
        scale = 1 / config.scaling_of(module)
        layers[module] = (
            StoredTensor(dtype=dtype, shape=(*stack, rank, width_in), bits=half(module, "A", 1.0)),
            StoredTensor(dtype=dtype, shape=(*stack, width_out, rank), bits=half(module, "B", scale)),
        )
    return replace(like, config=config, layers=layers)


def write_child(
    folder: Path,
    child: StoredAdapter,
    parents: Sequence[Source],
    exact: FactorsOf,
    *,
    operation: str,
    options: Mapping[str, object],
) -> Written:
    """Write `child` with its parents named; `exact` is what each of its modules should compute.

    `AdapterError` for a folder that exists, `StorageError` when the disk refuses.
    """
    require_free(folder)
    run = {"operation": operation, "options": dict(options)}
    write_adapter(folder, child, base=shared_base(parents), provenance=_history(parents, run))
    written = read_adapter(folder)
    norms, errors = {}, {}
    for module in written.layers:
        wanted = exact(module)
        norms[module] = wanted.norm()
        errors[module] = distance(Factors.of(written, module), wanted)
        if max(norms[module], errors[module]) <= _rounding_of(wanted):  # parts that cancel: nothing, got as nothing
            norms[module] = errors[module] = 0.0
    return Written(
        path=folder,
        error=ratio(math.hypot(*errors.values()), math.hypot(*norms.values())),
        errors={module: ratio(error, norms[module]) for module, error in errors.items()},
        rank=max((a.shape[-2] for a, _ in written.layers.values()), default=0),
        parameters=sum(a.size + b.size for a, b in written.layers.values())
        + sum(t.size for t in written.full.values()),
    )


def require_free(folder: Path) -> None:
    """Refuse to put an adapter where something is."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AdapterError(
            f"{folder} exists", expected="a new folder", cure="choose another with -o, or remove it first"
        )


def config_with_ranks(config: LoraConfig, ranks: Mapping[str, int], scaling: float) -> LoraConfig:
    """`config` with these ranks and one scaling for all: r is the commonest rank, other modules are named in both
    patterns (PEFT's rank_pattern alone would keep alpha, and so change the scaling)."""
    r = max(Counter(ranks.values()).items(), key=lambda item: (item[1], item[0]))[0] if ranks else config.r
    own = {_key(module, ranks): rank for module, rank in ranks.items() if rank != r}
    return config.replace(
        r=r,
        expert_r=None,
        rslora=False,
        scaling=scaling,
        rank_pattern=own,
        alpha_pattern={key: scaling * rank for key, rank in own.items()},
    )


def _key(module: str, modules: Iterable[str]) -> str:
    """The module's name as a regex; anchored where another module's name ends in it."""
    anchor = "^" if any(other.endswith(f".{module}") for other in modules) else ""
    return anchor + re.sub(r"[^\w-]", lambda sign: "\\" + sign[0], module)


def shapes_of(adapter: StoredAdapter) -> dict[str, tuple[int, int]]:
    """Module → (in, out)."""
    return {module: (a.shape[-1], b.shape[-2]) for module, (a, b) in adapter.layers.items()}


def experts_of(adapter: StoredAdapter) -> dict[str, int]:
    """Module → how many updates it is a stack of; 1 but for fused experts."""
    return {module: math.prod(a.shape[:-2]) for module, (a, _) in adapter.layers.items()}


def stored_type(name: str, adapters: Iterable[StoredAdapter], *, computes: bool) -> str:
    """The type results are written in: as named, or for `auto` the widest of the inputs' own, at least float32 where
    numbers are computed (bfloat16 would round each by up to 0.4 %)."""
    if name != "auto":
        if name not in DTYPES:
            raise ConfigError(f"unknown dtype '{name}'", cure=nearest(name, ["auto", *DTYPES]))
        return DTYPES[name]
    held = {tensor.dtype for adapter in adapters for pair in adapter.layers.values() for tensor in pair}
    if "F64" in held:
        return "F64"
    return held.pop() if len(held) == 1 and not computes else "F32"


def ratio(part: float, whole: float) -> float:
    """part / whole; 0 for nothing of nothing."""
    return part / whole if whole else math.inf if part else 0.0


def _rounding_of(update: Factors) -> float:
    """The norm that float64 cannot tell from 0: what the sum of products B·A leaves when it should vanish."""
    return 8 * float(np.finfo(np.float64).eps) * float(np.linalg.norm(update.A) * np.linalg.norm(update.B))


def shared_base(parents: Sequence[Source]) -> str:
    """The base that all parents name, or the first's."""
    return next((parent.base for parent in parents if parent.base), "")


def _history(parents: Sequence[Source], run: Mapping[str, object]) -> Provenance:
    """The digests that all parents agree on, this operation, and the parents' own digests."""
    told = [parent.history for parent in parents]
    names = [each.name for each in fields(Provenance) if each.name.endswith("_digest")]
    agreed: dict[str, Any] = {}
    for name in names:
        values = {getattr(history, name) for history in told if history is not None}
        agreed[name] = values.pop() if len(values) == 1 and None not in told else ""
    return Provenance(run=run, parents=tuple(dict.fromkeys(parent.digest for parent in parents)), **agreed)
