"""What is asked of the finalists once the table is settled: the winner's scaling turned, and answers to read.

    turned     the winner's trained A and B at k · scaling for k in `FACTORS`, on all validation rows; k = 0 is the base
    answered   the first validation rows, by the base and by each finalist, greedily

Nothing is trained here, and no setting changes its place.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lorawise.models.window import window_of_model
from lorawise.report.events import Sample
from lorawise.training.evaluate import Evaluator, Questions, Scores, answered, questions_of, score
from lorawise.tuning.events import Answered, ScalingTurned
from lorawise.tuning.pack import Member, Pack, SlotState

FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
ASKED = 4  # rows answered where the run file asks for none
LONGEST = 128  # tokens of an answer: enough to see its manner


def look_closer(
    pack: Pack, finalists: Sequence[Member], states: Mapping[int, SlotState], *, slots: int
) -> Iterator[ScalingTurned | Answered]:
    """`finalists` best first; at most `slots` side by side."""
    yield from turned(pack, finalists[0], states[finalists[0].trial], slots=slots)
    questions = _questions(pack)
    if questions is not None:
        yield from _answers(pack, finalists, states, questions)


def turned(pack: Pack, winner: Member, state: SlotState, *, slots: int) -> Iterator[ScalingTurned]:
    """The winner as it was trained, its scaling turned: each factor is a slot with the same tensors."""
    held = [k for k in FACTORS if k]
    for first in range(0, len(held), slots):
        factors = held[first : first + slots]
        members = [_at(winner, k, slot) for slot, k in enumerate(factors)]
        pack.hold(members, {member.trial: state for member in members})
        if first == 0:
            yield _turned(winner.trial, 0.0, _of_base(pack), 0)
        scores = pack.scores()
        for slot, k in enumerate(factors):
            yield _turned(winner.trial, k, scores, slot)


def _at(winner: Member, k: float, slot: int) -> Member:
    config = winner.config
    pattern = {name: k * alpha for name, alpha in config.alpha_pattern.items()}
    return replace(winner, trial=slot, config=config.replace(scaling=k * config.scaling, alpha_pattern=pattern))


def _turned(trial: int, factor: float, scores: Scores, slot: int) -> ScalingTurned:
    rows = tuple(scores.row_losses[slot].tolist())
    return ScalingTurned(trial=trial, factor=factor, loss=scores.losses[slot], row_losses=rows)


def _of_base(pack: Pack) -> Scores:
    evaluator = _evaluator(pack)
    pack.trainer.adapters.use(None)
    return score(pack.prepared.model, evaluator.batches, evaluator.objective)


def _questions(pack: Pack) -> Questions | None:
    """Those of the run file's `train.eval_generate`, else the first few rows."""
    inputs, asked = pack.prepared.inputs, _evaluator(pack).questions
    assert inputs.validation_rows is not None
    if asked is None:
        rows = inputs.validation_rows.rows[:ASKED]
        window = window_of_model(pack.prepared.model)
        asked = questions_of(rows, inputs.tokenizer, inputs.options, inputs.train.stop_ids, window=window)
    if asked is None:
        return None
    few = replace(asked, prompts=asked.prompts[:ASKED], references=asked.references[:ASKED])
    return replace(few, longest=min(few.longest, LONGEST))


def _answers(
    pack: Pack, finalists: Sequence[Member], states: Mapping[int, SlotState], questions: Questions
) -> Iterator[Answered]:
    for member in finalists:
        pack.hold([member], states)
        if member is finalists[0]:
            pack.trainer.adapters.use(None)
            yield from _told(None, answered(pack.prepared.model, questions))
        pack.trainer.adapters.use(str(member.trial))
        yield from _told(member.trial, answered(pack.prepared.model, questions))


def _told(trial: int | None, samples: Sequence[Sample]) -> Iterator[Answered]:
    for sample in samples:
        yield Answered(
            trial=trial, prompt=sample.prompt, reference=sample.reference, answer=sample.answer, match=sample.match
        )


def _evaluator(pack: Pack) -> Evaluator:
    assert pack.prepared.evaluator is not None, "a study without validation rows was refused"
    return pack.prepared.evaluator
