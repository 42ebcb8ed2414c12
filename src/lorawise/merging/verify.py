"""Does another model answer as base + adapter does: `lorawise verify`.

    same   KL(base + adapter ‖ other) ≤ 1 % of KL(base + adapter ‖ base), or ≤ 1e-6 nats

The second measure keeps a look-alike out: a merge that lost the adapter answers as the base does, and is then as far
from base + adapter as the base is. Where the adapter itself changes nothing, that is said too.
"""

from dataclasses import dataclass
from pathlib import Path

from lorawise.base.errors import ModelError
from lorawise.base.findings import Finding
from lorawise.merging.probes import PROBES, divergence, largest_difference, logits, probe_ids
from lorawise.models.load import Loaded, load

SHARE, ALIKE = 0.01, 1e-6


@dataclass(frozen=True, kw_only=True)
class Verified:
    """`kl` from base + adapter to the other, `kl_from_base` from base + adapter to the base, in nats a token."""

    kl: float
    kl_from_base: float
    kl_other_from_base: float
    max_logit_difference: float
    probes: int
    findings: tuple[Finding, ...] = ()

    @property
    def same(self) -> bool:
        return self.kl <= max(SHARE * self.kl_from_base, ALIKE)


def verify(
    model: str | Path,
    adapter: str | Path,
    other: str | Path,
    *,
    dtype: str = "auto",
    texts: tuple[str, ...] = PROBES,
) -> Verified:
    """Compare `model` + `adapter` at run time with `other`: a merged folder, a .gguf file, an export's
    folder, or a second adapter.

    dtype  of both; auto: each checkpoint's own, and float32 wherever one of the two is float32
    `ModelError` and `AdapterError` for what cannot be opened, and for vocabularies that differ.
    """
    first = load(model, {"adapter": adapter}, dtype=dtype)
    probes = probe_ids(first.tokenizer, texts)
    wanted = logits(first.model, probes)
    base = logits(first.use(None).model, probes)
    del first
    found = logits(_other(model, other, dtype).model, probes)
    if found[0].shape != wanted[0].shape:
        raise ModelError(
            f"{other} has a vocabulary of {found[0].shape[-1]:,}, {model} one of {wanted[0].shape[-1]:,}",
            cure="compare models of one tokenizer",
        )
    apart, from_base = divergence(wanted, found), divergence(wanted, base)
    other_from_base = divergence(base, found)
    return Verified(
        kl=apart,
        kl_from_base=from_base,
        kl_other_from_base=other_from_base,
        max_logit_difference=largest_difference(wanted, found),
        probes=len(probes),
        findings=tuple(_told(apart, from_base, other_from_base)),
    )


def _other(model: str | Path, other: str | Path, dtype: str) -> Loaded:
    """A second adapter is loaded over the same base; anything else is a model by itself, an export's folder
    its model.gguf."""
    if (Path(other).expanduser() / "adapter_config.json").is_file():
        return load(model, {"other": other}, dtype=dtype)
    exported = Path(other).expanduser() / "model.gguf"
    if exported.is_file() and not exported.with_name("config.json").is_file():
        other = exported
    return load(other, dtype=dtype)


def _told(apart: float, from_base: float, other_from_base: float) -> list[Finding]:
    if from_base <= ALIKE:
        return [
            Finding(
                code="adapter-changes-nothing",
                level="warning",
                message="base + adapter answers as the base alone does, so nothing can be told apart",
                cure="look whether the adapter was trained at all",
            )
        ]
    if other_from_base <= max(SHARE * from_base, ALIKE) and apart > ALIKE:
        return [
            Finding(
                code="other-is-the-base",
                level="error",
                message="OTHER ANSWERS AS THE BASE ALONE: the adapter is not in it",
                cure="merge or export again; a loader that matched no module serves the base",
            )
        ]
    return []
