"""LW4xx: the trainer around the adapter: precision, schedule, batch, checkpoints; renamed arguments: arguments.py."""

from collections.abc import Iterator

from lorawise.checking.families import family_of
from lorawise.checking.rules.rule import Hit, rule
from lorawise.checking.rules.scaling import FULL_RATE, WEAKEST
from lorawise.checking.script import Script
from lorawise.checking.script_setting import TRAINING
from lorawise.checking.setting import Setting

LARGE_BATCH = 128
BY_TRAINER = ("peft", "unsloth", "llama-factory")  # evaluates only when asked (ms-swift does whenever it saves)
SAVED_EVERY = 500  # steps, where Trainer is told nothing
TRIAL = 10  # steps: no more only try whether the script works


@rule("LW403", "warning", Setting)
def half_precision_on_a_bfloat16_model(setting: Setting) -> Iterator[Hit]:
    """fp16 training of a model whose weights are bfloat16.

    bfloat16 holds values float16 cannot (up to 3e38 against 65,504): activations overflow, the loss becomes NaN or the
    loss scaler skips steps. Where the model is loaded in bfloat16 by name, it is an error.

    Cure: bf16=True on any GPU since Ampere; on older ones load the model in float16 and look at the loss scale.

    Source: the guide's own script (torch_dtype="auto" of Llama 3.1 is bfloat16).
    """
    if setting.precision != "float16":
        return
    family = family_of(setting.model)
    if setting.model_precision == "bfloat16":
        yield Hit(
            message="fp16 training, and the base is loaded in bfloat16",
            cure="bf16 in both",
            line=setting.line("precision"),
            level="error",
        )
    elif setting.model_precision != "float16" and family is not None and family.bfloat16:
        yield Hit(
            message=f"fp16 training, and {setting.model} is stored in bfloat16",
            cure="bf16=True",
            line=setting.line("precision"),
        )


@rule("LW407", "warning", Setting)
def rate_of_full_fine_tuning(setting: Setting) -> Iterator[Hit]:
    """The learning rate is one of full fine-tuning: LoRA's best is about ten times higher.

    Often a trainer's default (transformers 5e-5, TRL 2e-5) that nobody wrote. A high alpha can make up for it, so the
    rule looks at alpha · lr too; preference tuning is not judged.

    Cure: 1e-4 to 3e-4 (the guide: 2e-4 / scaling).

    Source: LoRA Without Regret (10 ×, 15 × for short runs); EVIDENCE 2.
    """
    rate, strength = setting.learning_rate, setting.strength
    if rate is None or strength is None or setting.objective == "preference" or setting.tool == "mlx-lm":
        return
    if rate <= FULL_RATE and strength < 4 * WEAKEST:
        how = "the trainer's default" if "learning_rate" in setting.defaulted else "one of full fine-tuning"
        yield Hit(
            message=f"learning rate {rate:g} is {how}; with {setting} alpha · lr is {strength:.2g}",
            cure="1e-4 to 3e-4: LoRA wants about ten times full fine-tuning's",
            line=setting.line("learning_rate", "r"),
        )


@rule("LW408", "error", Setting)
def warmup_longer_than_the_run(setting: Setting) -> Iterator[Hit]:
    """The warm-up is as long as the run, or longer: the learning rate that is written is never reached.

    Cure: 3 to 10 % of the steps.

    Source: EVIDENCE 5 (silent failures); QLoRA, arXiv 2305.14314, warms up for 3 %.
    """
    if setting.warmup_steps and setting.steps and setting.steps > TRIAL and setting.warmup_steps >= setting.steps:
        yield Hit(
            message=f"{setting.warmup_steps} steps of warm-up in a run of {setting.steps}",
            cure=f"{max(1, setting.steps // 20)} steps",
            line=setting.line("warmup_steps", "steps"),
        )
    elif setting.warmup_share is not None and setting.warmup_share >= 0.5:
        yield Hit(
            message=f"warm-up for {setting.warmup_share:.0%} of the run",
            cure="0.03 to 0.1",
            line=setting.line("warmup_share"),
            level="error" if setting.warmup_share >= 1 else "warning",
        )


@rule("LW409", "error", Setting)
def best_model_out_of_step(setting: Setting) -> Iterator[Hit]:
    """The best model is to be loaded at the end, and saving is out of step with evaluating.

    load_best_model_at_end needs a checkpoint at every evaluation: the same strategy, and save_steps a multiple of
    eval_steps. Trainer refuses anything else.

    Cure: the same interval for both.

    Source: transformers 5.24, TrainingArguments.__post_init__.
    """
    if not setting.load_best:
        return
    evaluate, save = setting.evaluate_every, setting.save_every
    if save is None and not setting.written("save_every") and setting.tool in BY_TRAINER:
        save = SAVED_EVERY
    line = setting.line("load_best", "save_every")
    if evaluate in (None, "no") and not setting.written("evaluate_every") and setting.tool in BY_TRAINER:
        yield Hit(
            message="load_best_model_at_end without an evaluation", cure="eval_strategy, as save_strategy", line=line
        )
    elif evaluate == "no" or (isinstance(evaluate, str) != isinstance(save, str) and save is not None and evaluate):
        yield Hit(
            message=f"load_best_model_at_end, evaluating by {_said(evaluate)} and saving by {_said(save)}",
            cure="the same strategy for both",
            line=line,
        )
    elif isinstance(evaluate, int) and isinstance(save, int) and evaluate > 0 and save % evaluate:
        yield Hit(
            message=f"load_best_model_at_end, saving every {save} steps and evaluating every {evaluate}",
            cure=f"save every {evaluate * max(1, round(save / evaluate))}: a multiple",
            line=line,
        )


def _said(interval: int | str | None) -> str:
    return "steps" if isinstance(interval, int) else str(interval)


@rule("LW410", "warning", Setting)
def batch_beyond_the_evidence(setting: Setting) -> Iterator[Hit]:
    """The effective batch is larger than what LoRA was seen to do well at.

    Large batches hurt LoRA more than full fine-tuning, at any rank; the public sweeps end at 128 rows.

    Cure: 8 to 64 rows a step; less accumulation is also less waiting.

    Source: LoRA Without Regret; EVIDENCE 2.
    """
    if setting.batch is not None and setting.batch > LARGE_BATCH:
        yield Hit(
            message=f"{setting.batch} rows a step ({setting.rows_at_once} × {setting.accumulation or 1}"
            + (f" × {setting.devices})" if setting.devices else ")"),
            cure="8 to 64 rows",
            line=setting.line("accumulation", "rows_at_once"),
        )


@rule("LW411", "error", Script)
def checkpointing_with_frozen_inputs(script: Script) -> Iterator[Hit]:
    """Reentrant gradient checkpointing over frozen inputs: no gradient reaches the adapter.

    With use_reentrant=True a checkpointed block whose inputs need no gradient computes none. The embeddings of a LoRA
    run are frozen, so nothing trains, with no more than a warning, unless the model is told to make its inputs need
    gradients.

    Cure: gradient_checkpointing_kwargs={"use_reentrant": False}, or model.enable_input_require_grads().

    Source: EVIDENCE 5 (no gradient reaches the adapter).
    """
    told = any(True for _ in script.of("enable_input_require_grads", "prepare_model_for_kbit_training"))
    if told or not any(True for _ in script.of("LoraConfig")):
        return
    for call in script.of(*TRAINING, "gradient_checkpointing_enable"):
        options = call.get("gradient_checkpointing_kwargs")
        switched = call.leaf == "gradient_checkpointing_enable" or call.get("gradient_checkpointing") is True
        if switched and isinstance(options, dict) and options.get("use_reentrant") is True:
            yield Hit(
                message="reentrant checkpointing, and nothing makes the frozen inputs need gradients: nothing trains",
                cure='{"use_reentrant": False}',
                line=call.line_of("gradient_checkpointing_kwargs"),
            )


@rule("LW412", "note", Setting)
def four_bit_base_computed_in_float16(setting: Setting) -> Iterator[Hit]:
    """A 4-bit base is computed in float16, where bfloat16 is there on any GPU since Ampere.

    float16 overflows where bfloat16 does not. On a T4 or V100 it is right. When the same run trains in bf16, the
    hardware has it, and the mixture is a warning.

    Cure: bnb_4bit_compute_dtype=torch.bfloat16.

    Source: QLoRA, arXiv 2305.14314 (bfloat16 compute); the guide's QLoRA section writes float16.
    """
    if setting.compute_precision == "float16" and setting.quantization in ("nf4", "fp4", "4bit"):
        yield Hit(
            message="the 4-bit base is computed in float16",
            cure="bfloat16, unless the GPU is older than Ampere",
            line=setting.line("compute_precision"),
            level="warning" if setting.precision == "bfloat16" else None,
        )


@rule("LW414", "warning", Setting)
def four_bit_without_nf4(setting: Setting) -> Iterator[Hit]:
    """A 4-bit base in fp4, the library's default, where QLoRA's nf4 is better.

    BitsAndBytesConfig's bnb_4bit_quant_type is fp4 unless written.

    Cure: bnb_4bit_quant_type="nf4".

    Source: QLoRA, arXiv 2305.14314 (NF4 over FP4); transformers 5.24, BitsAndBytesConfig.
    """
    if setting.quantization == "fp4":
        yield Hit(
            message="the 4-bit base is fp4",
            cure="nf4",
            line=setting.line("quantization"),
        )


@rule("LW415", "error", Script)
def quantised_base_trained_whole(script: Script) -> Iterator[Hit]:
    """A quantised base goes to the trainer without an adapter: there is nothing in it that can be trained.

    Cure: get_peft_model(model, LoraConfig(...)), or peft_config= for TRL's trainers.

    Source: transformers 5.24, Trainer refuses purely quantised models.
    """
    quantised = [c for c in script.of("BitsAndBytesConfig") if True in (c.get("load_in_4bit"), c.get("load_in_8bit"))]
    adapted = any(
        True for _ in script.of("LoraConfig", "get_peft_model", "PeftModel", "prepare_model_for_kbit_training")
    )
    for call in script.of("Trainer", "SFTTrainer") if quantised and not adapted else ():
        if "from_pretrained" in script.text and "peft" not in script.text.lower() and not call.open:
            yield Hit(
                message="a quantised base is trained without an adapter",
                cure="get_peft_model(model, LoraConfig(…))",
                line=call.line,
            )


@rule("LW416", "error", Script)
def adapter_defined_and_not_used(script: Script) -> Iterator[Hit]:
    """A LoraConfig is made, and nothing is given it: the whole model trains, or nothing does.

    Cure: model = get_peft_model(model, config), or peft_config=config for TRL's trainers.

    Source: PEFT 0.21, get_peft_model.
    """
    for call in script.of("LoraConfig"):
        if (
            call.name.startswith("lorawise.")
            or not call.bound
            or not any(True for _ in script.of("Trainer", "SFTTrainer"))
        ):
            continue
        uses = script.text.count(call.bound.rpartition(".")[2])
        if uses == 1:
            yield Hit(
                message=f"{call.bound} is never given to a model or a trainer",
                cure="get_peft_model(model, …), or peft_config=…",
                line=call.line,
            )
