"""Law 4, at the trainer: slot i of n equals that adapter alone over the same data; a NaN slot touches no other."""

import pytest
import torch
from tests.tiny import tiny_model
from tests.workbench import VOCABULARY, byte_tokenizer, rows_of

from lorawise.data.batches import BatchOptions, BatchPlan
from lorawise.data.encode import encode_rows
from lorawise.data.formats import parse_row
from lorawise.data.rows import Where
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.lora.config import LoraConfig
from lorawise.lora.injection import inject
from lorawise.models.packing import packing_support
from lorawise.training.loop import Trainer, trained_parameters
from lorawise.training.objective import NextToken
from lorawise.training.optimizer import BankAdamW, SlotSettings
from lorawise.training.schedule import Schedule

CONFIGS = (
    LoraConfig(r=2, scaling=1.0, seed=1, dropout=0.1),
    LoraConfig(r=8, scaling=2.0, seed=2),
    LoraConfig(r=4, scaling=0.5, seed=3, target_modules="attention"),
)
SETTINGS = (
    SlotSettings(learning_rate=2e-3, clip=1.0),
    SlotSettings(learning_rate=5e-4, clip=0.2, weight_decay=0.05, lora_plus_ratio=4.0),
    SlotSettings(learning_rate=4e-3, clip=0.0, betas=(0.9, 0.99)),
)
STEPS = 200


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> BatchPlan:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(folder)
    rows = [parse_row(row, Where(path="rows", line=i))[0] for i, row in enumerate(rows_of(16))]
    encoded = encode_rows(rows, ChatTokenizer.open(folder), cache=folder / "cache")
    return BatchPlan(encoded, BatchOptions(batch_tokens=72, micro_batch_size=1))


def trainer(plan: BatchPlan, chosen: tuple[int, ...], dtype: torch.dtype, settings=SETTINGS) -> Trainer:
    model = tiny_model("llama", dtype=dtype, vocab_size=VOCABULARY).requires_grad_(False)
    assert packing_support(model) == "packed"
    adapters = inject(model, [CONFIGS[i] for i in chosen])
    optimizer = BankAdamW(trained_parameters(adapters), [settings[i] for i in chosen], scaled=False)
    schedules = tuple(Schedule(name=("cosine", "constant", "wsd")[i], total=STEPS, warmup=5) for i in chosen)
    return Trainer(
        model=model,
        adapters=adapters,
        plan=plan,
        optimizer=optimizer,
        schedules=schedules,
        objective=NextToken(),
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_each_slot_of_three_has_the_losses_it_has_alone(dtype, tolerance, plan):
    bank = trainer(plan, (0, 1, 2), dtype)
    together = [bank.step(k).losses for k in range(STEPS)]
    assert together[-1][1] < together[0][1] - 0.5, "the job is learned, so the comparison means something"
    for slot in range(3):
        alone = trainer(plan, (slot,), dtype)
        losses = [alone.step(k).losses[0] for k in range(STEPS)]
        difference = max(abs(one - three[slot]) for one, three in zip(losses, together, strict=True))
        assert difference <= tolerance, f"slot {slot} is {difference:.2e} away"


def test_beside_a_slot_that_diverges_the_others_keep_their_bits(plan):
    healthy = trainer(plan, (0, 1, 2), torch.float32)
    broken = trainer(plan, (0, 1, 2), torch.float32)
    layer = next(iter(broken.adapters.layers.values()))
    for k in range(12):
        if k == 4:
            layer.lora_A.data[1, 0, 0] = float("nan")
        good, bad = healthy.step(k), broken.step(k)
        for slot in (0, 2):
            assert good.losses[slot] == bad.losses[slot]
            assert good.norms[slot] == bad.norms[slot]
        assert bad.moved == (True, k < 4, True)
    assert broken.optimizer.alive == [True, False, True]
    for (name, mine), (_, theirs) in zip(healthy.adapters.trainable(), broken.adapters.trainable(), strict=True):
        assert mine[[0, 2]].equal(theirs[[0, 2]]), name
