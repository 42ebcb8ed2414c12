"""PEFT's key names: which tensor of `adapter_model.safetensors` is what, both ways.

    base_model.model.<module>.lora_A.weight (r, in), .lora_B.weight (out, r)
    base_model.model.<module>.lora_embedding_A (r, rows), .lora_embedding_B (width, r)
    base_model.model.<experts>[.base_layer].lora_A.weight, .lora_B.weight      of fused experts (`expert_layout`)
    base_model.model.<parameter>               of modules_to_save and of trained biases
    base_model.model.<module>.base_layer.bias  a trained bias of an adapted module

Names, shapes and types are judged from the file's header, before any tensor is read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from lorawise.base.errors import AdapterError
from lorawise.base.safetensors import TensorHeader
from lorawise.base.tensors import StoredTensor
from lorawise.lora.config import LoraConfig
from lorawise.lora.weights import LayerKind, StoredAdapter
from lorawise.store.expert_layout import flattened, is_stack, key_of, places_of, stacked, turned_owners
from lorawise.store.peft_config import listing, saved_module, task_of

PREFIX = "base_model.model."
_HALF = re.compile(r"(?P<module>.+)\.(?:lora_(?P<half>[AB])(?:\.default)?\.weight|lora_embedding_(?P<row>[AB]))")
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_-]+)*")
_DTYPES = ("F64", "F32", "F16", "BF16")
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")
DAMAGED = "copy the folder again from where the adapter was trained"


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What the file's keys are: module → its A and B, parameter → its tensor. Experts are named by their parameter."""

    layers: dict[str, tuple[str, str]] = field(default_factory=dict)
    experts: frozenset[str] = frozenset()
    full: dict[str, str] = field(default_factory=dict)
    embeddings: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)


def to_keys(weights: StoredAdapter) -> dict[str, StoredTensor]:
    """key → tensor; refuses weights that could not be read back, NaN and infinity when their turn to be read comes."""
    config, tensors, problems = weights.config, dict[str, StoredTensor](), list[str]()
    for module, (a, b) in weights.layers.items():
        rank, kind = config.rank_of(module), weights.kinds.get(module)
        dims = 3 if kind == "experts" else 2
        if len(a.shape) != dims or len(b.shape) != dims or a.shape[-2] != rank or b.shape[-1] != rank:
            problems.append(f"{module} has A {a.shape} and B {b.shape}, its rank is {rank}")
            continue
        key, pair = module, (a, b)
        if kind == "experts":
            key, pair = key_of(module, weights.layers), flattened(pair)
        names = ("lora_A.weight", "lora_B.weight")
        if kind == "embedding":
            names = ("lora_embedding_A", "lora_embedding_B")
        tensors |= {f"{PREFIX}{key}.{name}": tensor for name, tensor in zip(names, pair, strict=True)}
    for name, tensor in weights.full.items():
        module, _, leaf = name.rpartition(".")
        if saved_module(config, name) is None and (config.bias == "none" or leaf != "bias"):
            problems.append(f"{name} is in no module of modules_to_save={list(config.modules_to_save)}")
        infix = ".base_layer" if module in weights.layers else ""
        tensors[f"{PREFIX}{module}{infix}.{leaf}"] = tensor
    if problems or not tensors:
        raise AdapterError(
            f"an adapter that cannot be saved: {listing(problems) or 'it holds no tensors'}",
            expected="A (r, in) and B (out, r) for every module (of experts one each), and full tensors that "
            "modules_to_save names",
            cure="build the weights anew",
        )
    unfinished = "save an earlier checkpoint, or weights that do not overflow the type they are saved in"
    return {key: finite(tensor, f"{key} cannot be saved", cure=unfinished) for key, tensor in tensors.items()}


def finite(tensor: StoredTensor, name: str, *, cure: str) -> StoredTensor:
    """The same tensor, which refuses to be read when it holds NaN or infinity."""

    def bits() -> NDArray[Any]:
        read = tensor.bits()
        if not replace(tensor, bits=lambda: read).is_finite():
            raise AdapterError(f"{name}: it holds NaN or infinity", expected="finite numbers", cure=cure)
        return read

    return replace(tensor, bits=bits)


def check_types(tensors: Mapping[str, TensorHeader] | Mapping[str, StoredTensor]) -> None:
    """Refuse a file whose keys are not PEFT's or whose types an adapter does not have."""
    problems = [f"{key} has type {tensor.dtype}" for key, tensor in tensors.items() if tensor.dtype not in _DTYPES]
    problems += [f"{key!r} is no key of a PEFT adapter" for key in tensors if not _is_key(key)]
    if problems or not tensors:
        raise AdapterError(
            f"{listing(problems) or 'it holds no tensors'}",
            expected=f"keys {PREFIX}<module>.lora_A.weight and the like, of type {', '.join(_DTYPES)}",
            cure="if another tool wrote it, load it in PEFT and save_pretrained() it",
        )


def _is_key(key: str) -> bool:
    return key.startswith(PREFIX) and _NAME.fullmatch(key) is not None


def sort_keys(names: Iterable[str], fields: Mapping[str, Any]) -> Keys:
    """Every key into its place; what has none, is doubled or lacks its half is refused with the list."""
    halves: dict[str, dict[str, str]] = {}
    problems, rest, embeddings = list[str](), list[str](), set[str]()
    for key in names:
        match = _HALF.fullmatch(key.removeprefix(PREFIX))
        if match is None:
            rest.append(key)
            continue
        half = match["half"] or match["row"]
        if half in halves.setdefault(match["module"], {}):
            problems.append(f"{match['module']} has lora_{half} twice")
        halves[match["module"]][half] = key
        if match["row"]:
            embeddings.add(match["module"])
    problems += [
        f"{module} has lora_{next(iter(found))} but no lora_{'B' if 'A' in found else 'A'}"
        for module, found in halves.items()
        if len(found) == 1
    ]
    places = places_of(list(halves), fields)
    full, saved, lost = _sort_full(rest, set(halves), fields)
    problems += [*places.problems, *lost]
    if problems:
        raise AdapterError(
            "\n  ".join(problems[:20]),
            expected="lora_A and lora_B of every module, and the tensors that modules_to_save and bias name",
            cure=DAMAGED,
        )
    layers = {places.names[module]: (found["A"], found["B"]) for module, found in halves.items()}
    return Keys(layers=layers, experts=places.experts, full=full, embeddings=sorted(embeddings), saved=saved)


def _sort_full(
    keys: list[str], adapted: set[str], fields: Mapping[str, Any]
) -> tuple[dict[str, str], list[str], list[str]]:
    """(parameter → key, full names of the modules saved whole, problems) of the keys that are no half of a LoRA pair.

    PEFT also writes whole embeddings after a change of vocabulary: they count as modules_to_save. Beside an adapted
    embedding or head it writes the frozen layer (`base_layer.weight`): that is the base's own, and is left out.
    """
    asked, biased = list(fields.get("modules_to_save") or ()), fields.get("bias") not in (None, "none")
    full, problems, saved, askers = dict[str, str](), list[str](), dict[str, None](), set[str | None]()
    for key in keys:
        name = key.removeprefix(PREFIX)
        module, _, leaf = name.rpartition(".")
        inner = module.removesuffix(".base_layer")
        if inner in adapted and module != inner and (leaf == "weight" or not biased):
            continue
        asker, holder = _holder(name, asked)
        if holder is None and module.rpartition(".")[2] in _EMBEDDINGS:
            holder = module
        if holder is None and not (biased and leaf == "bias"):
            problems.append(f"{name} is neither LoRA's nor named by modules_to_save or bias")
            continue
        if holder is not None:
            saved[holder] = None
            askers.add(asker)
        if f"{inner}.{leaf}" in full:
            problems.append(f"{inner}.{leaf} is there twice")
        full[f"{inner}.{leaf}"] = key
    spare = {"classifier", "score"} if task_of(fields) == "SEQ_CLS" else set()
    problems += [f"modules_to_save names {m}, no tensor does" for m in asked if m not in askers | spare]
    return full, list(saved), problems


def _holder(parameter: str, asked: Iterable[str]) -> tuple[str, str] | tuple[None, None]:
    """(entry of modules_to_save, the outermost module it names, by its ending as in PEFT) that holds a parameter."""
    parts = parameter.split(".")
    prefixes = [".".join(parts[:k]) for k in range(1, len(parts))]
    return next(((name, prefix) for prefix in prefixes for name in asked if prefix.endswith(name)), (None, None))


def check_shapes(keys: Keys, tensors: Mapping[str, StoredTensor], config: LoraConfig) -> None:
    problems = []
    for module, (a, b) in keys.layers.items():
        rank, shape_a, shape_b = config.rank_of(module), tensors[a].shape, tensors[b].shape
        if module in keys.experts:
            fits = is_stack((tensors[a], tensors[b]), rank)
        else:
            fits = len(shape_a) == len(shape_b) == 2 and 0 not in (*shape_a, *shape_b)
            fits = fits and shape_a[0] == rank and shape_b[1] == rank
        if not fits:
            problems.append(f"{module} has A {shape_a} and B {shape_b}, by the config its rank is {rank}")
    if problems:
        raise AdapterError(
            "\n  ".join(problems[:20]),
            expected="A (r, in) and B (out, r) with r and rank_pattern of adapter_config.json",
            cure="take both files from the same save",
        )


def pairs_of(
    keys: Keys, tensors: Mapping[str, StoredTensor], config: LoraConfig, fields: Mapping[str, Any]
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """A and B of every module, those of experts stacked: A (experts, r, in), B (experts, out, r)."""
    pairs = {module: (tensors[a], tensors[b]) for module, (a, b) in keys.layers.items()}
    turned = turned_owners({module: pair for module, pair in pairs.items() if module in keys.experts}, fields)
    return {
        module: stacked(pair, config.rank_of(module), turned=module.rpartition(".")[0] in turned)
        if module in keys.experts
        else pair
        for module, pair in pairs.items()
    }


def kinds_of(keys: Keys, fields: Mapping[str, Any]) -> dict[str, LayerKind]:
    others: LayerKind = "conv1d" if fields.get("fan_in_fan_out") is True else "linear"
    kinds: dict[str, LayerKind] = {m: "embedding" if m in keys.embeddings else others for m in keys.layers}
    kinds |= dict.fromkeys(keys.experts, "experts")
    return {module: kind for module, kind in kinds.items() if kind != "linear"}
