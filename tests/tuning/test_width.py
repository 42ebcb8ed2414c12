"""As many settings side by side as pay and as memory holds, predicted for the widest pack of the axes."""

import pytest
from tests.workbench import rows_of, tiny_run

from lorawise.models.files import resolve_model
from lorawise.training.inputs import dated, read_inputs
from lorawise.training.setup import prepare
from lorawise.tuning import width
from lorawise.tuning.space import Grid, Range


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    run = dated(tiny_run(tmp_path_factory.mktemp("width"), rows=rows_of(40), train__batch_tokens=128))
    files = resolve_model(run.model)
    return prepare(run, files, read_inputs(run, files))


def test_a_bank_takes_its_longest_rank_in_every_slot(prepared):
    narrow = width.bank_bytes(prepared, [Grid(key="lora.r", values=(2, 4))], 4)
    wide = width.bank_bytes(prepared, [Range(key="lora.r", low=2, high=64, log=True, whole=True)], 4)
    parameters = sum(pair[0].numel() + pair[1].numel() for pair in prepared.adapters.weights("default").layers.values())
    state = 5 * 4 * 4 * parameters  # values, two of gradients, two moments; fp32; four slots of r 4
    assert 15 * state <= wide - narrow <= 30 * state, "and what the step keeps of A, B and their product"
    sizes = [width.bank_bytes(prepared, [], n) for n in (4, 8, 12)]
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.1), "the rest is the workspace of products"


def test_what_memory_does_not_hold_is_not_taken(prepared, monkeypatch):
    assert width.slots_of(prepared, []) == 16
    free = width.bank_bytes(prepared, [], 4) / width.SHARE + 1
    monkeypatch.setattr(width, "free_memory", lambda device: free)
    assert width.slots_of(prepared, []) == 4
    monkeypatch.setattr(width, "free_memory", lambda device: 0)
    assert width.slots_of(prepared, []) == 1
