"""LW6xx: adapters on disk: what was trained, and what will load (engines.py has what each engine makes of it)."""

from collections.abc import Iterator, Sequence

import numpy as np

from lorawise.base.errors import TensorFileError
from lorawise.base.roles import role_of
from lorawise.base.safetensors import SafetensorsFile
from lorawise.base.tensors import round_bf16, widen_bf16
from lorawise.checking.adapter_file import TENSORS_NAME, AdapterFile
from lorawise.checking.rules.rule import Hit, rule
from lorawise.store.peft_keys import PREFIX

ENDS = frozenset({"head", "embedding"})
LOOKED_INTO = 8  # layers compared with the base
KEPT = 0.9  # of the update, below which rounding took too much


@rule("LW601", "error", AdapterFile)
def never_trained(adapter: AdapterFile) -> Iterator[Hit]:
    """B is zero: the adapter changes nothing.

    LoRA begins with B = 0. All zero: it was saved before a step, or no gradient reached it. Zero in some layers: those
    were never reached (experts no token was sent to are the honest case).

    Cure: train it; check the gradient norm of the first step.

    Source: the guide ("Matrix B is initialized to zero"); EVIDENCE 5.
    """
    zero = [layer for layer in adapter.layers if layer.b_zero]
    if zero and len(zero) == len(adapter.layers):
        yield Hit(message=f"B is zero in all {len(zero)} layers: it was never trained", cure="train it")
    elif zero:
        yield Hit(
            message=f"B is zero in {len(zero)} of {len(adapter.layers)} layers: {_listed([z.module for z in zero])}",
            cure="no gradient reached them: are they in the forward?",
            level="warning",
        )


@rule("LW602", "error", AdapterFile)
def not_finite(adapter: AdapterFile) -> Iterator[Hit]:
    """The adapter holds NaN or infinity: every answer with it is noise.

    Cure: take a checkpoint from before the loss became NaN.

    Source: EVIDENCE 5.
    """
    broken = [layer.module for layer in adapter.layers if not layer.finite]
    if broken:
        yield Hit(message=f"NaN or infinity in {_listed(broken)}", cure="take an earlier checkpoint")


@rule("LW603", "warning", AdapterFile)
def update_lost_in_rounding(adapter: AdapterFile) -> Iterator[Hit]:
    """Merged in 16 bit, the update vanishes against the base.

    bfloat16 keeps 8 bits: an update of 0.05 % of the weights loses 71 % of itself (retention 0.29), 0.3 % loses 7 %.
    Looked at when the base is given (`--base DIR`), on up to 8 layers.

    Cure: merge in float32, or serve the adapter unmerged.

    Source: EVIDENCE 4, measured. Retention is the projection ⟨ΔW got, ΔW⟩ / ‖ΔW‖².
    """
    if adapter.base is None:
        return
    weights = _base_weights(adapter)
    kept = []
    for layer in adapter.layers[:: max(1, len(adapter.layers) // LOOKED_INTO)][:LOOKED_INTO]:
        holder = weights.get(f"{layer.module}.weight")
        update = adapter.update(layer.module)
        if holder is None or update is None or holder.tensors[f"{layer.module}.weight"].shape != update.shape:
            continue
        weight = holder.read(f"{layer.module}.weight").astype(np.float32)
        got = widen_bf16(round_bf16(weight + update)) - widen_bf16(round_bf16(weight))
        total = float((update * update).sum())
        if total > 0:
            kept.append(float((got * update).sum()) / total)
    if kept and float(np.median(kept)) < KEPT:
        yield Hit(
            message=f"merged in bfloat16 only {np.median(kept):.0%} of the update remains (of {len(kept)} layers)",
            cure="merge in float32, or serve it unmerged",
        )


@rule("LW604", "note", AdapterFile)
def rank_larger_than_used(adapter: AdapterFile) -> Iterator[Hit]:
    """The update uses far fewer directions than r: a smaller adapter would do the same.

    Counted as the singular values that hold 99 % of ‖ΔW‖².

    Cure: resize it (exact, no base needed), or train the next one at the rank the message names.

    Source: EVIDENCE 2 (PEFT docs: train at 64, cut to 32 by SVD) and 4 (resize without the dense product).
    """
    used = [layer for layer in adapter.layers if layer.norm > 0]
    if not used:
        return
    largest, rank = max(layer.needed for layer in used), max(layer.rank for layer in used)
    if rank >= 8 and 4 * largest <= rank:
        yield Hit(
            message=f"99 % of every layer's update lies in {largest} of {rank} directions",
            cure=f"r {max(4, 2 * largest)} would do",
            line=adapter.lines.get("r"),
        )


@rule("LW605", "warning", AdapterFile)
def one_layer_carries_everything(adapter: AdapterFile) -> Iterator[Hit]:
    """One module holds most of the update: it ran away, or the others were hardly trained.

    Cure: look at its learning rate and scaling (alpha_pattern); a lower strength spreads the update.

    Source: norms of scaling · B·A; EVIDENCE 2 (intruder dimensions).
    """
    total = sum(layer.norm**2 for layer in adapter.layers)
    if len(adapter.layers) < 4 or total <= 0:
        return
    largest = max(adapter.layers, key=lambda layer: layer.norm)
    share = largest.norm**2 / total
    if share > 0.8:
        yield Hit(
            message=f"{largest.module} holds {share:.0%} of the whole update (of {len(adapter.layers)} modules)",
            cure="look at its scaling; lower the strength",
        )


@rule("LW606", "warning", AdapterFile)
def embeddings_saved(adapter: AdapterFile) -> Iterator[Hit]:
    """Embeddings or head are saved with the adapter though the config does not train them.

    PEFT saves them when the vocabulary looks resized; an adapter of 50 MB becomes gigabytes, and engines refuse it.

    Cure: save_pretrained(..., save_embedding_layers=False), unless tokens were added.

    Source: EVIDENCE 5 (adapter of 16 GB because embeddings were saved).
    """
    asked = adapter.fields.get("modules_to_save") or []
    saved = [
        key
        for key in adapter.others
        if role_of(key.removesuffix(".weight").removesuffix(".base_layer")) in ENDS
        and not any(str(name) in key for name in (asked if isinstance(asked, list) else []))
    ]
    if saved:
        size = sum(adapter.keys[key].end - adapter.keys[key].start for key in saved)
        yield Hit(
            message=f"{_listed(saved)} saved too ({size / 2**20:,.1f} MiB), and modules_to_save does not name it",
            cure="save_embedding_layers=False",
            line=adapter.lines.get("modules_to_save"),
        )


@rule("LW607", "error", AdapterFile)
def keys_that_will_not_match(adapter: AdapterFile) -> Iterator[Hit]:
    """Tensors whose names no loader will match: they are dropped without a word, and the base answers alone.

    Half a pair, a missing `base_model.model.` prefix, `_orig_mod.` of torch.compile, an adapter's name inside the key,
    or targets that have no tensor.

    Cure: save it again with PEFT's save_pretrained from the unwrapped model.

    Source: EVIDENCE 4 (a loader that matches no module must refuse; peft#2699, vllm#34186).
    """
    if not adapter.keys:
        where = TENSORS_NAME if adapter.file is None else "a tensor"
        alone = all(path.suffix == ".json" for path in adapter.folder.iterdir())  # a config kept as a recipe
        cure = "copy the folder again from where it was trained"
        yield Hit(message=f"there is no {where}", cure=cure, level="note" if alone else None)
        return
    if half := [m for m, halves in adapter.halves.items() if set(halves) != {"A", "B"}]:
        yield Hit(message=f"half a pair for {_listed(half)}", cure="save it again")
    if bare := [key for key in adapter.keys if not key.startswith(PREFIX)]:
        yield Hit(
            message=f"keys do not begin with {PREFIX}: {_listed(bare)}", cure="save it with PEFT's save_pretrained"
        )
    if wrapped := [key for key in adapter.keys if "_orig_mod." in key or ".module." in key]:
        yield Hit(message=f"keys carry a wrapper's name: {_listed(wrapped)}", cure="save the unwrapped model")
    targets = adapter.fields.get("target_modules")
    if isinstance(targets, list):
        modules = list(adapter.halves)
        empty = [t for t in targets if not any(m == t or m.endswith(f".{t}") for m in modules)]
        if empty and len(empty) == len(targets):
            yield Hit(
                message=f"target_modules {_listed(targets)} match none of its tensors",
                cure="restore adapter_config.json",
                line=adapter.lines.get("target_modules"),
            )


@rule("LW608", "error", AdapterFile)
def rank_is_not_the_tensors(adapter: AdapterFile) -> Iterator[Hit]:
    """The config's r is not the rank of the tensors: loaders refuse it, or scale it wrongly.

    Cure: restore adapter_config.json from where the adapter was trained.

    Source: PEFT 0.21; vLLM uses the config's r.
    """
    rank = adapter.number("r")
    if rank is None or adapter.number("lora_alpha") is None:
        unknown = [name for name in ("r", "lora_alpha") if adapter.number(name) is None]
        said = [f"{name} is {'no number' if name in adapter.fields else 'missing'}" for name in unknown]
        yield Hit(message=f"{' and '.join(said)} in adapter_config.json", cure="restore it")
        return
    if not adapter.fields.get("rank_pattern"):
        other = [layer for layer in adapter.layers if layer.rank != rank]
        if other:
            yield Hit(
                message=f"r is {rank:g}, and {other[0].module} has rank {other[0].rank}",
                cure="restore adapter_config.json",
                line=adapter.lines.get("r"),
            )


@rule("LW202", "error", AdapterFile)
def rank_beyond_the_width(adapter: AdapterFile) -> Iterator[Hit]:
    """r is larger than the layer: more parameters than the matrix it updates.

    B·A of rank r ≥ min(in, out) can be any update at all; past half of it a full update is smaller.

    Cure: r below half the layer's width, or train the module whole (modules_to_save).

    Source: the guide ("r = rank (typically 4-64)"); arithmetic.
    """
    wide = [layer for layer in adapter.layers if layer.rank > layer.width]
    if wide:
        yield Hit(
            message=f"r {wide[0].rank} on {wide[0].module}, which is {wide[0].width} wide ({len(wide)} layers)",
            cure=f"at most {wide[0].width // 2}",
            line=adapter.lines.get("r"),
        )


@rule("LW611", "warning", AdapterFile)
def base_folder_gone(adapter: AdapterFile) -> Iterator[Hit]:
    """The config names no base model: whoever loads the adapter has to guess which one it changes.

    A path of the training machine is a note: it means nothing on another.

    Cure: write base_model_name_or_path.

    Source: PEFT 0.21, adapter_config.json.
    """
    base = adapter.fields.get("base_model_name_or_path")
    line = adapter.lines.get("base_model_name_or_path")
    if not base and adapter.file is not None:
        yield Hit(message="no base model is named", cure="write base_model_name_or_path", line=line)
    elif isinstance(base, str) and base.startswith(("/", "~", "C:")):
        yield Hit(message=f"the base is a path of one machine: {base}", cure="its hub id", line=line, level="note")


def _base_weights(adapter: AdapterFile) -> dict[str, SafetensorsFile]:
    """Tensor name → the file of the base that holds it."""
    found: dict[str, SafetensorsFile] = {}
    for path in sorted((adapter.base or adapter.folder).glob("*.safetensors"))[:200]:
        try:
            file = SafetensorsFile.open(path)
        except (TensorFileError, OSError):
            continue
        found |= dict.fromkeys(file, file)
    return found


def _listed(names: Sequence[object], limit: int = 3) -> str:
    shown = ", ".join(str(name).removeprefix(PREFIX) for name in list(names)[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
