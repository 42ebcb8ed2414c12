"""What a run learns from: rows read, parted and encoded for one model's tokenizer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from lorawise.base.errors import DataError
from lorawise.base.files import digest_text
from lorawise.base.findings import Finding
from lorawise.data.encode import encode_rows
from lorawise.data.encoded import EncodedSet
from lorawise.data.encoder import EncodeOptions
from lorawise.data.read import read_rows
from lorawise.data.rows import RowSet, Source, class_labels
from lorawise.data.split import split_validation
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.models.files import ModelFiles
from lorawise.models.window import positions_of, window_of
from lorawise.runfile import RunFile

LISTED = 20  # skipped rows told when none is left


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """`labels` are the classes of classification rows; `head` says that a head learns them, not generated text."""

    tokenizer: ChatTokenizer
    options: EncodeOptions
    train_rows: RowSet
    validation_rows: RowSet | None
    train: EncodedSet
    validation: EncodedSet | None
    labels: tuple[str, ...] = ()
    head: bool = False
    findings: tuple[Finding, ...] = ()

    @property
    def digest(self) -> str:
        """Of everything that is trained on and evaluated, as token ids."""
        return digest_text(self.train.digest, self.validation.digest if self.validation is not None else "")

    @property
    def skipped_rows(self) -> int:
        return sum(self.train_rows.skipped.values()) + len(self.train.problems)


def dated(run: RunFile) -> RunFile:
    """The run with its day settled: a template that prints the date then gives the same text when it is resumed."""
    return run if run.data.date != "auto" else run.with_values({"data.date": _today().isoformat()})


def read_inputs(run: RunFile, files: ModelFiles) -> Inputs:
    """`DataError` or `ConfigError` with every row that cannot be used, unless `data.on_bad` is `skip`."""
    data = run.data
    day = datetime.fromisoformat(dated(run).data.date)
    tokenizer = ChatTokenizer.open(files.folder, template=data.template, now=day)
    rows = _read(run, [Source(path=s.path, weight=s.weight, split=s.split, subset=s.subset) for s in data.train])
    held_out = data.validation
    apart = _read(run, [Source(path=held_out)]) if isinstance(held_out, str) else held_out
    split = split_validation(rows, apart, run.train.seed)
    labels = _labels(run, rows)
    head = bool(labels) and data.labels_as == "head"
    positions = positions_of(files.config) or run.train.max_length
    options = EncodeOptions(
        max_length=min(run.train.max_length, positions),
        train_on=data.train_on,
        classification="head" if head else "generated",
        labels=labels,
    )
    train = encode_rows(split.train.rows, tokenizer, options, on_bad=data.on_bad)
    validation = None
    if split.validation is not None:
        validation = encode_rows(split.validation.rows, tokenizer, options, on_bad=data.on_bad)
    if not len(train) or (validation is not None and not len(validation)):
        skipped = (*rows.problems, *train.problems, *(() if validation is None else validation.problems))
        raise DataError(
            "\n  ".join(["no row is left to train on or to evaluate", *map(str, skipped[:LISTED])]),
            cure="mend the rows that were skipped",
        )
    return Inputs(
        tokenizer=tokenizer,
        options=options,
        train_rows=split.train,
        validation_rows=split.validation,
        train=train,
        validation=validation,
        labels=tuple(str(label) for label in labels),
        head=head,
        findings=(
            *rows.findings,
            *split.findings,
            *train.findings,
            *(() if validation is None else validation.findings),
            *rows.problems,
            *train.problems,
            *_beyond_window(train, run.train.max_length, files),
            *_without_validation(run, validation),
        ),
    )


def _beyond_window(train: EncodedSet, max_length: int, files: ModelFiles) -> Iterator[Finding]:
    window, positions = window_of(files.config), positions_of(files.config)
    if positions is not None and max_length > positions and train.cut_rows:
        yield Finding(
            code="positions",
            level="warning",
            message=f"rows end at {positions:,} tokens, not at {max_length:,}: the model has no more positions",
            cure="split longer rows, or take a model with a longer window",
        )
    elif window is not None and (longer := int((train.lengths > window).sum())):
        yield Finding(
            code="beyond-window",
            level="warning",
            message=f"{longer:,} rows are longer than the {window:,} tokens the model was made for",
            cure=f"lower train.max_length to {window}, unless the model is meant to learn longer ones",
        )


def _without_validation(run: RunFile, validation: EncodedSet | None) -> Iterator[Finding]:
    asked = {"early_stopping": run.train.early_stopping, "eval_generate": run.train.eval_generate}
    idle = [f"train.{name}: {value}" for name, value in asked.items() if value]
    if validation is None and idle:
        yield Finding(
            code="no-validation",
            level="warning",
            message=f"{' and '.join(idle)} will do nothing: the run has no validation rows",
            cure="set data.validation to a file or a share, such as 0.05",
        )


def _today() -> date:
    return date.today()


def _read(run: RunFile, sources: Sequence[Source]) -> RowSet:
    name = None if run.data.format == "auto" else run.data.format.replace("-", "_")
    return read_rows(sources, format=name, on_bad=run.data.on_bad)


def _labels(run: RunFile, rows: RowSet) -> tuple[int | str, ...]:
    if rows.kinds.get("classification"):
        return class_labels(rows.rows)
    if run.task == "classification":
        raise DataError(
            "task is classification, and the rows carry no label",
            expected='rows such as {"text": "…", "label": "spam"}',
            cure="add the labels, or choose another task",
        )
    return ()
