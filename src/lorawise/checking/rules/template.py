"""LW30x: what a script or config does to the text: padding, BOS, masks, packing."""

import ast
from collections.abc import Iterator

from lorawise.checking.families import family_of
from lorawise.checking.rules.rule import Hit, rule
from lorawise.checking.script import UNKNOWN, Call, Script
from lorawise.checking.script_setting import TRAINERS, settings_of
from lorawise.checking.setting import Setting

BLOCKS = ("flash", "flex", "xformers", "block-diagonal", "fa2", "fa3", "kernels-community", "sdp")


@rule("LW301", "warning", Script)
def pad_is_eos(script: Script) -> Iterator[Hit]:
    """The padding token is the end-of-text token: where padding is masked, the end is never learned.

    DataCollatorForLanguageModeling sets the label of every pad token to -100, the row's own end among them: a model
    that never stops, unless its rows are cut from running text. Elsewhere it depends on who masks.

    Cure: take a token that ends nothing (`<|finetune_right_pad_id|>` of Llama 3, `<|endoftext|>` of Qwen, unk), or add
    one.

    Source: EVIDENCE 5 (the turn terminator must carry a label in some row).
    """
    masked = [call for call in script.of("DataCollatorForLanguageModeling") if call.get("mlm") is False]
    for assigned in script.assigned:
        ours = assigned.target.endswith((".pad_token", ".pad_token_id"))
        if ours and assigned.source.endswith((".eos_token", ".eos_token_id")):
            why = "the collator masks every pad, its row's end too" if masked else "a masked end is never learned"
            yield Hit(
                message=f"{assigned.target} = {assigned.source}: {why}",
                cure="a pad token that ends nothing, or mask by attention_mask",
                line=assigned.line,
            )


@rule("LW304", "warning", Script)
def two_bos(script: Script) -> Iterator[Hit]:
    """The chat template writes BOS, and tokenising its text adds a second one.

    apply_chat_template(tokenize=False) returns text that already begins with BOS where the template has one (Llama,
    Mistral, Gemma); tokenizer(text) adds its own. Training then sees what serving never shows. Of a family known to do
    both it is an error.

    Cure: tokenizer(text, add_special_tokens=False), or apply_chat_template(tokenize=True).

    Source: EVIDENCE 5 (count BOS in the final ids).
    """
    known = any((family := family_of(setting.model)) and family.bos for setting in settings_of(script))
    silent = any((family := family_of(setting.model)) and not family.bos for setting in settings_of(script))
    if silent:
        return
    for function in script.functions.values():
        inside = {id(node) for node in ast.walk(function)}
        calls = [call for call in script.calls if id(call.node) in inside]
        rendered = {
            call.bound: call for call in calls if call.leaf == "apply_chat_template" and call.get("tokenize") is False
        }
        for call in calls:
            first = call.positional[0].node if call.positional else None
            direct = isinstance(first, ast.Call) and any(first is each.node for each in rendered.values())
            named = isinstance(first, ast.Name) and first.id in rendered and first.id
            if call.leaf in ("tokenizer", "encode") and (direct or named) and call.get("add_special_tokens") is None:
                yield Hit(
                    message="the template's text begins with BOS and the tokenizer adds another",
                    cure="tokenizer(text, add_special_tokens=False, …)",
                    line=call.line,
                    level="error" if known else None,
                )


@rule("LW305", "warning", Script)
def assistant_loss_without_marks(script: Script) -> Iterator[Hit]:
    """Assistant-only loss is asked for, and the chat template set here marks no answer.

    assistant_only_loss reads the {% generation %} marks of the template. Without them every label is -100, and the loss
    is 0 or NaN. A template that is set in the script and has no such mark is an error; TRL mends only the templates it
    knows.

    Cure: put {% generation %} … {% endgeneration %} around the answer in the template, or use prompt/completion rows.

    Source: EVIDENCE 5 (assistant mask all zero); trl 1.16, SFTConfig.assistant_only_loss.
    """
    for call in script.of("SFTConfig"):
        if call.get("assistant_only_loss") is not True:
            continue
        for assigned in script.assigned:
            template = assigned.value
            if (
                assigned.target.endswith(".chat_template")
                and isinstance(template, str)
                and "generation %}" not in template
            ):
                yield Hit(
                    message="assistant_only_loss, and this template has no {% generation %} marks: nothing is trained",
                    cure="mark the answer in the template",
                    line=assigned.line,
                    level="error",
                )


@rule("LW306", "warning", Setting)
def packing_without_blocks(setting: Setting) -> Iterator[Hit]:
    """Rows are packed and the attention does not keep them apart: documents see each other.

    Packed rows need a variable-length or block-diagonal attention. With eager or plain SDPA attention they are one long
    text to the model. An attention that is written and cannot do it is an error; one that is not written depends on the
    tool's default.

    Cure: flash attention (`attn_implementation="flash_attention_2"`, `flash_attention: true`, `neat_packing: true`), or
    no packing.

    Source: EVIDENCE 6 (packing without leakage); law 8 of the design.
    """
    if not setting.packing or (setting.written("attention") and setting.attention is None):
        return
    if setting.attention is not None and any(word in setting.attention.lower() for word in BLOCKS if word != "sdp"):
        return
    if setting.tool == "axolotl" and setting.attention in ("sdp", "sdpa", "eager"):
        return  # it drops the mask, and transformers keeps documents apart by their positions
    if setting.tool in ("unsloth", "litgpt", "mlx-lm"):
        return
    how = f"attention is {setting.attention}" if setting.attention else "no attention that keeps rows apart is set"
    yield Hit(
        message=f"rows are packed and {how}: they see each other",
        cure="flash attention, or no packing",
        line=setting.line("packing", "attention"),
        level="error" if setting.attention in ("eager", "sdpa") and setting.tool == "peft" else None,
    )


def trainers(script: Script) -> Iterator[Call]:
    """Trainers of transformers itself, which collate nothing for language models unless told."""
    return (
        call
        for call in script.of("Trainer", "Seq2SeqTrainer")
        if call.name.split(".")[0] in ("transformers", call.leaf)
    )


@rule("LW314", "error", Script)
def labels_missing(script: Script) -> Iterator[Hit]:
    """Nothing makes labels: the rows have none and no collator adds them.

    Trainer needs `labels` in every batch. A tokenizer returns input_ids and attention_mask only; without
    DataCollatorForLanguageModeling (or a data collator of one's own) the first step ends with "The model did not return
    a loss".

    Cure: data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False) with another pad than EOS, or set labels
    in the map; to train answers alone use prompt/completion rows with TRL.

    Source: the guide's own script; transformers 5.24, Trainer.compute_loss.
    """
    if "labels" in script.text:
        return
    for call in trainers(script):
        if call.get("data_collator") is None and _tokenises(script):
            yield Hit(
                message="the rows have no labels and no collator makes them: Trainer stops at the first step",
                cure="data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False)",
                line=call.line,
            )


@rule("LW315", "error", Script)
def rows_of_uneven_length(script: Script) -> Iterator[Hit]:
    """Rows are tokenised without padding and no collator pads them: a batch of two lengths cannot be stacked.

    truncation=True cuts long rows and leaves short ones short. Trainer pads only when it is given a collator that does,
    or the tokenizer as processing_class.

    Cure: a collator that pads; with padding="max_length" every row costs the longest.

    Source: the guide's own script; transformers 5.24, default_data_collator.
    """
    for call in trainers(script):
        padded = any(c.get("padding") not in (None, False) for c in _tokenisers(script))
        alone = any(s.rows_at_once == 1 for s in settings_of(script))
        pads = call.get("data_collator") is not None or call.get("processing_class", "tokenizer") is not None
        if _tokenises(script) and not padded and not alone and not pads:
            yield Hit(
                message="rows differ in length and nothing pads them: the first uneven batch stops the run",
                cure="a data collator that pads",
                line=call.line,
            )


@rule("LW316", "error", Script)
def no_validation_split(script: Script) -> Iterator[Hit]:
    """Evaluation is asked for, and load_dataset of one file has no validation split to give.

    load_dataset("json", data_files="x.jsonl") makes a split called train and no other: `.get("validation")` is None
    (and ["validation"] a KeyError), and Trainer refuses an evaluation strategy without an eval_dataset.

    Cure: dataset["train"].train_test_split(test_size=0.05), or data_files={"train": …, "validation": …}.

    Source: the guide's own script; transformers 5.24, Trainer.__init__.
    """
    if "train_test_split" in script.text or not any(_one_split(call) for call in script.of("load_dataset")):
        return
    asked = any(s.evaluate_every not in (None, "no") for s in settings_of(script))
    for call in script.of(*TRAINERS):
        held_out = call.arguments.get("eval_dataset")
        if held_out is not None and asked and _asks_for(held_out.node) in ("validation", "test"):
            yield Hit(
                message=f"one file has no {_asks_for(held_out.node)} split, and evaluation is asked for",
                cure='split it: dataset["train"].train_test_split(test_size=0.05)',
                line=held_out.line,
            )


def _one_split(call: Call) -> bool:
    kind = call.positional[0].value if call.positional else None
    files = call.get("data_files")
    return kind in ("json", "csv", "parquet", "text") and isinstance(files, (str, list)) and call.get("split") is None


def _asks_for(node: ast.expr) -> str:
    """`d["validation"]` and `d.get("validation")` → "validation"."""
    match node:
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return name
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(name)), *_]):
            return name
    return ""


def _tokenisers(script: Script) -> Iterator[Call]:
    return (c for c in script.calls if c.leaf in ("tokenizer", "tok") and c.name.count(".") <= 1)


def _tokenises(script: Script) -> bool:
    """The script makes its rows itself, in a function that is mapped over them."""
    mapped = any(call.leaf == "map" for call in script.calls)
    return (
        mapped
        and any(True for _ in _tokenisers(script))
        and all(c.get("data_collator") is not UNKNOWN for c in trainers(script))
    )


@rule("LW308", "note", Setting)
def validation_missing(setting: Setting) -> Iterator[Hit]:
    """Nothing is held out: nobody will see when the adapter begins to overfit.

    The guide's rule for the rank (raise it on a plateau, lower it when overfitting) reads the validation loss.

    Cure: hold out 5 % or 30 rows, whichever is more.

    Source: the guide, rank selection.
    """
    if setting.validation is False and setting.objective == "sft":
        yield Hit(
            message="nothing is held out for validation",
            cure="hold out 5 % of the rows",
            line=setting.line("validation", "evaluate_every"),
        )


@rule("LW317", "warning", Setting)
def evaluation_never_runs(setting: Setting) -> Iterator[Hit]:
    """Rows are held out and no evaluation is scheduled: they are lost to training and never looked at.

    Trainer's eval_strategy is "no" by default.

    Cure: eval_strategy="steps" with eval_steps, or "epoch".

    Source: transformers 5.24, TrainingArguments.eval_strategy.
    """
    trainer = setting.tool in ("peft", "unsloth", "llama-factory") and setting.written("learning_rate")
    if trainer and setting.known("validation") and setting.validation and setting.evaluate_every == "no":
        yield Hit(
            message="rows are held out and eval_strategy is no: they are never looked at",
            cure='eval_strategy="steps"',
            line=setting.line("evaluate_every", "validation"),
        )
