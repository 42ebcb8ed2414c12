"""LW21x: a setting over the base it names, where that lies on this machine."""

from collections.abc import Iterator
from difflib import get_close_matches

from lorawise.base.roles import role_of
from lorawise.checking.base_fit import BaseFit
from lorawise.checking.rules.rule import Hit, rule


@rule("LW211", "error", BaseFit)
def target_that_matches_nothing(fit: BaseFit) -> Iterator[Hit]:
    """A target matches no module of the base it is for.

    Read from the base's own files, or the bundled table of well-known models. A list of names of which one matches
    adapts only that one, in PEFT without a word.

    Cure: the nearest name is in the message.

    Source: EVIDENCE 4 (peft#2699, vllm#34186).
    """
    line, targets = fit.setting.line("targets"), fit.setting.targets
    leaves = sorted({module.rpartition(".")[2] for module in fit.shapes})
    called = f"its modules are called {', '.join(leaves[:12])}"
    missing = [name for name in fit.setting.names if not fit.matched(name) and not _of_experts(name, fit)]
    by_cure: dict[str, list[str]] = {}
    for name in missing:
        near = get_close_matches(name, leaves, n=1)
        by_cure.setdefault(f"did you mean {near[0]!r}?" if near else called, []).append(repr(name))
    for cure, wrong in by_cure.items():
        verb = "matches" if len(wrong) == 1 else "match"
        yield Hit(message=f"{', '.join(wrong)} {verb} no module of {fit.setting.model}", cure=cure, line=line)
    several = "ConditionalGeneration" in fit.facts.architecture  # text and pictures: its names are longer than these
    if isinstance(targets, str) and fit.found == () and not several:
        yield Hit(
            message=f"target_modules={targets!r} matches no module of {fit.setting.model}", cure=called, line=line
        )


def _of_experts(name: str, fit: BaseFit) -> bool:
    """A projection of fused experts is LW207's to tell."""
    return bool(fit.facts.experts) and (role_of(name) or role_of(f"mlp.{name}")) in ("mlp", "router")


@rule("LW212", "error", BaseFit)
def rank_beyond_the_base(fit: BaseFit) -> Iterator[Hit]:
    """r is larger than a layer of the base is wide: more parameters than the matrix itself.

    Cure: r below half the narrowest layer, or train that module whole.

    Source: arithmetic: rank of B·A is at most min(in, out), and r · (in + out) passes in · out.
    """
    rank = fit.setting.r or 0
    narrow = [module for module in fit.chosen if min(fit.shapes[module]) < rank]
    if narrow:
        width = min(min(fit.shapes[module]) for module in narrow)
        yield Hit(
            message=f"r {rank} on {narrow[0]}, {min(fit.shapes[narrow[0]])} wide ({len(narrow)} modules)",
            cure=f"r {max(1, width // 2)} or less",
            line=fit.setting.line("r"),
        )
