"""A setting in another tool's terms: the same scaling, the same learning rate, so alpha · lr is what it was.

rsLoRA is folded into alpha where a tool has no switch for it (alpha' = scaling · r); what a tool cannot say at all is a
comment in its text, never dropped in silence. Reading the text back gives the same r, scaling, learning rate and batch.
"""

from collections.abc import Iterator

from lorawise.checking.setting import ALL_LINEAR, Setting

Lines = Iterator[str]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
_PRESETS = {"qv": ("q_proj", "v_proj"), "attention": ATTENTION, "mlp": MLP}
_LITGPT = {
    "q_proj": "lora_query",
    "k_proj": "lora_key",
    "v_proj": "lora_value",
    "o_proj": "lora_projection",
    "lm_head": "lora_head",
    **dict.fromkeys(MLP, "lora_mlp"),
}
_TO_TORCHTUNE = {"o_proj": "output_proj"}
_KEYS = {**{name: f"self_attn.{name}" for name in ATTENTION}, **{name: f"mlp.{name}" for name in MLP}}


def axolotl(setting: Setting) -> str:
    return _text(_axolotl(setting))


def _axolotl(s: Setting) -> Lines:
    yield from _pairs(base_model=s.model, adapter="qlora" if _four_bit(s) else "lora")
    if _four_bit(s):
        yield "load_in_4bit: true"
    yield from _pairs(lora_r=s.r, lora_alpha=s.alpha, lora_dropout=s.dropout or 0)
    if s.rslora:
        yield "peft_use_rslora: true"
    yield from _targets(s, linear="lora_target_linear: true", key="lora_target_modules")
    yield from _pairs(lora_modules_to_save=_flow(s.full), loraplus_lr_ratio=s.lora_plus_ratio)
    yield from _pairs(learning_rate=s.learning_rate, micro_batch_size=s.rows_at_once)
    yield from _pairs(gradient_accumulation_steps=s.accumulation, num_epochs=s.epochs, max_steps=s.steps)
    yield from _pairs(lr_scheduler=s.schedule, warmup_steps=s.warmup_steps, warmup_ratio=s.warmup_share)
    yield from _pairs(sequence_len=s.max_length, sample_packing=s.packing)


def llama_factory(setting: Setting) -> str:
    return _text(_llama_factory(setting))


def _llama_factory(s: Setting) -> Lines:
    yield from _pairs(model_name_or_path=s.model, stage="sft", finetuning_type="lora")
    if _four_bit(s):
        yield "quantization_bit: 4"
    yield from _pairs(lora_rank=s.r, lora_alpha=s.alpha, lora_dropout=s.dropout or 0)
    if s.rslora:
        yield "use_rslora: true"
    names = ",".join(_named(s))
    yield f"lora_target: {names or 'all'}"
    yield from _pairs(additional_target=",".join(s.full) or None, loraplus_lr_ratio=s.lora_plus_ratio)
    yield from _trainer(s)
    yield from _pairs(cutoff_len=s.max_length, packing=s.packing)


def swift(setting: Setting) -> str:
    return _text(_swift(setting))


def _swift(s: Setting) -> Lines:
    yield from _pairs(model=s.model, train_type="lora")
    if _four_bit(s):
        yield "quant_method: bnb"  # without it ms-swift quantizes nothing, whatever the bits
        yield "quant_bits: 4"
    yield from _pairs(lora_rank=s.r, lora_alpha=s.alpha, lora_dropout=s.dropout or 0)
    if s.rslora:
        yield "use_rslora: true"
    yield f"target_modules: {_flow(_named(s)) or ALL_LINEAR}"
    yield from _pairs(modules_to_save=_flow(s.full), lorap_lr_ratio=s.lora_plus_ratio)
    yield from _trainer(s)
    yield from _pairs(max_length=s.max_length, packing=s.packing)


def torchtune(setting: Setting) -> str:
    return _text(_torchtune(setting))


def _torchtune(s: Setting) -> Lines:
    names = _named(s) or (*ATTENTION, *MLP)
    attention = [_TO_TORCHTUNE.get(name, name) for name in names if name in ATTENTION]
    yield "model:"
    yield "  _component_: torchtune.models.FAMILY.lora_FAMILY_SIZE  # the builder of your model"
    yield f"  lora_attn_modules: {_flow(attention) or '[]'}"
    yield f"  apply_lora_to_mlp: {_word(bool(set(names) & set(MLP)))}"
    yield f"  apply_lora_to_output: {_word('lm_head' in names)}"
    yield from _pairs(indent="  ", lora_rank=s.r, lora_alpha=_folded(s), lora_dropout=s.dropout or 0)
    yield from _told(s, rslora=True)
    yield from (("optimizer:", f"  lr: {_number(s.learning_rate)}") if s.learning_rate else ())
    yield from _pairs(batch_size=s.rows_at_once, gradient_accumulation_steps=s.accumulation)
    yield from _pairs(epochs=s.epochs, max_steps_per_epoch=s.steps)
    yield from (("tokenizer:", f"  max_seq_len: {s.max_length}") if s.max_length else ())


def litgpt(setting: Setting) -> str:
    return _text(_litgpt(setting))


def _litgpt(s: Setting) -> Lines:
    names = _named(s) or (*ATTENTION, *MLP)
    yield from _pairs(checkpoint_dir=s.model, lora_r=s.r, lora_alpha=_folded(s), lora_dropout=s.dropout or 0)
    switched = {_LITGPT[name] for name in names if name in _LITGPT}
    for key in dict.fromkeys(_LITGPT.values()):
        yield f"{key}: {_word(key in switched)}"
    yield from _told(s, rslora=True, unsayable=[name for name in names if name not in _LITGPT])
    yield "train:"
    yield from _pairs(indent="  ", global_batch_size=s.batch, micro_batch_size=s.rows_at_once, epochs=_whole(s.epochs))
    yield from _pairs(indent="  ", max_steps=s.steps, max_seq_length=s.max_length, lr_warmup_steps=s.warmup_steps)
    if s.learning_rate:
        yield from ("optimizer:", "  class_path: torch.optim.AdamW", "  init_args:")
        yield f"    lr: {_number(s.learning_rate)}"


def mlx(setting: Setting) -> str:
    return _text(_mlx(setting))


def _mlx(s: Setting) -> Lines:
    yield from _pairs(model=s.model, fine_tune_type="lora", train=True)
    yield f"num_layers: {s.layers if isinstance(s.layers, int) else -1}  # -1: all; by default the last 16"
    yield "lora_parameters:"
    if names := _named(s):
        yield f"  keys: {_flow([_KEYS.get(name, name) for name in names])}"
    yield f"  rank: {s.r}"
    if s.scaling is not None:
        yield f"  scale: {_number(s.scaling)}  # multiplied in as it stands: alpha / r, not alpha"
    yield f"  dropout: {_number(s.dropout or 0)}"
    yield from _pairs(learning_rate=s.learning_rate, batch_size=s.rows_at_once, grad_accumulation_steps=s.accumulation)
    yield from _pairs(iters=s.steps, max_seq_length=s.max_length)
    yield from _told(s, rslora=True)
    if s.epochs and not s.steps:
        yield f"# {_number(s.epochs)} epochs: mlx-lm counts iterations; write iters: rows × epochs / batch"


def lorawise(setting: Setting) -> str:
    return _text(_lorawise(setting))


def _lorawise(s: Setting) -> Lines:
    yield from _pairs(model=s.model)
    yield "lora:"
    yield from _pairs(indent="  ", r=s.r, scaling=s.scaling)
    if s.rslora:
        yield "  rslora: true"
    yield from _pairs(indent="  ", dropout=s.dropout)
    yield f"  target_modules: {_flow(_named(s)) or ALL_LINEAR}"
    yield from _pairs(indent="  ", modules_to_save=_flow(s.full))
    yield "train:"
    yield from _pairs(indent="  ", learning_rate=s.learning_rate, batch_size=s.batch, epochs=s.epochs, steps=s.steps)
    yield from _pairs(indent="  ", max_length=s.max_length, lora_plus_ratio=s.lora_plus_ratio)


def peft(setting: Setting) -> str:
    return _text(_peft(setting))


def _peft(s: Setting) -> Lines:
    targets: object = list(_named(s)) or ALL_LINEAR
    yield "LoraConfig("
    yield f"    r={s.r},"
    yield f"    lora_alpha={_number(s.alpha)},  # scaling {_number(s.scaling)}"
    if s.rslora:
        yield "    use_rslora=True,"
    yield f"    lora_dropout={_number(s.dropout or 0)},"
    yield f"    target_modules={targets!r},"
    if s.full:
        yield f"    modules_to_save={list(s.full)!r},"
    yield '    task_type="CAUSAL_LM",'
    yield ")"
    yield "TrainingArguments("
    rows = {"learning_rate": s.learning_rate, "per_device_train_batch_size": s.rows_at_once}
    rows |= {"gradient_accumulation_steps": s.accumulation, "num_train_epochs": s.epochs, "max_steps": s.steps}
    yield from (f"    {name}={_number(value)}," for name, value in rows.items() if value is not None)
    yield ")"


def _trainer(s: Setting) -> Lines:
    yield from _pairs(learning_rate=s.learning_rate, per_device_train_batch_size=s.rows_at_once)
    yield from _pairs(gradient_accumulation_steps=s.accumulation, num_train_epochs=s.epochs, max_steps=s.steps)
    yield from _pairs(lr_scheduler_type=s.schedule, warmup_steps=s.warmup_steps, warmup_ratio=s.warmup_share)


def _targets(s: Setting, *, linear: str, key: str) -> Lines:
    yield f"{key}: {_flow(_named(s))}" if _named(s) else linear


def _named(s: Setting) -> tuple[str, ...]:
    """The targets as names; none for all linear layers."""
    if isinstance(s.targets, str):
        return _PRESETS.get(s.targets, ())
    return s.targets or ()


def _folded(s: Setting) -> float | None:
    """alpha for a tool that divides by r and knows no rsLoRA."""
    return s.scaling * s.r if s.scaling is not None and s.r else s.alpha


def _told(s: Setting, *, rslora: bool, unsayable: list[str] | None = None) -> Lines:
    if s.rslora and rslora:
        yield "# rsLoRA is folded into the number above: the scaling is the same"
    if unsayable:
        yield f"# not sayable here: {', '.join(unsayable)}"
    if s.full:
        yield f"# not sayable here: modules trained whole ({', '.join(s.full)})"


def _four_bit(s: Setting) -> bool:
    return s.quantization in ("nf4", "fp4", "4bit")


def _text(lines: Lines) -> str:
    return "\n".join(lines) + "\n"


def _pairs(*, indent: str = "", **values: object) -> Lines:
    yield from (f"{indent}{key}: {_word(value)}" for key, value in values.items() if value is not None)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _number(value) if isinstance(value, (int, float)) else str(value)


def _number(value: object) -> str:
    """As YAML 1.1 reads a number back: a mantissa with a point."""
    if not isinstance(value, float):
        return str(value)
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    mantissa, exponent, power = repr(value).partition("e")
    return mantissa + (".0" if exponent and "." not in mantissa else "") + exponent + power


def _whole(value: float | None) -> int | float | None:
    return int(value) if value is not None and value.is_integer() else value


def _flow(names: object) -> str | None:
    listed = list(names) if isinstance(names, (tuple, list)) else []
    return f"[{', '.join(listed)}]" if listed else None
