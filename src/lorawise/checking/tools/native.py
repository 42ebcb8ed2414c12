"""torchtune, LitGPT and mlx-lm: tools with their own names for layers, and one with its own scale.

    torchtune   lora_attn_modules + apply_lora_to_mlp; output_proj is o_proj, w1 w2 w3 are gate, down, up
    LitGPT      one flag a projection: lora_query, lora_key, lora_value, lora_projection, lora_mlp, lora_head
    mlx-lm      `scale` is multiplied in as it stands: alpha = scale · rank. Only the last `num_layers` are adapted
Sources: torchtune's recipe configs; LitGPT's config_hub; mlx-lm's lora_config example (rank 8, scale 20, 1e-5).
"""

from lorawise.checking.draft import Draft, flag, names, precision, real, whole
from lorawise.checking.tools.peers import steps_are_real
from lorawise.checking.tools.tool import Tool, add, says
from lorawise.checking.tools.writing import litgpt, mlx, torchtune
from lorawise.checking.tree import Tree

MLP = ("gate_proj", "up_proj", "down_proj")
_TORCHTUNE = {"output_proj": "o_proj", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
LITGPT = {
    "lora_query": ("q_proj",),
    "lora_key": ("k_proj",),
    "lora_value": ("v_proj",),
    "lora_projection": ("o_proj",),
    "lora_mlp": MLP,
    "lora_head": ("lm_head",),
}


def _torchtune_finish(tree: Tree, draft: Draft) -> None:
    steps_are_real(draft)
    if (per_epoch := draft.values.get("steps")) is not None:
        draft.values["steps"] = round(per_epoch * (draft.values.get("epochs") or 1))
    attention = tuple(_TORCHTUNE.get(name, name) for name in names(tree.get("model.lora_attn_modules")))
    mlp = MLP if flag(tree.get("model.apply_lora_to_mlp")) else ()
    head = ("lm_head",) if flag(tree.get("model.apply_lora_to_output")) else ()
    if attention or mlp or head:
        lines = [tree.lines.get(f"model.{key}") for key in ("lora_attn_modules", "apply_lora_to_mlp")]
        draft.put("targets", attention + mlp + head, next((line for line in lines if line), None))
    component = str(tree.get("model._component_") or "")
    draft.put("model", component.rpartition(".")[2], tree.lines.get("model._component_"))
    if flag(tree.get("model.quantize_base")) or "qlora" in component:
        draft.put("quantization", "nf4", tree.lines.get("model.quantize_base", tree.lines.get("model._component_")))


add(
    Tool(
        name="torchtune",
        title="torchtune",
        recognises=lambda tree: "lora" in str(tree.get("model._component_")) or says(tree, "model.lora_attn_modules"),
        keys={
            "model.lora_rank": "r",
            "model.lora_alpha": "alpha",
            "model.lora_dropout": "dropout",
            "model.use_dora": "dora",
            "optimizer.lr": "learning_rate",
            "lr_scheduler.num_warmup_steps": "warmup_steps",
            "batch_size": "rows_at_once",
            "gradient_accumulation_steps": "accumulation",
            "epochs": "epochs",
            "max_steps_per_epoch": "steps",
            "tokenizer.max_seq_len": "max_length",
            "dataset.packed": "packing",
            "dtype": "precision",
            "enable_activation_checkpointing": "checkpointing",
        },
        defaults={"attention": "block-diagonal", "own_names": True},
        finish=_torchtune_finish,
        write=torchtune,
    )
)


def _litgpt_finish(tree: Tree, draft: Draft) -> None:
    steps_are_real(draft)
    chosen = [(key, modules) for key, modules in LITGPT.items() if flag(tree.get(key))]
    if chosen:
        listed = tuple(module for _, modules in chosen for module in modules)
        draft.put("targets", listed, tree.lines[chosen[0][0]])
    elif not any(says(tree, key) for key in LITGPT):
        draft.default("targets", ("q_proj", "v_proj"))
    total, at_once = whole(tree.get("train.global_batch_size")), draft.values.get("rows_at_once")
    devices = whole(tree.get("devices")) or 1
    if total and at_once and total % (at_once * devices) == 0:
        draft.put("accumulation", total // (at_once * devices), tree.lines["train.global_batch_size"])
    quantize = str(tree.get("quantize") or "")
    if quantize.startswith("bnb."):
        kind = quantize.removeprefix("bnb.").partition("-")[0]
        draft.put("quantization", kind, tree.lines["quantize"])
    if (share := real(tree.get("data.init_args.val_split_fraction"))) is not None:
        draft.put("validation", share > 0, tree.lines["data.init_args.val_split_fraction"])


add(
    Tool(
        name="litgpt",
        title="LitGPT",
        recognises=lambda tree: says(tree, *LITGPT) or (says(tree, "checkpoint_dir", "lora_r") and says(tree, "train")),
        adapts=lambda tree: says(tree, "lora_r", *LITGPT),
        keys={
            "checkpoint_dir": "model",
            "lora_r": "r",
            "lora_alpha": "alpha",
            "lora_dropout": "dropout",
            "precision": "precision",
            "devices": "devices",
            "train.micro_batch_size": "rows_at_once",
            "train.lr_warmup_steps": "warmup_steps",
            "train.epochs": "epochs",
            "train.max_steps": "steps",
            "train.max_seq_length": "max_length",
            "train.learning_rate": "learning_rate",
            "optimizer.init_args.lr": "learning_rate",
        },
        defaults={"r": 8, "alpha": 16.0, "own_names": True},
        finish=_litgpt_finish,
        write=litgpt,
    )
)


_MLX_SCHEDULES = {"cosine_decay": "cosine", "linear_schedule": "linear"}  # as the other tools call them


def _mlx_finish(tree: Tree, draft: Draft) -> None:
    rank = draft.values.get("r", 8)
    scale = real(tree.get("lora_parameters.scale"))
    if scale is not None and rank:
        draft.put("alpha", scale * rank, tree.lines["lora_parameters.scale"])
    elif rank and not says(tree, "lora_parameters.alpha"):
        draft.default("alpha", 20.0 * rank)
    keys = names(tree.get("lora_parameters.keys"))
    if keys:
        draft.put("targets", tuple(key.rpartition(".")[2] for key in keys), tree.lines["lora_parameters.keys"])
    layers = whole(tree.get("num_layers"))
    if layers is not None and layers >= 0:
        draft.put("layers", layers, tree.lines["num_layers"])
    elif layers is None:
        draft.default("layers", 16)
    warmup = tree.get("lr_schedule.warmup")
    if warmup is not None:
        draft.put("warmup_steps", warmup, tree.lines["lr_schedule.warmup"])
    schedule = tree.get("lr_schedule.name")
    if isinstance(schedule, str):
        draft.put("schedule", _MLX_SCHEDULES.get(schedule, schedule), tree.lines["lr_schedule.name"])
    if precision(tree.get("dtype")):
        draft.put("precision", tree.get("dtype"), tree.lines["dtype"])


add(
    Tool(
        name="mlx-lm",
        title="mlx-lm",
        recognises=lambda tree: says(tree, "lora_parameters") or (says(tree, "fine_tune_type") and says(tree, "iters")),
        adapts=lambda tree: tree.get("fine_tune_type") in (None, "lora", "dora"),
        keys={
            "model": "model",
            "lora_parameters.rank": "r",
            "lora_parameters.dropout": "dropout",
            "learning_rate": "learning_rate",
            "batch_size": "rows_at_once",
            "grad_accumulation_steps": "accumulation",
            "iters": "steps",
            "max_seq_length": "max_length",
            "grad_checkpoint": "checkpointing",
            "mask_prompt": "assistant_only",
        },
        defaults={"r": 8, "learning_rate": 1e-5, "rows_at_once": 4, "steps": 1000, "max_length": 2048},
        finish=_mlx_finish,
        write=mlx,
    )
)
