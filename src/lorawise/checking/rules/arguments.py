"""LW401, LW402, LW413: arguments that the installed libraries renamed, moved or no longer take."""

from collections.abc import Iterator, Mapping

from lorawise.checking.rules.rule import Fix, Hit, rule
from lorawise.checking.script import Argument, Call, Script
from lorawise.checking.script_setting import TRAINING

# Refused by transformers 5.24 and trl 1.16 (tests ask them). New name, or "" where it went without one.
REMOVED: Mapping[str, str] = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "use_mps_device": "",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "fp16_backend": "",
    "half_precision_backend": "",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
}
# Gone in transformers 5 only: right for who pins 4.
REMOVED_IN_5: Mapping[str, str] = {
    "warmup_ratio": "warmup_steps",
    "group_by_length": "",
    "overwrite_output_dir": "",
    "save_safetensors": "",
    "logging_dir": "",
}
SAME_VALUE = frozenset(
    {
        *("evaluation_strategy", "no_cuda", "per_gpu_train_batch_size", "per_gpu_eval_batch_size"),
        *("push_to_hub_token", "push_to_hub_model_id", "warmup_ratio"),
    }
)
TO_CONFIG = ("max_seq_length", "dataset_text_field", "packing", "dataset_num_proc")


def _renamed(call: Call, old: str, new: str, why: str, level: "str | None" = None) -> Hit:
    argument: Argument = call.arguments[old]
    fix = Fix(line=argument.line, column=argument.column, old=old, new=new) if new and argument.column >= 0 else None
    return Hit(
        message=f"{call.leaf}({old}=…): {why}",
        cure=f"write {new}" if new else "leave it out",
        line=argument.line,
        level="warning" if level == "warning" else None,
        fix=fix,
    )


@rule("LW401", "error", Script)
def argument_that_is_gone(script: Script) -> Iterator[Hit]:
    """An argument that TrainingArguments or TRL's configs no longer take: the script stops with a TypeError.

    evaluation_strategy became eval_strategy (transformers 4.46). Names that went with transformers 5 only
    (warmup_ratio: warmup_steps takes a share now) are warnings: they still work for who pins 4.

    Cure: the new name; `--fix` writes it.

    Source: transformers 5.24, TrainingArguments (a test asks the installed one).
    """
    for call in script.of(*TRAINING):
        for old, new in REMOVED.items():
            if old in call.arguments:
                kept = new if old in SAME_VALUE else ""
                yield _renamed(call, old, kept, "renamed, and refused since transformers 4.46" if new else "removed")
        for old, new in REMOVED_IN_5.items():
            if old in call.arguments and not script.uses("unsloth"):
                yield _renamed(call, old, new, "gone in transformers 5", "warning")
        if call.leaf == "SFTConfig" and "max_seq_length" in call.arguments and not script.uses("unsloth"):
            yield _renamed(call, "max_seq_length", "max_length", "renamed max_length in TRL 0.20")


@rule("LW402", "warning", Script)
def argument_of_loading_renamed(script: Script) -> Iterator[Hit]:
    """An argument of from_pretrained has a new name.

    torch_dtype is dtype, use_auth_token is token; the old ones still work, with a warning, and will go.

    Cure: the new name; `--fix` writes it.

    Source: transformers 5.24, from_pretrained.
    """
    for call in script.of("from_pretrained"):
        if call.name.split(".")[0] in ("FastLanguageModel", "FastModel", "unsloth"):
            continue
        for old, new in (("torch_dtype", "dtype"), ("use_auth_token", "token")):
            if old in call.arguments:
                yield _renamed(call, old, new, f"renamed {new}")


@rule("LW413", "error", Script)
def trainer_argument_moved(script: Script) -> Iterator[Hit]:
    """An argument the trainer no longer takes: tokenizer became processing_class, options moved to SFTConfig.

    Cure: processing_class=tokenizer (`--fix` writes it); max_length, packing and dataset_text_field belong in
    SFTConfig.

    Source: transformers 5.24 Trainer and trl 1.16 SFTTrainer (a test asks the installed ones).
    """
    if script.uses("unsloth"):
        return  # Unsloth's patched trainers still take the old names
    for call in script.of("Trainer", "SFTTrainer", "DPOTrainer"):
        if call.name.partition(".")[0] not in ("transformers", "trl", call.leaf):
            continue  # another project's, under the same name
        if "tokenizer" in call.arguments:
            yield _renamed(call, "tokenizer", "processing_class", "renamed processing_class")
        for name in TO_CONFIG if call.leaf == "SFTTrainer" else ():
            if name in call.arguments:
                yield Hit(
                    message=f"SFTTrainer({name}=…): moved to SFTConfig",
                    cure="give it to SFTConfig" + (" as max_length" if name == "max_seq_length" else ""),
                    line=call.line_of(name),
                )
