"""From a run file to a trainer: the base opened, every `auto` settled, adapters in, optimizer and evaluator ready."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from lorawise.base.errors import ConfigError, nearest
from lorawise.base.findings import Finding
from lorawise.data.batches import BatchOptions, BatchPlan, eval_batches
from lorawise.lora.adapters import Adapters
from lorawise.lora.config import LoraConfig, pattern_matches
from lorawise.lora.injection import inject
from lorawise.models.dtypes import choose_dtype
from lorawise.models.files import ModelFiles
from lorawise.models.open import HEAD, open_model
from lorawise.models.packing import PACKED, packing_support
from lorawise.models.window import require_known_tokens, window_of_model
from lorawise.planning.load import Load
from lorawise.runfile import RunFile
from lorawise.runfile.schema import QUANTISED
from lorawise.training.compiling import compile_layers
from lorawise.training.evaluate import Evaluator, Questions, questions_of
from lorawise.training.fitting import Fitted, fitted
from lorawise.training.heap import keep_freed_memory
from lorawise.training.inputs import Inputs
from lorawise.training.loop import Trainer, trained_parameters
from lorawise.training.memory import choose_mode, choose_tokens, keep_activations
from lorawise.training.objective import objective_of
from lorawise.training.optimizer import BankAdamW, SlotSettings
from lorawise.training.peers import ALONE, Peers
from lorawise.training.schedule import Schedule, warmup_steps


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """`run` is the file with every `auto` settled; `load` what planning predicts its memory from, if it can."""

    run: RunFile
    files: ModelFiles
    inputs: Inputs
    trainer: Trainer
    evaluator: Evaluator | None
    total: int
    findings: tuple[Finding, ...]
    load: Load | None = None

    @property
    def model(self) -> PreTrainedModel:
        return self.trainer.model

    @property
    def adapters(self) -> Adapters:
        return self.trainer.adapters


def prepare(run: RunFile, files: ModelFiles, inputs: Inputs, peers: Peers = ALONE) -> Prepared:
    """Everything up to the first forward pass. What `run` leaves `auto` is chosen here, once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = _with_dtypes(run, files, device)
    model = open_model(
        files,
        dtype=run.base.dtype,
        compute_dtype=run.base.compute_dtype,
        double_quant=run.base.double_quant,
        device=device,
        labels=inputs.labels if inputs.head else None,
        seed=run.train.seed,
    )
    if device.type == "cpu":
        keep_freed_memory()  # after the opening, whose large buffers go back
    require_known_tokens(model, max(each.highest_id for each in (inputs.train, inputs.validation) if each is not None))
    layout, findings = _layout(run, model)
    fit = _fitted(run, files, model, inputs, packed=layout == PACKED, share=peers.world)
    run = _settled(run, model, inputs, fit, share=peers.world)
    options = _batch_options(run, inputs, packed=layout == PACKED)
    plan = BatchPlan(inputs.train, options)
    total = run.train.steps or plan.steps_in(run.train.epochs or 1.0)
    schedule = Schedule(name=run.train.schedule, total=total, warmup=warmup_steps(run.train.warmup, total))
    adapters = inject(model, lora_config(run, head=inputs.head))
    _require_patterns_meant(adapters)
    keep_activations(model, run.train.memory)
    uncompiled = compile_layers(model, run.train.compile, memory=run.train.memory)
    optimizer = BankAdamW(trained_parameters(adapters), [slot_settings(run)], scaled=run.base.computes_in == "float16")
    trainer = Trainer(
        model=model,
        adapters=adapters,
        plan=plan,
        optimizer=optimizer,
        schedules=(schedule,),
        objective=objective_of("SEQ_CLS" if inputs.head else "CAUSAL_LM"),
        peers=peers,
    )
    return Prepared(
        run=run,
        files=files,
        inputs=inputs,
        trainer=trainer,
        evaluator=_evaluator(run, trainer, inputs, options),
        total=total,
        findings=(*inputs.findings, *findings, *_ranks_beyond(adapters), *_told(fit, uncompiled)),
        load=None if fit is None else fit.load,
    )


def _told(fit: Fitted | None, uncompiled: Finding | None) -> tuple[Finding, ...]:
    return (*(() if fit is None else fit.findings), *(() if uncompiled is None else (uncompiled,)))


def _with_dtypes(run: RunFile, files: ModelFiles, device: torch.device) -> RunFile:
    base = run.base
    chosen = choose_dtype(files.folder, base.dtype, device, compute=base.compute_dtype)
    return run.with_values(
        {"base.dtype": chosen.name, "base.compute_dtype": chosen.compute if chosen.name in QUANTISED else "auto"}
    )


def lora_config(run: RunFile, *, head: bool) -> LoraConfig:
    """The adapter's setting; a classification head is trained in full beside it."""
    config = run.lora_config()
    if head and HEAD not in config.modules_to_save:
        config = replace(config, modules_to_save=(*config.modules_to_save, HEAD))
    return config


def _require_patterns_meant(adapters: Adapters) -> None:
    """A pattern that matches no adapted module is a slip: what it was written for would train with the common r."""
    config, modules = adapters.configs[0], list(adapters.layers)
    for kind, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for pattern in patterns:
            if not any(pattern_matches(pattern, name) for name in modules):
                raise ConfigError(
                    f"lora.{kind} names {pattern!r}, which none of the {len(modules)} adapted modules is called",
                    expected="a regex on the end of a module's name",
                    cure=nearest(pattern, sorted({name.rpartition(".")[2] for name in modules})),
                )


def _ranks_beyond(adapters: Adapters) -> Iterator[Finding]:
    """B·A has no more rank than the layer's narrower side: what r has above it costs memory and adds nothing."""
    least = {name: min(layer.in_width, layer.out_width) for name, layer in adapters.layers.items()}
    beyond = [name for name, layer in adapters.layers.items() if max(layer.ranks) > least[name]]
    if beyond:
        first = min(beyond, key=lambda name: least[name])
        several = f" and {len(beyond) - 1:,} more adapted modules" if len(beyond) > 1 else ""
        yield Finding(
            code="rank-beyond-width",
            level="warning",
            message=f"r {max(adapters.layers[first].ranks)} is more than {first} ({least[first]:,} wide){several} can "
            "use: the update of a layer has no more rank than its narrower side",
            cure=f"lora.r: {least[first]} or less; or give those modules their own in lora.rank_pattern",
        )


def slot_settings(run: RunFile) -> SlotSettings:
    train = run.train
    return SlotSettings(
        learning_rate=train.learning_rate,
        lora_plus_ratio=train.lora_plus_ratio,
        weight_decay=train.weight_decay,
        betas=train.betas,
        eps=train.eps,
        clip=train.clip or 0.0,
    )


def _layout(run: RunFile, model: PreTrainedModel) -> tuple[str, tuple[Finding, ...]]:
    if not run.train.packing:
        return "padded", ()
    support = packing_support(model)
    if support == PACKED:
        return PACKED, ()
    note = Finding(
        code="no-packing",
        level="note",
        message=f"rows are trained one document a row, not packed: {support}",
        cure="train.packing: false says so in the run file",
    )
    return "padded", (note,)


def _fitted(
    run: RunFile, files: ModelFiles, model: PreTrainedModel, inputs: Inputs, *, packed: bool, share: int
) -> Fitted | None:
    longest = int(inputs.train.lengths.max())
    return fitted(run, files, model, longest=longest, step=_step_tokens(run, longest, share), packed=packed)


def _step_tokens(run: RunFile, longest: int, share: int) -> int:
    """Of one process, when a step is shared out among `share` of them."""
    return (run.train.batch_tokens or int(run.train.batch_size or 1) * longest) // share


def _settled(run: RunFile, model: PreTrainedModel, inputs: Inputs, fit: Fitted | None, *, share: int) -> RunFile:
    """What is `auto` becomes what fits by prediction, or where there is none what a rule of thumb says."""
    train, longest = run.train, int(inputs.train.lengths.max())
    values: dict[str, object] = {}
    if train.micro_batch_tokens == "auto":
        mode = "speed" if train.memory in ("auto", "speed", "balanced") else "frugal"
        step = _step_tokens(run, longest, share)
        by_rule = choose_tokens(model, step=step, longest=longest, mode=mode)
        values["train.micro_batch_tokens"] = by_rule if fit is None else fit.tokens
    if train.memory == "auto":
        tokens = values.get("train.micro_batch_tokens", train.micro_batch_tokens)
        values["train.memory"] = choose_mode(model, int(str(tokens))) if fit is None else fit.mode
    return run.with_values(values)


def _batch_options(run: RunFile, inputs: Inputs, *, packed: bool) -> BatchOptions:
    train = run.train
    assert isinstance(train.micro_batch_tokens, int), "settled above"
    return BatchOptions(
        layout="packed" if packed else "padded",
        batch_tokens=train.batch_tokens,
        batch_size=train.batch_size,
        micro_batch_tokens=train.micro_batch_tokens,
        micro_batch_size=None if train.micro_batch_size == "auto" else train.micro_batch_size,
        seed=train.seed,
        pad_id=inputs.tokenizer.pad_id,
    )


def _evaluator(run: RunFile, trainer: Trainer, inputs: Inputs, options: BatchOptions) -> Evaluator | None:
    if inputs.validation is None:
        return None
    return Evaluator(
        model=trainer.model,
        adapters=trainer.adapters,
        batches=eval_batches(inputs.validation, options),
        objective=objective_of("SEQ_CLS" if inputs.head else "CAUSAL_LM"),
        questions=_questions(run, trainer.model, inputs),
        labels=inputs.labels,
    )


def _questions(run: RunFile, model: PreTrainedModel, inputs: Inputs) -> Questions | None:
    """The first `eval_generate` validation rows; for labels as generated text all of them unless it says fewer."""
    assert inputs.validation_rows is not None
    generated_labels = bool(inputs.labels) and not inputs.head
    count = run.train.eval_generate or (len(inputs.validation_rows) if generated_labels else 0)
    if not count or inputs.head:
        return None
    return questions_of(
        inputs.validation_rows.rows[:count],
        inputs.tokenizer,
        inputs.options,
        inputs.train.stop_ids,
        window=window_of_model(model),
    )
