"""How good a base and its trained adapters are on rows they did not see: what `lorawise eval` tells.

Rows are measured as a run's evaluation does (`evaluate`), one document a row: loss is Σ over trained tokens / their
number, perplexity e^loss, exact match the share of the first `answers` rows answered word for word.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from lorawise.base.errors import DataError
from lorawise.base.findings import Finding
from lorawise.data.batches import BatchOptions, eval_batches
from lorawise.data.encode import encode_rows
from lorawise.data.encoded import EncodedSet
from lorawise.data.encoder import EncodeOptions
from lorawise.data.read import OnBad
from lorawise.data.rows import RowSet
from lorawise.lora.injection import task_of
from lorawise.models.load import Loaded
from lorawise.models.window import positions_of, require_known_tokens, window_of_model
from lorawise.report.events import Sample
from lorawise.training.evaluate import accuracy_and_f1, answered, questions_of, score
from lorawise.training.objective import objective_of

TOKENS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Measured:
    """`name` is `base`, an adapter's or a stack's. Shares of 1, None where not measured.

    row_losses, row_tokens   each row's own mean loss and what it is a mean over, for paired comparison
    ids_digest               of the ids measured and which of them count: rows pair where it is equal
    """

    name: str
    loss: float
    perplexity: float
    exact_match: float | None
    accuracy: float | None
    f1: float | None
    tokens: int
    examples: tuple[Sample, ...]
    row_losses: tuple[float, ...]
    row_tokens: tuple[int, ...]
    ids_digest: str


def measure(
    loaded: Loaded,
    rows: RowSet,
    *,
    answers: int,
    max_length: int,
    stacks: Mapping[str, Mapping[str, float]] | None = None,
    on_bad: OnBad = "stop",
    tell: Callable[[Finding], None] | None = None,
) -> Iterator[Measured]:
    """The base first, then every adapter of `loaded`, then every stack of them (name → adapter → weight), on the same
    rows in the same batches.

    `tell` hears what encoding met: rows that were cut, and those skipped under `on_bad="skip"`.
    """
    head = task_of(loaded.model) == "SEQ_CLS"
    positions = positions_of(loaded.files.config) or max_length
    options = _encoding(loaded, rows, head=head, max_length=min(max_length, positions))
    encoded = encode_rows(rows.rows, loaded.tokenizer, options, on_bad=on_bad)
    for finding in (*encoded.findings, *encoded.problems):
        if tell is not None:
            tell(finding)
    if not len(encoded):
        raise DataError("no row is left to measure on", cure="mend the rows that were skipped")
    require_known_tokens(loaded.model, encoded.highest_id)
    batches = eval_batches(
        encoded, BatchOptions(layout="padded", batch_tokens=TOKENS_AT_ONCE, pad_id=loaded.tokenizer.pad_id)
    )
    window = window_of_model(loaded.model)
    asked = [rows[each.row] for each in encoded][: 0 if head else answers]
    questions = questions_of(asked, loaded.tokenizer, options, encoded.stop_ids, window=window) if asked else None
    digest = _ids_digest(encoded)
    routes: dict[str, Mapping[str, float]] = {"base": {}, **{name: {name: 1.0} for name in loaded.adapters.names}}
    for name, weights in (routes | dict(stacks or {})).items():
        loaded.stack(weights)
        scores = score(loaded.model, batches, objective_of("SEQ_CLS" if head else "CAUSAL_LM"))
        samples = answered(loaded.model, questions) if questions is not None else ()
        truth = [row.label for row in encoded if row.label is not None]
        accuracy, f1 = accuracy_and_f1(truth, scores.predicted) if head else (None, None)
        yield Measured(
            name=name,
            loss=scores.losses[0],
            perplexity=math.exp(min(scores.losses[0], 700.0)),
            exact_match=sum(sample.match for sample in samples) / len(samples) if samples else None,
            accuracy=accuracy,
            f1=f1,
            tokens=scores.tokens,
            examples=samples,
            row_losses=tuple(scores.row_losses[0].tolist()),
            row_tokens=tuple(scores.row_tokens.tolist()),
            ids_digest=digest,
        )


def _ids_digest(encoded: EncodedSet) -> str:
    digest = hashlib.sha256()
    for row in encoded:
        digest.update(f"{row.row} {row.label} {len(row.ids)}:".encode())
        digest.update(row.ids.tobytes() + row.trained.tobytes())
    return digest.hexdigest()


def _encoding(loaded: Loaded, rows: RowSet, *, head: bool, max_length: int) -> EncodeOptions:
    """As in training; a classifier's own order of classes, which its adapter carries, decides which id a label has."""
    if not head:
        return EncodeOptions(max_length=max_length, classification="generated")
    if other := next((row for row in rows if row.kind != "classification"), None):
        raise DataError(
            f"{other.where} carries no label, and the adapter tells classes apart",
            expected='rows such as {"text": "…", "label": "spam"}',
            cure="measure it on labelled rows",
        )
    written = {str(row.label): row.label for row in rows if row.label is not None}
    names = {int(i): str(name) for i, name in (loaded.model.config.id2label or {}).items()}
    labels = tuple(written.get(names[i], names[i]) for i in sorted(names))
    return EncodeOptions(max_length=max_length, classification="head", labels=labels)
