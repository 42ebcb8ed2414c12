"""How good an adapter is on the validation rows, and how good the base was before it.

    loss         Σ over all trained tokens / their number (classification: over documents); perplexity e^loss
    exact match  share of rows whose generated answer equals the reference, white space at the ends aside
    accuracy     share of right classes; F1 is macro: the mean over the classes of 2·tp / (2·tp + fp + fn)

Shapes: losses (n,), one a slot; row_losses (n, rows), each row's own mean, and row_tokens (rows,), what it is a mean
over, in the order of the rows, for paired tests.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from lorawise.data.batches import MicroBatch
from lorawise.data.encode import final_answer, prompt_and_answer
from lorawise.data.encoder import EncodeOptions
from lorawise.data.rows import Row
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.lora.adapters import Adapters
from lorawise.models.generate import generate
from lorawise.report.events import Evaluated, EvaluationName, Sample
from lorawise.training.memory import memory_errors
from lorawise.training.objective import Label, NextToken

LONGEST_ANSWER = 1024  # tokens; a reference may be longer, then its answer cannot match


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    losses: tuple[float, ...]
    row_losses: NDArray[np.float64]
    row_tokens: NDArray[np.int64]
    tokens: int
    predicted: tuple[int, ...] = ()  # classes of the first slot, in the order of the rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
    """Validation rows to be answered in full: prompts as ids, references as text, and where an answer ends."""

    prompts: tuple[tuple[int, ...], ...]
    references: tuple[str, ...]
    longest: int
    stop_ids: tuple[int, ...]
    tokenizer: ChatTokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluator:
    """`labels` are the names of the classes in a classification, whether by a head or as generated text."""

    model: PreTrainedModel
    adapters: Adapters
    batches: Sequence[MicroBatch]
    objective: NextToken | Label
    questions: Questions | None = None
    labels: tuple[str, ...] = ()

    def __call__(self, step: int, name: EvaluationName) -> Evaluated:
        """Of the one adapter, or of the untouched base. The route is the training one again afterwards."""
        started = time.perf_counter()
        self.adapters.use(None if name == "base" else self.adapters.names[0])
        scores = score(self.model, self.batches, self.objective)
        samples = () if self.questions is None else answered(self.model, self.questions)
        self.adapters.bank()
        event = Evaluated(
            step=step,
            name=name,
            loss=scores.losses[0],
            perplexity=_exp(scores.losses[0]),
            tokens=scores.tokens,
            samples=samples,
            exact_match=sum(s.match for s in samples) / len(samples) if samples else None,
        )
        if self.labels:
            accuracy, f1 = self._classes(scores, samples)
            event = replace(event, accuracy=accuracy, f1=f1)
        return replace(event, seconds=time.perf_counter() - started)

    def _classes(self, scores: Scores, samples: Sequence[Sample]) -> tuple[float, float]:
        if isinstance(self.objective, Label):
            by_row = sorted((row, label) for batch in self.batches for row, label in _pairs(batch))
            return accuracy_and_f1([label for _, label in by_row], scores.predicted)
        known = {label: number for number, label in enumerate(self.labels)}
        truth = [known.get(sample.reference, -1) for sample in samples]
        return accuracy_and_f1(truth, [known.get(sample.answer, -2) for sample in samples])


def score(model: PreTrainedModel, batches: Sequence[MicroBatch], objective: NextToken | Label, *, n: int = 1) -> Scores:
    """The mean loss of every slot over all batches; no gradient, eval mode."""
    model.train(False)
    sums: dict[int, NDArray[np.float64]] = {}
    units: dict[int, int] = {}
    classes: dict[int, int] = {}
    with torch.no_grad(), memory_errors():
        for batch in batches:
            if isinstance(objective, Label):
                classified = objective.classified(model, batch, n=n)
                parts = classified.loss
                classes |= dict(zip(batch.rows, classified.logits[0].argmax(-1).tolist(), strict=True))
            else:
                parts = objective(model, batch, n=n)
            per_row = parts.per_row.double().cpu().numpy()
            for i, (row, count) in enumerate(zip(batch.rows, _units(batch, objective), strict=True)):
                sums[row], units[row] = per_row[:, i], count
    rows = sorted(sums)
    table = np.stack([sums[row] for row in rows], axis=1)
    each = np.array([units[row] for row in rows])
    return Scores(
        losses=tuple((table.sum(1) / each.sum()).tolist()),
        row_losses=table / each,
        row_tokens=each,
        tokens=sum(batch.tokens for batch in batches),
        predicted=tuple(classes[row] for row in sorted(classes)),
    )


def questions_of(
    rows: Sequence[Row], tokenizer: ChatTokenizer, options: EncodeOptions, stop_ids: Sequence[int], *, window: int
) -> Questions | None:
    """What generation is asked; rows without a prompt (plain text), or too long for the model, are left out."""
    pairs = [prompt_and_answer(row, tokenizer, options) for row in rows if row.kind != "text"]
    asked = [(tuple(int(i) for i in ids), text) for ids, text in pairs if 0 < len(ids) < window]
    if not asked:
        return None
    longest = max(len(tokenizer.encode(text)[0]) for _, text in asked)
    return Questions(
        prompts=tuple(ids for ids, _ in asked),
        references=tuple(text for _, text in asked),
        longest=min(longest + longest // 4 + 8, LONGEST_ANSWER),
        stop_ids=tuple(stop_ids),
        tokenizer=tokenizer,
    )


def answered(model: PreTrainedModel, questions: Questions) -> tuple[Sample, ...]:
    """Greedy answers under the adapters in use, compared with the references."""
    with torch.no_grad(), memory_errors():
        answers = generate(model, questions.prompts, stop_ids=questions.stop_ids, max_new_tokens=questions.longest)
    samples = []
    for prompt, reference, ids in zip(questions.prompts, questions.references, answers, strict=True):
        answer = final_answer(questions.tokenizer.decode(ids))
        samples.append(
            Sample(
                prompt=questions.tokenizer.decode(prompt),
                reference=reference,
                answer=answer,
                match=answer == final_answer(reference),
            )
        )
    return tuple(samples)


def accuracy_and_f1(truth: Sequence[int], predicted: Sequence[int]) -> tuple[float, float]:
    """Macro F1 over the classes that occur on either side; an answer that is no class counts as wrong."""
    right = sum(t == p for t, p in zip(truth, predicted, strict=True))
    classes = sorted({c for c in (*truth, *predicted) if c >= 0})
    scores = []
    for c in classes:
        both = sum(t == p == c for t, p in zip(truth, predicted, strict=True))
        scores.append(2 * both / (sum(t == c for t in truth) + sum(p == c for p in predicted)))
    return right / len(truth), sum(scores) / len(scores)


def _units(batch: MicroBatch, objective: NextToken | Label) -> list[int]:
    """What each document's loss is a mean over."""
    if isinstance(objective, Label):
        return [1] * len(batch.rows)
    if batch.layout == "padded":
        return [int(count) for count in batch.trained.sum(1)]
    ends = np.cumsum(batch.lengths)
    return [int(part.sum()) for part in np.split(batch.trained[0], ends[:-1])]


def _pairs(batch: MicroBatch) -> list[tuple[int, int]]:
    return list(zip(batch.rows, batch.labels, strict=True))


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
