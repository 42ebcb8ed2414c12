"""LW21x: a setting over the base it names, where that lies on this machine."""

from collections.abc import Iterator

from lorawise.base.errors import nearest
from lorawise.checking.base_shapes import BaseFit
from lorawise.checking.rules.rule import Hit, rule


@rule("LW211", "error", BaseFit)
def target_that_matches_nothing(fit: BaseFit) -> Iterator[Hit]:
    """A target matches no module of the base it is for.

    Read from the header of the base's safetensors. A list of names of which one matches adapts only that one, in PEFT
    without a word.

    Cure: the nearest name is in the message.

    Source: EVIDENCE 4 (peft#2699, vllm#34186).
    """
    line = fit.setting.line("targets")
    leaves = sorted({module.rpartition(".")[2] for module in fit.shapes})
    for name in fit.setting.names:
        if not fit.matched(name):
            yield Hit(
                message=f"{name!r} matches no module of {fit.setting.model}", cure=nearest(name, leaves), line=line
            )
    if isinstance(fit.setting.targets, str) and not fit.chosen:
        yield Hit(
            message=f"target_modules={fit.setting.targets!r} matches no module of {fit.setting.model}",
            cure=f"its modules are called {', '.join(leaves[:8])}",
            line=line,
        )


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
