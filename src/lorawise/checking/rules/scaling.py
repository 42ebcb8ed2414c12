"""LW1xx: the dial. r, alpha, scaling, learning rate, and how strong the four are together."""

import math
from collections.abc import Iterator

from lorawise.checking.rules.rule import Hit, rule
from lorawise.checking.setting import Setting

LOWEST, HIGHEST = 1 / 16, 32.0  # of scaling: the space worth searching
WEAKEST = 4e-4  # of alpha · lr: the weakest pair any tool ships (PEFT's 8 at the Trainer's 5e-5)
TOO_STRONG = 9.6e-2  # alpha 32 at lr 3e-3, batch 128: where 72 of 80 divergences of a public sweep were
SWEEP_BATCH = 128
STYLE = 0.5  # a style task stands half of what others do
USUAL_ALPHAS = (8.0, 16.0, 32.0)
FULL_RATE = 5e-5  # learning rates of full fine-tuning end about here


@rule("LW101", "warning", Setting)
def rank_changed_and_alpha_did_not(setting: Setting) -> Iterator[Hit]:
    """The rank was raised and alpha stayed, so the adapter became weaker.

    scaling = alpha / r: doubling r at a fixed alpha halves it. The usual pairing is r 8 with alpha 16, scaling 2; an r
    of 32 or more beside an alpha of 8 or 16 is mostly a rank that was changed alone. The same happens inside one
    adapter when rank_pattern gives a module its own rank and alpha_pattern says nothing.

    Cure: write alpha = 2 · r (or the scaling you mean), or say with an ignore that the lower scaling is meant: alpha
    fixed while r grows is a choice too, and keeps alpha · lr.

    Source: the guide, mistake 1. EVIDENCE 1: alpha fixed keeps the early strength, alpha ∝ r keeps the scaling; the
    literature does not agree on one law.
    """
    scaling, r, alpha = setting.scaling, setting.r, setting.alpha
    alone = setting.written("r") and setting.written("alpha") and not setting.rslora
    if alone and scaling is not None and r is not None and r >= 32 and scaling <= 0.5 and alpha in USUAL_ALPHAS:
        yield Hit(
            message=f"{setting}: alpha {alpha:g} goes with r {max(1, int(alpha / 2))}; the rank grew and it did not",
            cure=f"alpha {2 * r} keeps scaling 2, alpha {r} is the neutral 1",
            line=setting.line("alpha", "r"),
        )
    own = {name: rank for name, rank in setting.rank_pattern.items() if rank != setting.r}
    if own and not setting.alpha_pattern and setting.alpha and not setting.rslora:
        name, rank = next(iter(own.items()))
        yield Hit(
            message=f"rank_pattern gives {name} r {rank} and alpha stays {setting.alpha:g}: its scaling is "
            f"{setting.alpha / rank:g}, elsewhere {scaling or 0:g}",
            cure="write alpha_pattern for the same modules",
            line=setting.line("rank_pattern"),
        )


@rule("LW102", "warning", Setting)
def alpha_left_at_the_default(setting: Setting) -> Iterator[Hit]:
    """The rank is written and alpha is not: the library's default alpha decides the scaling.

    PEFT's default is lora_alpha 8, Unsloth's 16, ms-swift's 32, mlx-lm's scale 20. Beside another rank than the one
    these were meant for, the scaling is an accident: LoraConfig(r=64) trains at 0.125.

    Cure: write alpha (or the scaling).

    Source: the guide, "always think in terms of the scaling factor"; EVIDENCE 2 and 5 (shipped defaults differ about
    300-fold in alpha · lr).
    """
    if "alpha" not in setting.defaulted or not setting.known("r") or setting.scaling is None:
        return
    if setting.tool in ("peft", "unsloth", "ms-swift") and not 1 <= setting.scaling <= 4:
        yield Hit(
            message=f"r is {setting.r} and alpha is left at the default {setting.alpha:g}: scaling {setting.scaling:g}",
            cure=f"write alpha: {2 * (setting.r or 1)} is scaling 2, the common default",
            line=setting.line("r"),
        )


@rule("LW103", "error", Setting)
def scaling_out_of_range(setting: Setting) -> Iterator[Hit]:
    """The scaling is outside 1/16 to 32, where nothing was ever found to work best.

    Mostly a slip: alpha written where the tool wants the scaling, a zero too many, or alpha 1.

    Cure: start at alpha = r (1.0) or 2r (2.0) and let a search tell the rest.

    Source: EVIDENCE 2, the space worth searching: powers of two from 2⁻⁴ to 2⁵. The guide's own values lie in 0.5 to 4.
    """
    scaling = setting.scaling
    if scaling is None or "alpha" in setting.defaulted:
        return
    if scaling <= 0 or not LOWEST <= scaling <= HIGHEST:
        yield Hit(
            message=f"{setting}: scaling {scaling:g} is outside {LOWEST:g} to {HIGHEST:g}",
            cure=f"alpha {setting.r} is scaling 1, alpha {2 * (setting.r or 1)} is scaling 2",
            line=setting.line("alpha", "r"),
        )


@rule("LW104", "warning", Setting)
def rslora_without_rescaling(setting: Setting) -> Iterator[Hit]:
    """rsLoRA was switched on and alpha was left as it was for alpha / r.

    With rsLoRA the scaling is alpha / √r: the same alpha acts √r times as strongly (r 64, alpha 128: 2 becomes 16).

    Cure: divide alpha by √r to keep the scaling, or lower the learning rate on purpose.

    Source: rsLoRA, arXiv 2312.03732; EVIDENCE 1.
    """
    if not setting.rslora or setting.r is None or setting.alpha is None or setting.scaling is None:
        return
    plain = setting.alpha / setting.r
    if setting.r >= 16 and plain >= 1 and setting.scaling >= 4:
        yield Hit(
            message=f"rsLoRA: alpha {setting.alpha:g} at r {setting.r} is scaling {setting.scaling:g}, not {plain:g}",
            cure=f"alpha {plain * math.sqrt(setting.r):.3g} keeps scaling {plain:g}",
            line=setting.line("rslora", "alpha"),
        )


@rule("LW105", "error", Setting)
def high_scaling_with_high_rate(setting: Setting) -> Iterator[Hit]:
    """Scaling and learning rate are both high: expect loss spikes and instability.

    The guide's example is scaling 4.0 with 5e-4. High scaling needs a lower rate; 2e-4 / scaling is its baseline. Below
    r 8 the scaling of a usual alpha is high by itself, and LW106 judges alpha · lr instead.

    Cure: lower one of the two; they are nearly one dial (scaling × k acts as B's learning rate × k under Adam).

    Source: the guide, mistake 2; EVIDENCE 1.
    """
    scaling, rate = setting.scaling, setting.learning_rate
    if scaling is not None and rate is not None and (setting.r or 0) >= 8 and scaling >= 4 and rate >= 5e-4:
        yield Hit(
            message=f"{setting} with learning rate {rate:g}: both are high, the loss will spike",
            cure=f"learning rate {2e-4 / scaling:.2g} (2e-4 / scaling), or scaling 2",
            line=setting.line("learning_rate", "alpha"),
        )


@rule("LW106", "warning", Setting)
def stronger_than_the_evidence(setting: Setting) -> Iterator[Hit]:
    """alpha · lr is above where training was seen to diverge, at this batch.

    Early in training the model's function moves by alpha · lr a step, whatever r is. A public sweep of 35 models
    (r 32, alpha 32, batch 128) was best at 9.6e-3 to 3.2e-2 and diverged 72 times out of 80 at 9.6e-2; the rate that
    works goes with √batch, so smaller batches stand less. For style, the guide wants half the scaling of other tasks.
    Small models stand more than that sweep's, so up to twice the limit is a note.

    Cure: lower the learning rate or the scaling by the factor the message names, or measure: `lorawise tune`.

    Source: EVIDENCE 1 and 2 (tinker-cookbook's sweep, lr ∝ √batch).
    """
    strength = setting.strength
    if strength is None or "alpha" in setting.defaulted or _told_as_high(setting):
        return
    limit = strongest(setting)
    if strength > limit:
        batch = f" at batch {setting.batch}" if setting.batch else ""
        yield Hit(
            message=f"alpha · lr is {strength:.2g}{batch}, {strength / limit:.3g} times where runs diverged",
            cure=f"learning rate {(setting.learning_rate or 0) * limit / strength:.2g} or less",
            line=setting.line("learning_rate", "alpha", "r"),
            level="note" if strength <= 2 * limit else None,
        )


def strongest(setting: Setting) -> float:
    """alpha · lr above which LW106 speaks, at this setting's batch and task."""
    limit = TOO_STRONG * math.sqrt(min(setting.batch or SWEEP_BATCH, SWEEP_BATCH) / SWEEP_BATCH)
    return limit * (STYLE if setting.task == "style" else 1)


@rule("LW107", "warning", Setting)
def weaker_than_the_evidence(setting: Setting) -> Iterator[Hit]:
    """alpha · lr is below the weakest setting any tool ships: the adapter will barely move.

    The weakest shipped default is PEFT's alpha 8 at the Trainer's 5e-5: 4e-4. Tuned settings lie 10 to 80 times higher.
    Preference tuning (DPO, GRPO) lives lower and is not judged.

    Cure: raise alpha (think of the scaling) or the learning rate; 2e-4 at scaling 1 to 2 is the usual start.

    Source: EVIDENCE 2, "shipped defaults differ about 300-fold in alpha · lr".
    """
    strength = setting.strength
    if strength is None or setting.objective == "preference" or not setting.written("learning_rate"):
        return
    if strength < WEAKEST and (setting.learning_rate or 0) > FULL_RATE and _chosen(setting):
        yield Hit(
            message=f"{setting} at learning rate {setting.learning_rate:g}: alpha · lr {strength:.2g} is less than "
            f"any tool's default ({WEAKEST:g})",
            cure=f"alpha {2 * (setting.r or 8)} (scaling 2) at 2e-4 is the usual start",
            line=setting.line("alpha", "learning_rate"),
        )


def _chosen(setting: Setting) -> bool:
    return "alpha" not in setting.defaulted and (setting.scaling or 0) >= LOWEST


def _told_as_high(setting: Setting) -> bool:
    """LW103 or LW105 says it already."""
    return (setting.scaling or 0) > HIGHEST or next(high_scaling_with_high_rate(setting), None) is not None


@rule("LW108", "error", Setting)
def scale_of_mlx_is_not_alpha(setting: Setting) -> Iterator[Hit]:
    """mlx-lm multiplies `scale` in as it stands; alpha written there is r times too strong, and `alpha` is not read.

    Its default, scale 20 at rank 8, is alpha 160, and goes with its low default rate of 1e-5. Raising the rate to the
    2e-4 other tools use without lowering the scale makes it 20 times stronger.

    Cure: scale = alpha / rank; `lorawise check --convert mlx-lm FILE` writes it.

    Source: mlx-lm's LoRA layers (scale multiplies the product); EVIDENCE 2.
    """
    if setting.tool != "mlx-lm" or setting.r is None:
        return
    if setting.alpha is None and not setting.written("alpha"):
        yield Hit(
            message="mlx-lm does not read `alpha`: it wants `scale`, the factor itself",
            cure="scale: alpha / rank",
            line=setting.line("r"),
        )
    elif setting.scaling is not None and setting.scaling > 4 and (setting.learning_rate or 0) > FULL_RATE:
        line = setting.line("alpha", "learning_rate")
        yield Hit(
            message=f"scale {setting.scaling:g} is multiplied in as it stands (alpha {setting.alpha:g} elsewhere), at "
            f"learning rate {setting.learning_rate:g}",
            cure="scale 1 or 2 with this rate: scale = alpha / rank",
            line=line,
        )


@rule("LW109", "warning", Setting)
def lora_plus_on_high_scaling(setting: Setting) -> Iterator[Hit]:
    """LoRA+ on top of a high scaling turns the same dial twice.

    Under Adam, scaling × k equals B's learning rate × k, which is LoRA+ with ratio k. Ratio 16 on scaling 4 acts as
    scaling 64.

    Cure: with a LoRA+ ratio keep scaling at 1 or 2; or leave the ratio away and search the scaling.

    Source: EVIDENCE 1 (checked numerically); LoRA+, arXiv 2402.12354 (ratio about 16, with a lower rate for A).
    """
    ratio, scaling = setting.lora_plus_ratio, setting.scaling
    if ratio is not None and scaling is not None and ratio > 1 and ratio * scaling > HIGHEST:
        yield Hit(
            message=f"LoRA+ ratio {ratio:g} on scaling {scaling:g} acts as {ratio * scaling:g}: one dial, twice",
            cure="scaling 1 or 2 with the ratio, or no ratio",
            line=setting.line("lora_plus_ratio", "alpha"),
        )


@rule("LW110", "error", Setting)
def number_without_meaning(setting: Setting) -> Iterator[Hit]:
    """A number no training can use: a rank below 1, a learning rate of 0 or infinity, a dropout of 1, NaN.

    Mostly a slip of the keyboard (`1e400`, `-16`) or a template that was filled in wrongly. Some tools stop at it;
    others train nothing, or NaN, without a word.

    Cure: what is expected is in the message.

    Source: arithmetic: rank, rate and share as each is defined.
    """
    for name, value in setting.senseless.items():
        yield Hit(
            message=f"{name.replace('_', ' ')} is {value.written}",
            cure=f"expected {value.expected}",
            line=setting.line(name),
        )
