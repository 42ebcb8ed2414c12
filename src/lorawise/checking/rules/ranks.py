"""LW2xx: ranks and targets: how much is adapted, and whether what is meant is there."""

from collections.abc import Iterator

from lorawise.base.errors import ConfigError
from lorawise.base.patterns import full_match
from lorawise.base.roles import role_of
from lorawise.checking.families import (
    LLAMA_NAMES,
    families_with,
    family_of,
    has_experts,
    is_known,
    is_tied,
    known_modules,
)
from lorawise.checking.rules.rule import Hit, rule
from lorawise.checking.setting import ALL_LINEAR, Setting
from lorawise.lora.config import PRESETS

_ENDS = frozenset({"head", "embedding"})


@rule("LW201", "warning", Setting)
def high_rank_by_default(setting: Setting) -> Iterator[Hit]:
    """r is 64 or more: rarely needed, and mostly a default nobody chose.

    Returns diminish above r 32. If r 8 does not work, the cause is usually the data or the targets. High ranks are
    right for a new language (r 128 or full fine-tuning) and for data sets that exceed the adapter's capacity.

    Cure: r 8 to 32 on all linear layers; raise it only when validation has a plateau that strength does not explain.

    Source: the guide, mistake 3 and rank guide; LoRA Without Regret (capacity: adapter parameters against trained
    tokens).
    """
    if setting.r is not None and setting.r >= 64 and setting.written("r") and setting.task != "language":
        yield Hit(
            message=f"r is {setting.r}: returns diminish above 32",
            cure="r 16 on all linear layers first; keep the scaling when you change r",
            line=setting.line("r"),
        )


@rule("LW203", "warning", Setting)
def high_rank_on_few_modules(setting: Setting) -> Iterator[Hit]:
    """A high rank on one or two modules, where a low rank on seven costs no more and does better.

    r 32 on q_proj and v_proj has about the parameters of r 8 on all seven of a layer. Broad coverage usually wins, and
    attention alone is worse at equal parameters.

    Cure: all linear layers at a quarter of the rank, with the same scaling.

    Source: the guide, mistake 4 ("r=8 on 7 modules before r=32 on 2"); LoRA Without Regret.
    """
    few = setting.names if len(setting.names) <= 2 else ()
    if setting.targets == "qv":
        few = ("q_proj", "v_proj")
    if few and setting.r is not None and setting.r >= 32 and not any(role_of(name) == "qkv" for name in few):
        yield Hit(
            message=f"r {setting.r} on {' and '.join(few)} only: low rank on every linear layer costs no more",
            cure=f"r {max(4, setting.r // 4)} on all linear layers",
            line=setting.line("targets", "r"),
        )


@rule("LW204", "error", Setting)
def target_that_nothing_is_called(setting: Setting) -> Iterator[Hit]:
    """A target is the name of no module of any known family: a typing slip, which adapts less than is meant.

    When one name of a list matches, PEFT says nothing of those that do not. A name that is one slip of the keyboard
    from a known one is an error; another unknown name among known ones is a note.

    Cure: the nearest known name is in the message.

    Source: EVIDENCE 4, "a loader that matches no module must refuse" (peft#2699, vllm#34186).
    """
    leaves = {name: name.rpartition(".")[2] for name in setting.names if name not in PRESETS}
    known = any(is_known(leaf) for leaf in leaves.values())
    for name, leaf in leaves.items() if not setting.base_known else ():
        if is_known(leaf) or not leaf.isidentifier():
            continue
        meant = next((module for module in sorted(known_modules()) if one_slip(leaf, module)), None)
        if meant or known:
            yield Hit(
                message=f"no known model has a module called {name!r}",
                cure=f"did you mean {meant!r}?" if meant else "check it against model.named_modules()",
                line=setting.line("targets"),
                level=None if meant else "note",
            )


def one_slip(written: str, meant: str) -> bool:
    """Whether one letter was left out, added, mistaken, or changed places with its neighbour."""
    short, long = sorted((written, meant), key=len)
    if len(long) - len(short) > 1 or short == long:
        return False
    at = next((i for i, pair in enumerate(zip(short, long, strict=False)) if pair[0] != pair[1]), len(short))
    if len(short) < len(long):
        return short[at:] == long[at + 1 :]
    swapped = short[at : at + 2] == long[at : at + 2][::-1] and short[at + 2 :] == long[at + 2 :]
    return swapped or short[at + 1 :] == long[at + 1 :]


@rule("LW205", "error", Setting)
def names_from_another_family(setting: Setting) -> Iterator[Hit]:
    """A target is the name of another model family's module: it matches nothing in this one.

    GPT-2 has c_attn, Phi-3 a fused qkv_proj, GPT-NeoX and Falcon query_key_value; q_proj is none of theirs.

    Cure: the family's own names are in the message; `all-linear` fits every family.

    Source: transformers' module names.
    """
    family = family_of(setting.model)
    if family is None or setting.base_known or setting.own_names:
        return
    foreign = [n for n in setting.names if n not in family.names and "." not in n and any(families_with(n))]
    if has_experts(setting.model):  # a name of the experts' projections is LW207's to tell
        foreign = [n for n in foreign if role_of(f"mlp.{n}") != "mlp"]
    if foreign:
        yield Hit(
            message=f"{', '.join(foreign)}: {family.title} models have no such module",
            cure=f"they have {', '.join(family.names)}; or all-linear",
            line=setting.line("targets"),
        )


@rule("LW206", "note", Setting)
def only_some_layers(setting: Setting) -> Iterator[Hit]:
    """Only some layers are adapted.

    mlx-lm adapts the last 16 layers unless told otherwise; layers_to_transform is often left over from an experiment.

    Cure: all layers (`num_layers: -1` in mlx-lm) unless memory forces you.

    Source: EVIDENCE 2 (mlx-lm's defaults).
    """
    if isinstance(setting.layers, int) and setting.layers > 0:
        told = "by default" if "layers" in setting.defaulted else "as written"
        yield Hit(
            message=f"only the last {setting.layers} layers are adapted ({told})",
            cure="num_layers: -1 adapts all",
            line=setting.line("layers"),
        )
    elif isinstance(setting.layers, (tuple, list)):
        yield Hit(
            message=f"only {len(setting.layers)} layers are adapted",
            cure="leave layers_to_transform away to adapt all",
            line=setting.line("layers"),
        )


@rule("LW207", "warning", Setting)
def fused_experts_missed(setting: Setting) -> Iterator[Hit]:
    """The model keeps its experts in fused parameters, which these targets do not reach.

    PEFT's all-linear skips gpt-oss's experts: most of the model stays as it was. (Mixtral's and Qwen3-MoE's it adapts,
    router included.)

    Cure: name the experts' parameters with target_parameters, or know that only attention is adapted.

    Source: EVIDENCE 5, measured with peft 0.21.2.
    """
    family = family_of(setting.model)
    if family is None or not family.fused_experts or setting.tool == "unsloth":
        return  # Unsloth reaches them by patches of its own
    meant = setting.targets == ALL_LINEAR or set(setting.names) & set(LLAMA_NAMES[4:])
    if meant:
        yield Hit(
            message=f"{family.title} keeps its experts in fused parameters: these targets do not reach them",
            cure="target_parameters in PEFT, or attention on purpose",
            line=setting.line("targets", "model"),
        )


@rule("LW208", "warning", Setting)
def ends_of_a_tied_model_trained(setting: Setting) -> Iterator[Hit]:
    """Head or embedding are trained on a model that ties them: one weight becomes two, or the training is lost.

    Merging a trained head into a tied model must untie it. It also saves the whole vocabulary with the adapter.

    Cure: leave them out unless new tokens were added; then train both, and say so when merging.

    Source: EVIDENCE 4.
    """
    ends = [name for name in (*setting.full, *setting.names) if role_of(name) in _ENDS]
    if ends and is_tied(setting.model):
        yield Hit(
            message=f"{', '.join(ends)} trained on {setting.model}, which ties head and embedding",
            cure="leave them out, or untie the model when merging",
            line=setting.line("full", "targets"),
        )


@rule("LW209", "note", Setting)
def few_modules(setting: Setting) -> Iterator[Hit]:
    """Only query and value projections are adapted.

    The original paper's choice, and the least memory; broader targets usually do better at the same parameters.

    Cure: all linear layers at r 8.

    Source: the guide, mistake 4; LoRA Without Regret (MLP layers matter most).
    """
    few = setting.targets == "qv" or set(setting.names) == {"q_proj", "v_proj"}
    if few and (setting.r or 0) < 32:
        yield Hit(
            message="only q_proj and v_proj are adapted",
            cure="all linear layers at a low rank usually do better",
            line=setting.line("targets"),
        )


@rule("LW210", "error", Setting)
def pattern_that_cannot_be_matched(setting: Setting) -> Iterator[Hit]:
    """target_modules is a regular expression that is broken, or that backtracks without end.

    Nested repeats such as (a+)+ can run for years on one name.

    Cure: list the names.

    Source: lorawise matches such patterns with a limit in time (base/patterns.py).
    """
    if not isinstance(setting.targets, str) or setting.targets in PRESETS:
        return
    try:
        for name in ("model.layers.0.self_attn.q_proj", "a" * 40 + "!"):
            full_match(setting.targets, name)
    except ConfigError as problem:
        yield Hit(message=problem.found, cure=problem.cure or "list the names", line=setting.line("targets"))
