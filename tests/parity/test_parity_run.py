"""A whole run against PEFT, torch's AdamW and transformers' own loss: the same losses for 20 steps (fp32, 1e-4).

The oracle sees the rows of each step one at a time and unpadded, weighs them by their trained tokens, clips with torch
and takes its learning rates from transformers. What ours adds (packing, micro-batches, chunks of logits, one flat
optimizer) must not show.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.peft_oracle import peft_loaded
from tests.workbench import tiny_folder, tiny_run
from torch import Tensor
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from lorawise.data.batches import MicroBatch
from lorawise.models.files import resolve_model
from lorawise.store import save_adapter
from lorawise.training.inputs import read_inputs
from lorawise.training.setup import Prepared, prepare

STEPS = 20
CASES = {
    "packed": {"train__max_length": 64, "train__micro_batch_tokens": 64},
    "padded": {"train__packing": False, "train__batch_size": 5, "train__micro_batch_size": 2},
    "decayed and unclipped": {"train__weight_decay": 0.1, "train__clip": None},
    "clipped hard": {"train__clip": 0.05},
}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("case", CASES)
def test_a_run_loses_what_peft_torch_and_transformers_lose(case: str, family: str, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", family)
    run = tiny_run(tmp_path, model=base, train__steps=STEPS, train__warmup=0, train__schedule="cosine", **CASES[case])
    files = resolve_model(run.model)
    ready = prepare(run, files, read_inputs(run, files))
    save_adapter(tmp_path / "start", ready.adapters.weights("default"), base="b")
    expected = list(_oracle(ready, base, tmp_path / "start"))
    found = [ready.trainer.step(k).losses[0] for k in range(STEPS)]
    assert expected[-1] < expected[0] - 0.3
    assert found == pytest.approx(expected, abs=1e-4)


def _oracle(ready: Prepared, base: Path, start: Path) -> Iterator[float]:
    train = ready.run.train
    model = peft_loaded(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), start, is_trainable=True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, STEPS)
    for k in range(STEPS):
        rows = [row for micro in ready.trainer.plan.step(k) for row in _rows(micro)]
        trained = sum(int((labels != -100).sum()) for _, labels in rows)
        loss = sum(model(input_ids=ids, labels=labels).loss * (labels != -100).sum() for ids, labels in rows) / trained
        loss.backward()
        if train.clip:
            torch.nn.utils.clip_grad_norm_(parameters, train.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item()


def _rows(micro: MicroBatch) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, labels), each (1, t), of every document."""
    start = 0
    for i, length in enumerate(micro.lengths):
        row, cells = (0, slice(start, start + length)) if micro.layout == "packed" else (i, slice(0, length))
        start += length
        ids = torch.from_numpy(micro.ids[row, cells])[None]
        trained = torch.from_numpy(micro.trained[row, cells])[None]
        yield ids, torch.where(trained, ids, -100)
