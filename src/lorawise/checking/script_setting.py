"""What a script trains: its LoRA settings, each with the training arguments and the base it is used with.

    LoraConfig(...)                          PEFT's defaults: r 8, lora_alpha 8
    FastLanguageModel.get_peft_model(...)    Unsloth's: r 16, lora_alpha 16
    TrainingArguments / SFTConfig / DPOConfig / …   transformers' learning rate 5e-5, TRL's own where it differs
    BitsAndBytesConfig, from_pretrained      how the base is held
Defaults: peft 0.21, transformers 5.24, trl 1.16 (tests hold them against the installed packages).
"""

from collections.abc import Iterator, Mapping

from lorawise.checking.draft import Draft, precision
from lorawise.checking.script import UNKNOWN, Call, Script
from lorawise.checking.setting import Setting

PREFERENCE = (
    "DPOConfig",
    "KTOConfig",
    "ORPOConfig",
    "GRPOConfig",
    "RLOOConfig",
    "CPOConfig",
    "PPOConfig",
    "RewardConfig",
)
TRAINING = ("TrainingArguments", "Seq2SeqTrainingArguments", "SFTConfig", "UnslothTrainingArguments", *PREFERENCE)
TRAINERS = ("Trainer", "Seq2SeqTrainer", "SFTTrainer", "UnslothTrainer")
LOADERS = ("from_pretrained",)

LORA_ARGUMENTS = {
    "r": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "target_modules": "targets",
    "layers_to_transform": "layers",
    "modules_to_save": "full",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
}
_TRAINING = {
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup_steps",
    "warmup_ratio": "warmup_share",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "rows_at_once",
    "gradient_accumulation_steps": "accumulation",
    "gradient_checkpointing": "checkpointing",
    "max_length": "max_length",
    "max_seq_length": "max_length",
    "packing": "packing",
    "assistant_only_loss": "assistant_only",
    "load_best_model_at_end": "load_best",
}
LORA_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "peft": {"r": 8, "alpha": 8.0},
    "unsloth": {"r": 16, "alpha": 16.0},
}
TRAINING_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "TrainingArguments": {"learning_rate": 5e-5, "rows_at_once": 8},
    "SFTConfig": {"learning_rate": 2e-5, "rows_at_once": 8},
}


def settings_of(script: Script) -> Iterator[Setting]:
    """One setting a LoRA configuration; training arguments join it when the script has exactly one set of them."""
    training = [call for call in script.of(*TRAINING) if _is_class(call)]
    for call in script.calls:
        tool = _lora_tool(call)
        if tool is None:
            continue
        draft = Draft(tool=tool, path=script.path)
        _take(draft, call, LORA_ARGUMENTS)
        for name, value in LORA_DEFAULTS[tool].items():
            if not call.open:
                draft.default(name, value)
        _add_base(draft, script)
        if len(training) == 1:
            _add_training(draft, training[0])
        _add_held_out(draft, script)
        yield draft.setting()


def _lora_tool(call: Call) -> str | None:
    if call.leaf == "LoraConfig" and not call.name.startswith("lorawise."):
        return "peft"
    if call.leaf == "get_peft_model" and call.name.split(".")[0] in ("unsloth", "FastLanguageModel", "FastModel"):
        return "unsloth"
    return None


def _is_class(call: Call) -> bool:
    """Not `TrainingArguments` of some other project: imported from a package that has it, or not imported by name."""
    return call.name.partition(".")[0] in ("transformers", "trl", "unsloth", call.leaf)


def _take(draft: Draft, call: Call, names: Mapping[str, str]) -> None:
    for argument, field in names.items():
        given = call.arguments.get(argument)
        if given is None:
            continue
        if given.value is UNKNOWN or _holds_unknown(given.value):
            draft.unknown(field, given.line)
        elif given.value is not None:
            draft.put(field, given.value, given.line)


def _holds_unknown(value: object) -> bool:
    return isinstance(value, dict) and any(entry is UNKNOWN for entry in value.values())


def _add_training(draft: Draft, call: Call) -> None:
    _take(draft, call, _TRAINING)
    if (draft.values.get("steps") or 1) <= 0:
        draft.values.pop("steps")
        draft.lines.pop("steps", None)
    share = draft.values.get("warmup_steps")
    if share is None and isinstance(call.get("warmup_steps"), float) and 0 < call.get("warmup_steps") < 1:
        draft.put("warmup_share", call.get("warmup_steps"), call.line_of("warmup_steps"))
        draft.values.pop("warmup_steps", None)
    for argument, meant in (("bf16", "bfloat16"), ("fp16", "float16")):
        if call.get(argument) is True:
            draft.put("precision", meant, call.line_of(argument))
    for field, word in (("evaluate_every", "eval"), ("save_every", "save")):
        _add_interval(draft, call, field, word)
    if call.leaf in PREFERENCE:
        draft.values["objective"] = "preference"
    elif not call.open:
        for name, value in TRAINING_DEFAULTS.get(call.leaf, TRAINING_DEFAULTS["TrainingArguments"]).items():
            draft.default(name, value)


def _add_interval(draft: Draft, call: Call, field: str, word: str) -> None:
    strategy = call.get(f"{word}_strategy", "evaluation_strategy" if word == "eval" else f"{word}_strategy")
    if strategy is UNKNOWN or strategy is None:
        return
    given = next(name for name in (f"{word}_strategy", "evaluation_strategy") if name in call.arguments)
    if strategy == "steps":
        count = call.get(f"{word}_steps")
        if count is None:
            count = 500 if word == "save" else call.get("logging_steps")
        draft.put(field, None if count is UNKNOWN else count, call.line_of(f"{word}_steps"))
    else:
        draft.put(field, strategy, call.line_of(given))


def _add_base(draft: Draft, script: Script) -> None:
    """From the call that loads the model, when there is one; its dtype, quantisation and attention."""
    loads = [c for c in script.of("from_pretrained") if "Tokenizer" not in c.name and "Processor" not in c.name]
    loads = [call for call in loads if "PeftModel" not in call.name and "Config" not in call.name]
    if len(loads) == 1:
        call = loads[0]
        first = call.positional[0] if call.positional else call.arguments.get("model_name") or None
        named = first or call.arguments.get("pretrained_model_name_or_path")
        if named is not None:
            draft.put("model", None if named.value is UNKNOWN else named.value, named.line)
        for argument in ("dtype", "torch_dtype"):
            if argument in call.arguments:
                value = call.get(argument)
                draft.put("model_precision", None if value is UNKNOWN else precision(value), call.line_of(argument))
        if isinstance(call.get("attn_implementation"), str):
            draft.put("attention", call.get("attn_implementation"), call.line_of("attn_implementation"))
        elif call.open:
            draft.unknown("attention", call.line)
        if call.get("load_in_4bit") is True:
            draft.put("quantization", "nf4" if draft.tool == "unsloth" else "4bit", call.line_of("load_in_4bit"))
    elif not loads:
        _add_named_model(draft, script)
    for call in script.of("BitsAndBytesConfig"):
        _add_quantization(draft, call)


def _add_named_model(draft: Draft, script: Script) -> None:
    """TRL loads it itself: SFTTrainer(model="…")."""
    for call in script.of(*TRAINERS):
        model = call.get("model") if "model" in call.arguments else None
        if isinstance(model, str):
            draft.put("model", model, call.line_of("model"))


def _add_quantization(draft: Draft, call: Call) -> None:
    if call.get("load_in_8bit") is True:
        draft.put("quantization", "int8", call.line_of("load_in_8bit"))
    if call.get("load_in_4bit") is not True:
        return
    kind = call.get("bnb_4bit_quant_type")
    draft.put("quantization", "4bit" if kind is UNKNOWN else kind or "fp4", call.line_of("load_in_4bit"))
    compute = call.get("bnb_4bit_compute_dtype")
    if compute is not None:
        value = None if compute is UNKNOWN else precision(compute)
        draft.put("compute_precision", value, call.line_of("bnb_4bit_compute_dtype"))


def _add_held_out(draft: Draft, script: Script) -> None:
    for call in script.of(*TRAINERS, "DPOTrainer", "KTOTrainer", "ORPOTrainer", "GRPOTrainer"):
        if "eval_dataset" in call.arguments:
            draft.put("validation", True, call.line_of("eval_dataset"))
        elif not call.open:
            draft.default("validation", False)
