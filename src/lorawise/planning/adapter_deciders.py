"""Decisions on the adapter: where it acts, how much it can learn, how strongly it acts.

The order is the guide's: broad targets before high rank, rank before strength.
"""

import math

from lorawise.facts.model import ModelFacts
from lorawise.facts.targets import module_names, selected, trainable
from lorawise.planning.deciders import decider
from lorawise.planning.decision import Decision
from lorawise.planning.situation import Settled, Situation

PRESETS = ("qv", "attention", "mlp", "all-linear")
DIMINISHING = 32  # "diminishing returns above r=32" (the guide)
BITS_PER_PARAMETER = 2.0  # what a trained network stores (arXiv 2404.05405)
BITS_PER_TOKEN = 1.0  # about what a trained token asks for: an order of magnitude, not a measurement


@decider("lora.target_modules")
def targets(s: Situation, done: Settled) -> Decision:
    """Which layers get an adapter.

    Broad targets come before high rank. The guide: low rank on many modules often outperforms high rank on few; try r 8
    on attention and MLP before r 32 on attention only; r 8 on seven modules before r 32 on two. LoRA Without Regret
    measured the same: adapt all linear layers, the MLP most; attention alone is worse at equal parameters.

    qv is the least memory (the original paper's choice), attention the guide's standard, all-linear its comprehensive
    setting. The rank hardly costs memory; each adapted module costs its input kept for backward, unless the product is
    computed from inputs that are kept anyway.

    In a mixture of experts, attention is where to start: the experts can be adapted too (mlp, all-linear), each with
    factors of its own, which multiplies the parameters by their number; each learns from the few tokens it is sent.
    """
    if s.model.experts:
        return _beside_experts(s)
    return Decision(
        name="lora.target_modules",
        value="all-linear",
        reason="low rank on many modules beats high rank on few; the MLP matters most",
        range=PRESETS,
        sources=("guide", "LoRA Without Regret"),
    )


def _beside_experts(s: Situation) -> Decision:
    """Of a mixture of experts: attention, since an adapter for every expert is another order of size."""
    if module_names(s.model).fused:
        return Decision(
            name="lora.target_modules",
            value="attention",
            reason="the experts of this model are fused in a way that cannot be adapted",
            range=("qv", "attention"),
            sources=("model",),
        )
    r, expert_r = s.task.r, chosen_expert_rank(s, s.task.r)
    few, many = (
        trainable(s.model, s.config(r=r, expert_r=expert_r, target_modules=name))
        for name in ("attention", "all-linear")
    )
    return Decision(
        name="lora.target_modules",
        value="attention",
        reason=f"all-linear gives each of {s.model.num_experts} experts a layer an adapter of its own: "
        f"{many:,} parameters at r {r} (experts {expert_r}), against {few:,}",
        range=PRESETS,
        sources=("model", "LoRA Without Regret"),
    )


@decider("lora.r")
def rank(s: Situation, done: Settled) -> Decision:
    """The rank: how complex a correction the adapter can learn.

    4   minimal capacity: style, simple formatting
    8   the standard default, enough for most tasks
    16  strong adaptation, complex domain shifts
    32  near full fine-tuning; above it the returns diminish (the guide), so 64 is no default
    128 and more  where LoRA alone is not enough: a new language, unlearning what was trained deeply

    Start with 8; raise it if validation loss plateaus, lower it if the adapter overfits. If 8 does not work, look at
    the data and the targets first. The plan starts at 8 moved into the task's row, and goes up within the task's range
    only when the trained tokens of the data ask for more than the adapter can hold: about 1 bit a token against about
    2 bits a parameter (arXiv 2404.05405; LoRA Without Regret compares the same two). r does not change the scaling.
    """
    task = s.task
    value, need = task.r, parameters_needed(s)
    reason = f"the guide's start (r 8) moved into the row of '{task.name}'" if task.r != 8 else "the guide's start"
    ceiling = task.ranks[1]
    while value < ceiling and need > adapter_parameters(s, done, value):
        value *= 2
    if value > task.r:
        start = adapter_parameters(s, done, task.r)
        reason = f"the trained tokens want {need:,.0f} parameters to hold them; r {task.r} has {start:,}"
    elif s.data is not None:
        held = adapter_parameters(s, done, value)
        reason += f"; {held:,} parameters can hold {s.data.trained_tokens:,} trained tokens"
    return Decision(
        name="lora.r",
        value=value,
        reason=reason,
        range=task.ranks,
        sources=("guide",) if s.data is None else ("guide", "capacity", "LoRA Without Regret"),
    )


def parameters_needed(s: Situation) -> float:
    """Parameters that hold what one reading of the distinct trained tokens carries; 0 when that is not known."""
    if s.data is None:
        return 0.0
    distinct = 1 - s.data.duplicates / s.data.rows
    return s.data.trained_tokens * distinct * BITS_PER_TOKEN / BITS_PER_PARAMETER


def adapter_parameters(s: Situation, done: Settled, r: int) -> int:
    """What an adapter of rank r would train."""
    return trainable(s.model, s.config(r=r, expert_r=chosen_expert_rank(s, r), target_modules=chosen_targets(s, done)))


@decider("lora.expert_r")
def expert_rank(s: Situation, done: Settled) -> Decision | None:
    """The rank of each fused expert, where the targets mean experts.

    A router sends a token to k of E experts, so each sees about k/E of the tokens and needs to hold that much less; and
    E adapters of the full rank would be most of the parameters there are to train. The plan takes r · √(k/E): between
    r itself (every expert as large as a dense layer's adapter) and r · k/E (as many parameters as the tokens of an
    expert are worth). LoRA Without Regret takes r / k, so that a token meets rank r in all. The scaling stays that of
    the other layers.
    """
    chosen = selected(s.model, s.config(r=done.whole("lora.r"), target_modules=chosen_targets(s, done)))
    if not any(matrix.kind == "experts" for matrix in chosen):
        return None
    k, count, r = s.model.experts_per_token, s.model.num_experts, done.whole("lora.r")
    return Decision(
        name="lora.expert_r",
        value=expert_rank_for(s.model, r),
        reason=f"an expert sees about {k} of {count} tokens: {r} · √({k}/{count})",
        range=(1, r),
        sources=("model", "LoRA Without Regret"),
    )


def expert_rank_for(model: ModelFacts, r: int) -> int:
    """r · √(active share), at least 1; r where the share is not known."""
    if not model.num_experts or not model.experts_per_token:
        return r
    return max(1, round(r * math.sqrt(model.experts_per_token / model.num_experts)))


def chosen_expert_rank(s: Situation, r: int) -> int | None:
    """The user's own rank for experts, else the advised one beside rank r; None in a model without experts."""
    asked = s.asked("lora.expert_r")
    return int(str(asked)) if asked is not None else expert_rank_for(s.model, r) if s.model.experts else None


def chosen_targets(s: Situation, done: Settled) -> object:
    """The user's own targets as they were written (a list stays one), else what was decided."""
    asked = s.asked("lora.target_modules")
    return asked if asked is not None else done.text("lora.target_modules")


@decider("lora.scaling")
def scaling(s: Situation, done: Settled) -> Decision:
    """The scaling: how strongly the adapter acts, y = W·x + scaling · B·A·x with scaling = alpha / r.

    1 is neutral, 2 the community's default (r 8, alpha 16), 2 to 4 for domains far from the base, 0.5 to 1 for style.
    Think in the scaling, not in alpha: doubling r at a fixed alpha halves it. The division by r keeps the output's size
    as the rank changes, since the sum of r terms grows with r.

    Under Adam, scaling ×k at one learning rate is the rate of B ×k, and that of A unchanged. So lr = 2e-4/scaling keeps
    how fast the product first moves, and two plans that differ in scaling alone start alike: what the scaling then
    changes is how fast A turns. Where the guide gives two ranges for one task the range here holds both; measure it.
    A scaling of 4 with a learning rate of 5e-4 spikes (the guide).
    """
    task = s.task
    r, alpha = done.whole("lora.r"), s.asked("lora.alpha")
    low, high = task.scalings
    decision = Decision(name="lora.scaling", value=task.scaling, reason=task.why, range=(low, high), sources=("guide",))
    if s.asked("lora.scaling") is None and isinstance(alpha, (int, float)):
        value = alpha / (math.sqrt(r) if s.run.lora.rslora else r)
        return Decision(
            name="lora.scaling",
            value=value,
            reason=f"your alpha {alpha:g} over r {r}; advised {task.scaling:g}: {task.why}",
            range=(low, high),
            sources=("guide",),
            asked=True,
            advised=task.scaling,
        )
    return decision


@decider("lora.dropout")
def dropout(s: Situation, done: Settled) -> Decision:
    """Dropout of the adapter's input while training.

    The guide's examples write 0.05, Unsloth's guide 0, as this plan does: a run of one to three epochs hardly overfits,
    and dropout keeps a mask and a copy of every adapted input. Raise it to 0.05 when validation loss turns up.
    """
    few = s.data is not None and s.data.rows < 1_000
    return Decision(
        name="lora.dropout",
        value=0.0,
        reason="costs memory and rarely helps in so few epochs"
        + ("; 0.05 if validation loss turns up, the rows are few" if few else ""),
        range=(0.0, 0.05),
        sources=("Unsloth", "guide"),
    )
