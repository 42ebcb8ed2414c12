"""The run file: one page that says everything about a run, frozen and checked at birth (DESIGN 3).

    RunFile ─┬─ model, task
             ├─ data   what to learn from
             ├─ base   how the frozen model is held
             ├─ lora   what to adapt and how strongly: r, alpha, scaling
             └─ train  how long, how fast, in what bites

Each field's description is the comment `to_yaml` writes beside it. Defaults carry their source here. One of a pair
(epochs | steps, batch_tokens | batch_size, scaling | alpha) is written; the pair is settled at birth.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lorawise.base.errors import ConfigError
from lorawise.data.formats import FORMATS as ROW_FORMATS
from lorawise.data.rows import MAX_WEIGHT
from lorawise.lora.config import LoraConfig
from lorawise.runfile import fields as kinds
from lorawise.runfile.fields import (
    Auto,
    Count,
    Flag,
    Names,
    NonNegative,
    Place,
    Positive,
    PositiveReal,
    Share,
    Text,
    kind,
    word,
)

# The rows of the guide's cheat sheet, and the two cases of its "When LoRA Is Not Enough".
TASKS = ("chat", "style", "domain", "language", "multitask", "classification", "new-language", "new-behaviour")
FORMATS = ("auto", *ROW_FORMATS)
COMPUTE_DTYPES = ("auto", "bfloat16", "float16", "float32")
QUANTISED = ("nf4", "int8")
DTYPES = (*COMPUTE_DTYPES, *QUANTISED)
MEMORY = ("auto", "speed", "balanced", "frugal", "offload")
COMPILE = ("off", "auto", "on")
SCHEDULES = ("constant", "linear", "cosine", "wsd")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")

Pair = tuple[str, str]
EXCLUSIVE: Mapping[str, tuple[Pair, ...]] = {
    "train": (("epochs", "steps"), ("batch_tokens", "batch_size")),
    "lora": (("scaling", "alpha"),),
}


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    section: ClassVar[str] = ""

    @classmethod
    def conflicts(cls, written: Mapping[str, object]) -> Iterator[str]:
        """Pairs that cannot both be meant; each line opens with the dotted key it is about."""
        for first, second in EXCLUSIVE.get(cls.section, ()):
            if cls.section != "lora" and written.get(first) is not None and written.get(second) is not None:
                yield f"{cls.section}.{second}: {cls.section}.{first} is written too; write one of the two"

    def _settle(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)  # only while the frozen value is being born


class DataSource(_Settings):
    path: Place = Field(description="a file or a hub id")
    weight: Annotated[float, kind(kinds.real(above=0.0, below=MAX_WEIGHT + 1.0))] = Field(
        1.0, description="how often its rows are drawn, against the others"
    )
    split: Text = Field("train", description="of a hub data set, with slicing: train[:1000]")
    subset: Annotated[str | None, kind(kinds.optional(kinds.text))] = Field(None, description="of a hub data set")


def _sources(value: object) -> object:
    """`train.jsonl`, `[a.jsonl, {path: b.jsonl, weight: 2}]` or one mapping: always a tuple of sources."""
    entries = value if isinstance(value, (list, tuple)) else [value]
    if not entries:
        raise ValueError("the list is empty: nothing to train on")
    for entry in entries:
        if not isinstance(entry, (str, Mapping, DataSource)):
            raise ValueError(f"{entry!r} is neither a path, a hub id, nor {{path: …, weight: …}}")
    return tuple({"path": entry} if isinstance(entry, str) else entry for entry in entries)


class DataSettings(_Settings):
    section: ClassVar[str] = "data"

    train: Annotated[tuple[DataSource, ...], BeforeValidator(_sources)] = Field(description="file, hub id, or several")
    validation: Annotated[str | int | float | None, kind(kinds.validation)] = Field(
        0.05, description="a file, a share of train, a number of rows, or null"
    )
    format: Annotated[str, kind(word(*FORMATS))] = Field("auto", description=" | ".join(FORMATS))
    on_bad: Annotated[Literal["stop", "skip"], kind(word("stop", "skip"))] = Field(
        "stop", description="a row that cannot be read: stop | skip"
    )
    train_on: Annotated[Literal["all", "last"], kind(word("all", "last"))] = Field(
        "all", description="assistant turns that are learned: all | last"
    )
    labels_as: Annotated[Literal["head", "text"], kind(word("head", "text"))] = Field(
        "head", description="classification: a score head, or the label as generated text"
    )
    template: Annotated[str | None, kind(kinds.optional(kinds.text))] = Field(
        None, description="in place of the model's chat template: chatml, or a .jinja file"
    )
    date: Annotated[str, kind(kinds.either("auto", kinds.day))] = Field(
        "auto", description="that a chat template may print: YYYY-MM-DD; auto: the day the run starts"
    )


class BaseSettings(_Settings):
    """nf4 with double quantisation is QLoRA's (2305.14314), and the guide's own setting."""

    section: ClassVar[str] = "base"

    dtype: Annotated[str, kind(word(*DTYPES))] = Field("auto", description=" | ".join(DTYPES))
    compute_dtype: Annotated[str, kind(word(*COMPUTE_DTYPES))] = Field(
        "auto", description="of products over nf4 or int8: bfloat16 | float16 | float32"
    )
    double_quant: Flag = Field(True, description="nf4: its scales in 8 bits too")

    @property
    def computes_in(self) -> str:
        """The type of products: the base's own, or that of one in few bits."""
        return self.compute_dtype if self.dtype in QUANTISED else self.dtype


class LoraSettings(_Settings):
    """As `lorawise.LoraConfig`.

    r 16 on all linear layers at scaling 2: the guide's community scaling (r 8, alpha 16), broad targets before high
    rank (guide; LoRA Without Regret), no dropout (Unsloth's guide; EVIDENCE 2).
    """

    section: ClassVar[str] = "lora"

    r: Positive = Field(16, description="rank: how complex a correction it can learn")
    alpha: Annotated[float | None, kind(kinds.optional(kinds.real(above=0.0)))] = Field(
        None, description="scaling × r; either one may be written"
    )
    scaling: Annotated[float | None, kind(kinds.optional(kinds.real(above=0.0)))] = Field(
        None, description="alpha / r: how strongly it acts"
    )
    rslora: Flag = Field(False, description="scaling = alpha / √r instead")
    dropout: Share = Field(0.0, description="of the adapter's input while training")
    target_modules: Annotated[str | tuple[str, ...], kind(kinds.text_or_names)] = Field(
        "all-linear", description="qv | attention | mlp | all-linear | a regex | [names]"
    )
    exclude_modules: Annotated[str | tuple[str, ...], kind(kinds.text_or_names)] = Field(
        (), description="taken away from the targets"
    )
    layers: Annotated[tuple[int, ...] | None, kind(kinds.optional(kinds.indices))] = Field(
        None, description="decoder layers to adapt; null: all"
    )
    rank_pattern: Annotated[dict[str, int], kind(kinds.patterns(kinds.whole(1)))] = Field(
        default_factory=dict, description="module pattern → its own r"
    )
    alpha_pattern: Annotated[dict[str, float], kind(kinds.patterns(kinds.real(above=0.0)))] = Field(
        default_factory=dict, description="module pattern → its own alpha"
    )
    expert_r: Annotated[int | None, kind(kinds.optional(kinds.whole(1)))] = Field(
        None, description="rank of each fused expert, at the same scaling; null: r"
    )
    modules_to_save: Names = Field((), description="trained in full and saved with the adapter")
    bias: Annotated[Literal["none", "all", "lora_only"], kind(word("none", "all", "lora_only"))] = Field(
        "none", description="none | all | lora_only"
    )
    init: Annotated[str, kind(kinds.text)] = Field("kaiming", description="of A: kaiming | gaussian")
    seed: Annotated[int | None, kind(kinds.optional(kinds.whole(0)))] = Field(
        None, description="of A; null takes train.seed"
    )

    @model_validator(mode="after")
    def _settle_scaling(self) -> Self:
        config = self.config(seed=0)
        self._settle(alpha=config.alpha, scaling=config.scaling)
        return self

    def config(self, *, seed: int) -> LoraConfig:
        """The adapter's setting; `seed` where the file names none of its own."""
        values: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        try:
            return LoraConfig(**(values | {"seed": seed if self.seed is None else self.seed}))
        except ConfigError as problem:
            raise ValueError(f"lora: {problem.found}") from None


class TrainSettings(_Settings):
    """Where each default comes from:

    epochs 3, learning_rate 2e-4: the guide's script; 2e-4 is also Unsloth's and TRL's advice, and sweeps put the best
    LoRA rate between 1e-4 and 1e-3 (EVIDENCE 2). max_length 2048: the guide. clip 1.0, betas, eps,
    weight_decay 0: transformers' Trainer. warmup 0.03, cosine: QLoRA (2305.14314) and DESIGN 3. lora_plus_ratio 1 is
    plain LoRA; LoRA+ (2402.12354) takes about 16. batch_tokens 4096: DESIGN 3; small batches suit LoRA (LoRA Without
    Regret).
    """

    section: ClassVar[str] = "train"
    default_epochs: ClassVar[float] = 3
    default_batch_tokens: ClassVar[int] = 4096

    epochs: Annotated[float | None, kind(kinds.optional(kinds.real(above=0.0)))] = Field(
        None, description="passes over the data; or steps"
    )
    steps: Annotated[int | None, kind(kinds.optional(kinds.whole(1)))] = Field(
        None, description="optimizer steps; or epochs"
    )
    learning_rate: PositiveReal = Field(2e-4, description="peak; higher scaling wants lower")
    max_length: Annotated[int, kind(kinds.whole(2))] = Field(
        2048, description="tokens a row may have; longer ones are cut and counted"
    )
    packing: Flag = Field(True, description="several rows in one, none seeing another")
    batch_tokens: Annotated[int | None, kind(kinds.optional(kinds.whole(1)))] = Field(
        None, description="tokens an optimizer step; or batch_size"
    )
    batch_size: Annotated[int | None, kind(kinds.optional(kinds.whole(1)))] = Field(
        None, description="rows an optimizer step; or batch_tokens"
    )
    micro_batch_size: Annotated[int | Auto, kind(kinds.either("auto", kinds.whole(1)))] = Field(
        "auto", description="rows at once, when not packed"
    )
    micro_batch_tokens: Annotated[int | Auto, kind(kinds.either("auto", kinds.whole(1)))] = Field(
        "auto", description="tokens at once, when packed"
    )
    memory: Annotated[str, kind(word(*MEMORY))] = Field("auto", description=" | ".join(MEMORY))
    compile: Annotated[str, kind(word(*COMPILE))] = Field("off", description="decoder layers: off | auto | on")
    schedule: Annotated[str, kind(word(*SCHEDULES))] = Field("cosine", description=" | ".join(SCHEDULES))
    warmup: Annotated[int | float, kind(kinds.steps_or_share)] = Field(0.03, description="a share of the run, or steps")
    weight_decay: NonNegative = Field(0.0, description="of A and B")
    clip: Annotated[float | None, kind(kinds.optional(kinds.real(above=0.0)))] = Field(
        1.0, description="largest gradient norm; null: none"
    )
    lora_plus_ratio: PositiveReal = Field(1.0, description="learning rate of B over that of A; divides B's eps")
    betas: Annotated[tuple[float, float], kind(kinds.betas)] = Field((0.9, 0.999), description="of AdamW")
    eps: PositiveReal = Field(1e-8, description="of AdamW")
    eval_every: Annotated[int | Literal["epoch"], kind(kinds.either("epoch", kinds.whole(1)))] = Field(
        "epoch", description="steps, or epoch"
    )
    eval_generate: Count = Field(0, description="validation rows answered in full for exact match")
    save_every: Annotated[int | Literal["epoch"], kind(kinds.either("epoch", kinds.whole(1)))] = Field(
        100, description="steps between checkpoints, or epoch"
    )
    keep_checkpoints: Positive = Field(2, description="the newest ones")
    early_stopping: Annotated[int | None, kind(kinds.optional(kinds.whole(1)))] = Field(
        None, description="evaluations without a better loss; null: off"
    )
    seed: Count = Field(0, description="of the data order, the split, dropout and the init")
    trackers: Annotated[tuple[str, ...], kind(kinds.words(*TRACKERS))] = Field((), description=" | ".join(TRACKERS))

    @classmethod
    def conflicts(cls, written: Mapping[str, object]) -> Iterator[str]:
        yield from super().conflicts(written)
        length = kinds.number(written.get("max_length", cls.model_fields["max_length"].default))
        tokens = kinds.number(written.get("batch_tokens"))
        if length is not None and tokens is not None and length > tokens:
            yield (
                f"train.batch_tokens: {tokens} is less than max_length {length}, so a row of that length fits no step; "
                "raise it, or cut rows shorter"
            )

    @model_validator(mode="after")
    def _settle_pairs(self) -> Self:
        problems = list(self.conflicts({name: getattr(self, name) for name in self.model_fields_set}))
        if problems:
            raise ValueError("\n".join(problems))
        if self.epochs is None and self.steps is None:
            self._settle(epochs=float(self.default_epochs))
        if self.batch_tokens is None and self.batch_size is None:
            self._settle(batch_tokens=max(self.default_batch_tokens, self.max_length))
        return self


class RunFile(_Settings):
    """A whole run. Paths in it are absolute once it was loaded from a file; a hub id stays as it is."""

    model: Place = Field(description="hub id, folder, or a .gguf file")
    data: DataSettings
    task: Annotated[str, kind(word(*TASKS))] = Field("chat", description=f"{' | '.join(TASKS[:6])} | new-…")
    base: BaseSettings = Field(default_factory=BaseSettings)
    lora: LoraSettings = Field(default_factory=LoraSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)

    def lora_config(self) -> LoraConfig:
        return self.lora.config(seed=self.train.seed)

    def with_values(self, values: Mapping[str, object]) -> Self:
        """A copy with some values by dotted key (`{"base.dtype": "float32"}`), checked again.

        Writing one of a pair takes the other away; `ValueError` where a key or value is refused.
        """
        tree: dict[str, Any] = self.model_dump()
        for dotted, value in values.items():
            section, _, name = dotted.rpartition(".")
            branch = tree[section] if section else tree
            for pair in EXCLUSIVE.get(section, ()):
                if name in pair:
                    branch.update(dict.fromkeys(pair, None))
            branch[name] = value
        if "lora.r" in values and "lora.alpha" not in values:
            tree["lora"]["alpha"] = None
        return type(self).model_validate(tree)

    def to_yaml(self) -> str:
        """The completed file: every value that is used, with r, alpha and scaling; loads to an equal RunFile."""
        from lorawise.runfile.write import to_yaml  # write reads this schema

        return to_yaml(self)
