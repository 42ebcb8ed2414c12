"""What the user's own values and the plan's do not agree on: findings with their cure, never a silent change.

    @contradiction
    def name(s: Situation, done: Settled) -> Iterator[Finding]

Each is a generator over the settled plan; most speak only where a value was asked for. The guide's mistakes 1 to 4 are
among them (mistake 1, rank changed without alpha, is told by the run file's own reading).
"""

from collections.abc import Callable, Iterator

from lorawise.base.findings import Finding, Level
from lorawise.facts.targets import selected
from lorawise.planning.adapter_deciders import (
    DIMINISHING,
    adapter_parameters,
    chosen_expert_rank,
    chosen_targets,
    parameters_needed,
)
from lorawise.planning.rate import GUIDE_UNSTABLE
from lorawise.planning.situation import Settled, Situation
from lorawise.planning.training_deciders import FEWEST_STEPS, total_steps

Rule = Callable[[Situation, Settled], Iterator[Finding]]
RULES: list[Rule] = []


def contradiction(rule: Rule) -> Rule:
    RULES.append(rule)
    return rule


def contradictions(s: Situation, done: Settled) -> tuple[Finding, ...]:
    return tuple(finding for rule in RULES for finding in rule(s, done))


def _found(code: str, message: str, cure: str, level: Level = "warning") -> Finding:
    return Finding(code=f"plan-{code}", level=level, message=message, cure=cure)


@contradiction
def lora_is_not_enough(s: Situation, done: Settled) -> Iterator[Finding]:
    """A new language or deeply trained behaviour asks for more than a correction layer (the guide)."""
    if s.task.lora_suffices:
        return
    about = s.task.about
    r = done.whole("lora.r")
    if r < s.task.ranks[0]:
        yield _found("lora-not-enough", f"r {r} is too little for {about}", f"lora.r: {s.task.ranks[0]} or more")
    yield _found(
        "lora-not-enough",
        f"LoRA may not be enough for {about}: the guide asks for r {s.task.ranks[0]} or more, or full fine-tuning",
        "compare with --method full, and judge on validation rows",
        "note" if r >= s.task.ranks[0] else "warning",
    )


@contradiction
def rank_beyond_width(s: Situation, done: Settled) -> Iterator[Finding]:
    """B·A has no more rank than its matrix has rows or columns: what is above only takes memory."""
    if s.method == "full":
        return
    r = done.whole("lora.r")
    config = s.config(r=r, expert_r=chosen_expert_rank(s, r), target_modules=chosen_targets(s, done))
    over = [m for m in selected(s.model, config) if config.rank_of(m.name) > min(m.in_features, m.out_features)]
    if over:
        narrow = min(over, key=lambda m: min(m.in_features, m.out_features))
        least = min(narrow.in_features, narrow.out_features)
        yield _found(
            "rank-beyond-width",
            f"r {config.rank_of(narrow.name)} is more than {narrow.name} can have ({narrow.in_features:,} × "
            f"{narrow.out_features:,}), and {len(over) - 1:,} other matrices",
            f"lora.{'expert_r' if narrow.experts > 1 else 'r'}: {least} or less; from there on it is full fine-tuning "
            "at more cost",
        )


@contradiction
def expert_rank_without_experts(s: Situation, done: Settled) -> Iterator[Finding]:
    """A rank for experts where the targets take in none of them."""
    asked = s.asked("lora.expert_r")
    if asked is None or s.method == "full" or "lora.expert_r" in done:
        return
    has_experts = bool(s.model.experts)
    yield _found(
        "no-experts",
        f"lora.expert_r {asked} has no effect: "
        + ("the targets take in no experts" if has_experts else f"{s.model.architecture} has no fused experts"),
        "lora.target_modules: all-linear, or leave it out" if has_experts else "leave it out",
    )


@contradiction
def adapter_settings_of_a_full_run(s: Situation, done: Settled) -> Iterator[Finding]:
    """Full fine-tuning has no adapter that a setting could be of."""
    written = [f"lora.{name}" for name in type(s.run.lora).model_fields if s.asked(f"lora.{name}") is not None]
    if s.method == "full" and written:
        yield _found(
            "no-adapter",
            f"{', '.join(written)} {'has' if len(written) == 1 else 'have'} no part in full fine-tuning",
            "--method lora, or leave them out",
        )


@contradiction
def high_rank(s: Situation, done: Settled) -> Iterator[Finding]:
    """r 64 as a default (the guide's mistake 3): diminishing returns above 32."""
    r, asked = done.whole("lora.r"), done["lora.r"].asked and s.method != "full"
    if (
        asked
        and r > DIMINISHING
        and s.task.lora_suffices
        and parameters_needed(s) <= adapter_parameters(s, done, r // 2)
    ):
        yield _found(
            "high-rank",
            f"r {r}: returns diminish above {DIMINISHING}; if r 8 does not work, it is mostly the data or the targets",
            f"lora.r: {done['lora.r'].advised}, more if validation loss plateaus",
        )


@contradiction
def high_rank_on_few_modules(s: Situation, done: Settled) -> Iterator[Finding]:
    """Mistake 4: r 8 on seven modules before r 32 on two."""
    r, targets = done.whole("lora.r"), done.text("lora.target_modules")
    if (
        s.method != "full"
        and r >= DIMINISHING
        and targets in ("qv", "attention")
        and not s.model.experts
        and s.task.lora_suffices
    ):
        yield _found(
            "few-modules",
            f"r {r} on {targets}: low rank on many modules usually beats high rank on few",
            "lora.r: 8 with target_modules: all-linear first",
        )


@contradiction
def strong_and_fast(s: Situation, done: Settled) -> Iterator[Finding]:
    """Mistake 2: scaling 4 with a learning rate of 5e-4 spikes."""
    scaling, rate = done.real("lora.scaling"), done.real("train.learning_rate")
    if scaling * rate >= GUIDE_UNSTABLE * (1 - 1e-9):
        yield _found(
            "unstable",
            f"scaling {scaling:g} with a learning rate of {rate:g}: expect loss spikes (the guide: 4 with 5e-4)",
            f"train.learning_rate: {2e-4 / scaling:g} (2e-4 / scaling), or a lower scaling",
        )


@contradiction
def outside_the_range(s: Situation, done: Settled) -> Iterator[Finding]:
    """A value the user wrote outside what the sources support."""
    told = {"lora.r"} if done.whole("lora.r") > DIMINISHING else set()
    told |= {name for name in done if s.method == "full" and name.startswith("lora.")}
    for decision in done.values():
        if decision.asked and not decision.within and decision.name not in told and not _is_free(decision.name):
            low, high = _shown(decision.range[0]), _shown(decision.range[-1])
            yield _found(
                "outside-range",
                f"{decision.name} {_shown(decision.value)} is outside {low} to {high} for {s.task.name}",
                f"advised {_shown(decision.advised)}; --explain {decision.name} says why",
            )


def _is_free(name: str) -> bool:
    """Where what is written may be anything (a regex of modules), or has a rule of its own."""
    return name in ("lora.target_modules", "train.max_length", "base.dtype")


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@contradiction
def longer_than_the_model_reads(s: Situation, done: Settled) -> Iterator[Finding]:
    most, length = s.model.max_positions, done.whole("train.max_length")
    if most is not None and length > most:
        yield _found(
            "too-long",
            f"train.max_length {length:,} is more than the {most:,} positions the model was trained on",
            f"train.max_length: {most}",
        )


@contradiction
def longer_than_a_step(s: Situation, done: Settled) -> Iterator[Finding]:
    step = s.asked("train.batch_tokens")
    longest = None if s.data is None else s.data.longest
    if isinstance(step, int) and longest is not None and longest > step:
        yield _found(
            "small-step",
            f"your step of {step:,} tokens is shorter than the longest row ({longest:,} tokens), which is cut",
            f"train.batch_tokens: {longest} or more",
        )


@contradiction
def rows_cut(s: Situation, done: Settled) -> Iterator[Finding]:
    if s.data is None:
        return
    length = done.whole("train.max_length")
    cut = s.data.rows_cut(length)
    if cut:
        lost = s.data.tokens - s.data.tokens_kept(length)
        yield _found(
            "rows-cut",
            f"{cut:,} of {s.data.rows:,} rows are cut at {length:,} tokens: {lost:,} tokens "
            f"({lost / s.data.tokens:.1%}) are lost",
            f"train.max_length: {s.data.longest}, or split these rows",
        )


@contradiction
def beyond_capacity(s: Situation, done: Settled) -> Iterator[Finding]:
    """More in the trained tokens than the adapter can hold: LoRA falls behind full fine-tuning there."""
    need = parameters_needed(s)
    have = adapter_parameters(s, done, done.whole("lora.r"))
    if s.data is not None and need > have:
        yield _found(
            "capacity",
            f"{s.data.trained_tokens:,} trained tokens carry more than {have:,} adapter parameters can hold "
            f"(about {need:,.0f} would)",
            "raise lora.r, adapt all linear layers, or compare --method full",
        )


@contradiction
def short_run(s: Situation, done: Settled) -> Iterator[Finding]:
    steps = total_steps(s, done)
    if steps is not None and steps < FEWEST_STEPS // 4:
        yield _found(
            "short-run",
            f"the whole run is {steps} steps: the adapter hardly moves",
            "more rows, more train.epochs, or a smaller train.batch_tokens",
        )


@contradiction
def unlabelled(s: Situation, done: Settled) -> Iterator[Finding]:
    if s.data is not None and s.task.name == "classification" and not s.data.classification:
        yield _found(
            "no-labels",
            "the task is classification, and the rows carry no label",
            "add labels ({text, label}), or choose another --task",
            "error",
        )


@contradiction
def leaks(s: Situation, done: Settled) -> Iterator[Finding]:
    if s.data is not None and s.data.duplicates > s.data.rows // 10:
        yield _found(
            "duplicates",
            f"{s.data.duplicates:,} of {s.data.rows:,} rows repeat another: they are trained as often as they stand",
            "take the copies out, or mean it",
        )
