"""Which weights an NF4 run's adapter is better merged into, measured.

The reference is the model as it was trained: every linear weight after NF4, the adapter beside it. Both merges are
written, KL from the reference to each is taken on probe texts, and the nearer one is kept. Tools give opposite advice,
and for some models the 16-bit base breaks (EVIDENCE 4), so it is not guessed.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorawise.base.files import storage_errors
from lorawise.lora.injection import attach
from lorawise.merging.base import CONV1D, Base, is_linear
from lorawise.merging.merge import Merged, merge, read_parents
from lorawise.merging.nf4 import Quantised, round_trip
from lorawise.merging.probes import divergence, logits, probe_ids
from lorawise.models.files import ModelFiles, resolve_model
from lorawise.models.load import load
from lorawise.models.open import open_model
from lorawise.store.torch_form import to_torch


@dataclass(frozen=True, kw_only=True)
class Choice:
    """`kl`: weights merged into → KL from the model as trained, nats a token; the smaller one is `merged`."""

    merged: Merged
    kl: dict[str, float]


def choose(
    model: str | Path, adapter: str | Path, out: str | Path, *, how: Quantised = "nf4", **options: Any
) -> Choice:
    """Merge `adapter` into the stored weights and into their NF4 form, and leave the better of the two at `out`."""
    files, target = resolve_model(model), Path(out).expanduser()
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        made = {into: merge(model, adapter, scratch / into, into=into, **options) for into in ("stored", how)}
        loaded = load(model)
        probes = probe_ids(loaded.tokenizer)
        del loaded
        wanted = logits(_as_trained(files, Path(adapter).expanduser(), how), probes)
        kl = {into: divergence(wanted, logits(load(each.path).model, probes)) for into, each in made.items()}
        best = min(kl, key=lambda into: kl[into])
        return Choice(merged=merge(model, adapter, target, into=best, **options), kl=kl)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _as_trained(files: ModelFiles, adapter: Path, how: Quantised) -> torch.nn.Module:
    """Base weights after NF4 with the adapter beside them, as an NF4 run computes."""
    model = open_model(files)
    across = Base.open(files).model_type in CONV1D
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_linear(name, tuple(parameter.shape)):
                weight = parameter.float().numpy()
                restored = round_trip(weight.T.copy(), how).T if across else round_trip(weight, how)
                parameter.copy_(torch.from_numpy(restored.copy()))
    attach(model, {"adapter": to_torch(read_parents(adapter)[0].adapter)})
    return model
