"""Axolotl, LLaMA-Factory and ms-swift: flat YAML or JSON over the Hugging Face trainer.

Sources: Axolotl's config reference; LLaMA-Factory's hparams (finetuning_args: rank 8, alpha 2·rank, target all);
ms-swift's command-line parameters (lora_rank 8, lora_alpha 32, target_modules all-linear, learning rate 1e-4 for LoRA).
"""

from lorawise.checking.draft import Draft, flag, names, precision, real, whole
from lorawise.checking.setting import ALL_LINEAR
from lorawise.checking.tools.tool import Tool, add, says
from lorawise.checking.tools.writing import axolotl, llama_factory, swift
from lorawise.checking.tree import Tree

_TRAINER = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "rows_at_once",
    "gradient_accumulation_steps": "accumulation",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup_steps",
    "warmup_ratio": "warmup_share",
    "gradient_checkpointing": "checkpointing",
    "load_best_model_at_end": "load_best",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "lora_rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "packing": "packing",
}


def steps_are_real(draft: Draft) -> None:
    """Trainers write `max_steps: -1` (or 0) for "by epochs"."""
    if (draft.values.get("steps") or 0) <= 0:
        draft.values.pop("steps", None)
        draft.lines.pop("steps", None)


def intervals(tree: Tree, draft: Draft) -> None:
    """eval_strategy with eval_steps, save_strategy with save_steps → one interval each."""
    for field, word, count in (("evaluate_every", "eval", "eval_steps"), ("save_every", "save", "save_steps")):
        strategy = tree.get(f"{word}_strategy")
        key = f"{word}_strategy" if strategy not in (None, "steps") else count
        value = strategy if strategy not in (None, "steps") else tree.get(count)
        if value is not None:
            draft.put(field, "no" if value is False else value, tree.lines[key])


def step_precision(tree: Tree, draft: Draft, **words: str) -> None:
    """bf16: true, fp16: true; `auto` is left open."""
    for key, meant in {"bf16": "bfloat16", "fp16": "float16", **words}.items():
        if flag(tree.get(key)):
            draft.put("precision", meant, tree.lines[key])


def _axolotl_finish(tree: Tree, draft: Draft) -> None:
    steps_are_real(draft)
    step_precision(tree, draft, bfloat16="bfloat16", float16="float16")
    if flag(tree.get("lora_target_linear")):
        draft.put("targets", ALL_LINEAR, tree.lines["lora_target_linear"])
    if flag(tree.get("load_in_4bit")):
        draft.put("quantization", "nf4", tree.lines["load_in_4bit"])
    elif flag(tree.get("load_in_8bit")):
        draft.put("quantization", "int8", tree.lines["load_in_8bit"])
    for key in ("flash_attention", "flex_attention", "xformers_attention", "sdp_attention"):
        if flag(tree.get(key)):
            draft.put("attention", key.removesuffix("_attention"), tree.lines[key])
    _axolotl_held_out(tree, draft)
    _axolotl_intervals(tree, draft)
    if says(tree, "rl"):
        draft.put("objective", "preference", tree.lines["rl"])


def _axolotl_held_out(tree: Tree, draft: Draft) -> None:
    if says(tree, "test_datasets"):
        draft.put("validation", True, tree.lines["test_datasets"])
    elif (share := real(tree.get("val_set_size"))) is not None:
        draft.put("validation", share > 0, tree.lines["val_set_size"])


def _axolotl_intervals(tree: Tree, draft: Draft) -> None:
    """`evals_per_epoch: 4` is left as the word "share of an epoch": how many steps that is depends on the data."""
    intervals(tree, draft)
    for field, key in (("evaluate_every", "evals_per_epoch"), ("save_every", "saves_per_epoch")):
        if (count := whole(tree.get(key))) is not None:
            draft.put(field, f"1/{count} epoch" if count else "no", tree.lines[key])


add(
    Tool(
        name="axolotl",
        title="Axolotl",
        recognises=lambda tree: (
            says(tree, "base_model") and (says(tree, "adapter", "micro_batch_size", "lora_r", "sequence_len"))
        ),
        adapts=lambda tree: says(tree, "adapter", "lora_r"),
        keys={
            "base_model": "model",
            "lora_r": "r",
            "lora_alpha": "alpha",
            "lora_dropout": "dropout",
            "lora_target_modules": "targets",
            "lora_modules_to_save": "full",
            "peft_layers_to_transform": "layers",
            "peft_use_rslora": "rslora",
            "peft_use_dora": "dora",
            "loraplus_lr_ratio": "lora_plus_ratio",
            "learning_rate": "learning_rate",
            "lr_scheduler": "schedule",
            "warmup_steps": "warmup_steps",
            "warmup_ratio": "warmup_share",
            "num_epochs": "epochs",
            "max_steps": "steps",
            "micro_batch_size": "rows_at_once",
            "gradient_accumulation_steps": "accumulation",
            "sequence_len": "max_length",
            "sample_packing": "packing",
            "attn_implementation": "attention",
            "gradient_checkpointing": "checkpointing",
            "load_best_model_at_end": "load_best",
        },
        finish=_axolotl_finish,
        write=axolotl,
    )
)


def _llama_factory_finish(tree: Tree, draft: Draft) -> None:
    steps_are_real(draft)
    intervals(tree, draft)
    step_precision(tree, draft, pure_bf16="bfloat16")
    target = names(tree.get("lora_target"))
    if target:
        draft.put("targets", ALL_LINEAR if target == ("all",) else target, tree.lines["lora_target"])
    bits = whole(tree.get("quantization_bit"))
    if bits in (4, 8):
        kind = str(tree.get("quantization_type") or "nf4") if bits == 4 else "int8"
        draft.put("quantization", kind, tree.lines["quantization_bit"])
    if flag(tree.get("neat_packing")):
        draft.put("packing", True, tree.lines["neat_packing"])
        draft.put("attention", "block-diagonal", tree.lines["neat_packing"])
    if says(tree, "flash_attn") and tree.get("flash_attn") != "auto":
        draft.put("attention", tree.get("flash_attn"), tree.lines["flash_attn"])
    if says(tree, "eval_dataset"):
        draft.put("validation", True, tree.lines["eval_dataset"])
    elif (share := real(tree.get("val_size"))) is not None:
        draft.put("validation", share > 0, tree.lines["val_size"])
    else:
        draft.default("validation", False)
    if tree.get("stage") in ("dpo", "kto", "ppo", "rm"):
        draft.put("objective", "preference", tree.lines["stage"])
    if draft.values.get("r") is not None:
        draft.default("alpha", 2.0 * draft.values["r"])


add(
    Tool(
        name="llama-factory",
        title="LLaMA-Factory",
        recognises=lambda tree: (
            says(tree, "finetuning_type")
            or (says(tree, "model_name_or_path") and says(tree, "cutoff_len", "lora_target"))
        ),
        adapts=lambda tree: tree.get("finetuning_type") in (None, "lora"),
        keys=_TRAINER
        | {
            "model_name_or_path": "model",
            "additional_target": "full",
            "loraplus_lr_ratio": "lora_plus_ratio",
            "cutoff_len": "max_length",
        },
        defaults={"r": 8, "alpha": 16.0, "targets": ALL_LINEAR, "learning_rate": 5e-5, "rows_at_once": 8},
        finish=_llama_factory_finish,
        write=llama_factory,
    )
)


def _swift_finish(tree: Tree, draft: Draft) -> None:
    steps_are_real(draft)
    intervals(tree, draft)
    step_precision(tree, draft)
    if says(tree, "torch_dtype") and "precision" not in draft.values:
        draft.put("precision", precision(tree.get("torch_dtype")), tree.lines["torch_dtype"])
    bits = whole(tree.get("quant_bits"))
    if bits in (4, 8):
        kind = str(tree.get("bnb_4bit_quant_type") or "nf4") if bits == 4 else "int8"
        draft.put("quantization", kind, tree.lines["quant_bits"])
    if says(tree, "val_dataset"):
        draft.put("validation", True, tree.lines["val_dataset"])
    elif (share := real(tree.get("split_dataset_ratio"))) is not None:
        draft.put("validation", share > 0, tree.lines["split_dataset_ratio"])
    if says(tree, "rlhf_type"):
        draft.put("objective", "preference", tree.lines["rlhf_type"])


add(
    Tool(
        name="ms-swift",
        title="ms-swift",
        recognises=lambda tree: (
            says(tree, "train_type", "tuner_type")
            or (says(tree, "lora_rank", "target_modules") and says(tree, "model"))
        ),
        adapts=lambda tree: "lora" in str(tree.get("train_type") or tree.get("tuner_type") or "lora"),
        keys=_TRAINER
        | {
            "model": "model",
            "target_modules": "targets",
            "modules_to_save": "full",
            "lorap_lr_ratio": "lora_plus_ratio",
            "max_length": "max_length",
            "attn_impl": "attention",
            "bnb_4bit_compute_dtype": "compute_precision",
        },
        defaults={
            "r": 8,
            "alpha": 32.0,
            "targets": ALL_LINEAR,
            "learning_rate": 1e-4,
            "rows_at_once": 1,
        },
        finish=_swift_finish,
        write=swift,
    )
)
