"""After the table: the winner's scaling turned, and the finalists' answers; measured, not guessed."""

import numpy as np
import pytest
from tests.tuning.small_study import small_study

from lorawise.lora.injection import eject, inject
from lorawise.models.files import resolve_model
from lorawise.runfile import load_run_file
from lorawise.store import load_adapter
from lorawise.training.evaluate import score
from lorawise.training.inputs import read_inputs
from lorawise.training.setup import prepare
from lorawise.tuning.closer_look import FACTORS
from lorawise.tuning.events import Answered, ScalingTurned, StudyStarted
from lorawise.tuning.folder import StudyFolder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    work = tmp_path_factory.mktemp("closer")
    found = small_study(work, work / "study")
    return found, StudyFolder(path=found.study).events()


def test_the_scaling_is_turned_from_the_base_through_the_winner(study):
    found, events = study
    turned = {e.factor: e for e in events if isinstance(e, ScalingTurned)}
    started = next(e for e in events if isinstance(e, StudyStarted))
    assert tuple(turned) == FACTORS
    assert {e.trial for e in turned.values()} == {found.best.trial}
    assert turned[1.0].loss == pytest.approx(found.best.validation_loss, abs=1e-6)
    assert turned[0.0].loss == pytest.approx(started.base_loss, abs=1e-6)
    assert len({e.loss for e in turned.values()}) == len(FACTORS)


def test_a_turned_loss_is_that_of_the_saved_adapter_at_that_scaling(study):
    found, events = study
    run, _ = load_run_file(found.study / "run.yaml")
    files = resolve_model(run.model)
    prepared = prepare(run, files, read_inputs(run, files))
    eject(prepared.model)
    weights = load_adapter(found.adapter)
    adapters = inject(prepared.model, weights.config.replace(scaling=1.5 * weights.config.scaling))
    for name, layer in adapters.layers.items():
        A, B = weights.layers[name]
        layer.lora_A.data[0].copy_(A)
        layer.lora_B.data[0].copy_(B)
    scores = score(prepared.model, prepared.evaluator.batches, prepared.evaluator.objective)
    turned = next(e for e in events if isinstance(e, ScalingTurned) and e.factor == 1.5)
    assert np.abs(scores.row_losses[0] - np.array(turned.row_losses)).max() < 1e-5


def test_the_base_and_every_finalist_answer_the_same_rows(study):
    _, events = study
    answers = [e for e in events if isinstance(e, Answered)]
    prompts = {trial: [e.prompt for e in answers if e.trial == trial] for trial in {e.trial for e in answers}}
    assert len(prompts) == 4
    assert None in prompts
    assert len({tuple(asked) for asked in prompts.values()}) == 1
    assert all(e.match == (e.answer == e.reference) for e in answers)
