"""Law 4, at the trainer: slot i of n equals that adapter alone over the same data; a NaN slot touches no other.

transformers' RMSNorm computes in fp32 whatever the model's type is. Over an fp64 model it is a staircase: two runs one
rounding of fp64 apart (as products of two shapes are) are equal to the bit until a norm's input lies at an edge of
fp32, and 1e-8 apart from then on, alone beside alone as well. So the fp64 law is stated over norms of the same formula
that compute in the type of their input, and a test holds that the staircase is theirs and not ours.
"""

import pytest
import torch
from tests.tiny import tiny_model
from tests.workbench import VOCABULARY, byte_tokenizer, rows_of, tiny_folder
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lorawise.data.batches import BatchOptions, BatchPlan
from lorawise.data.encode import encode_rows
from lorawise.data.formats import parse_row
from lorawise.data.rows import Where
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.lora.config import LoraConfig
from lorawise.lora.injection import inject
from lorawise.models.files import resolve_model
from lorawise.models.open import open_model
from lorawise.models.packing import packing_support
from lorawise.training.loop import Trainer, trained_parameters
from lorawise.training.objective import NextToken
from lorawise.training.optimizer import BankAdamW, SlotSettings
from lorawise.training.schedule import Schedule

CONFIGS = (
    LoraConfig(r=1, scaling=8.0, seed=1),
    LoraConfig(r=8, scaling=2.0, seed=2, dropout=0.1),
    LoraConfig(r=64, scaling=0.5, seed=3, target_modules="attention"),
    LoraConfig(r=16, scaling=1.0, seed=4, target_modules="mlp", rslora=True),
    LoraConfig(r=2, scaling=4.0, seed=5, target_modules="qv", init="gaussian"),
    LoraConfig(r=32, scaling=0.25, seed=6, layers=(1,)),
)
SETTINGS = (
    SlotSettings(learning_rate=3e-3, clip=2.0, eps=1e-6),
    SlotSettings(learning_rate=5e-4, clip=0.2, weight_decay=0.05, lora_plus_ratio=4.0),
    SlotSettings(learning_rate=2e-3, clip=1.0),
    SlotSettings(learning_rate=1e-3, clip=0.0, betas=(0.9, 0.99)),
    SlotSettings(learning_rate=4e-3, clip=0.1, weight_decay=0.1),
    SlotSettings(learning_rate=1e-2, clip=1.0, lora_plus_ratio=2.0),
)
SCHEDULES = ("cosine", "constant", "wsd", "linear", "constant", "cosine")
ALL = tuple(range(len(CONFIGS)))
STEPS = 200


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> BatchPlan:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(folder)
    rows = [parse_row(row, Where(path="rows", line=i))[0] for i, row in enumerate(rows_of(16))]
    encoded = encode_rows(rows, ChatTokenizer.open(folder), cache=folder / "cache")
    return BatchPlan(encoded, BatchOptions(batch_tokens=72, micro_batch_size=1))


def trainer(plan: BatchPlan, chosen: tuple[int, ...], dtype: torch.dtype) -> Trainer:
    model = tiny_model("llama", dtype=dtype, vocab_size=VOCABULARY)
    if dtype == torch.float64:
        compute_norms_in_their_own_type(model)
    return trainer_over(model, plan, chosen)


def trainer_over(model: PreTrainedModel, plan: BatchPlan, chosen: tuple[int, ...]) -> Trainer:
    model.requires_grad_(False)
    assert packing_support(model) == "packed"
    adapters = inject(model, [CONFIGS[i] for i in chosen])
    return Trainer(
        model=model,
        adapters=adapters,
        plan=plan,
        optimizer=BankAdamW(trained_parameters(adapters), [SETTINGS[i] for i in chosen], scaled=False),
        schedules=tuple(Schedule(name=SCHEDULES[i], total=STEPS, warmup=5) for i in chosen),
        objective=NextToken(),
    )


def compute_norms_in_their_own_type(model: PreTrainedModel) -> None:
    """w·x/√(mean x² + ε) by torch, in x's type, in place of transformers' norm, which rounds to fp32 on the way."""
    for name, norm in list(model.named_modules()):
        if isinstance(norm, LlamaRMSNorm):
            place, _, last = name.rpartition(".")
            own = torch.nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon, dtype=norm.weight.dtype)
            own.load_state_dict(norm.state_dict())
            setattr(model.get_submodule(place), last, own)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_each_slot_of_six_has_the_losses_it_has_alone(dtype, tolerance, plan):
    bank = trainer(plan, ALL, dtype)
    together = [bank.step(k).losses for k in range(STEPS)]
    for slot in ALL:
        assert together[-1][slot] < together[0][slot] - 0.5, "the job is learned, so the comparison means something"
        alone = trainer(plan, (slot,), dtype)
        losses = [alone.step(k).losses[0] for k in range(STEPS)]
        difference = max(abs(one - six[slot]) for one, six in zip(losses, together, strict=True))
        assert difference <= tolerance, f"slot {slot} is {difference:.2e} away"


def test_over_an_fp64_base_only_transformers_norm_rounds_to_fp32():
    model = tiny_model("llama", dtype=torch.float64, vocab_size=VOCABULARY)
    norm = model.get_submodule("model.norm")
    own = torch.nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon, dtype=torch.float64)
    x = torch.randn(4, norm.weight.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own.load_state_dict(norm.state_dict())
    assert norm(x).dtype == torch.float64
    assert norm(x).equal(norm(x).float().double()), "every value is one of fp32"
    assert not own(x).equal(own(x).float().double())
    torch.testing.assert_close(norm(x), own(x), rtol=0, atol=1e-6)


def test_each_slot_over_an_nf4_base_has_the_losses_it_has_alone(plan, tmp_path):
    files = resolve_model(tiny_folder(tmp_path))

    def over_nf4(chosen: tuple[int, ...]) -> Trainer:
        return trainer_over(open_model(files, dtype="nf4", compute_dtype="float32"), plan, chosen)

    bank = over_nf4((0, 1, 2))
    together = [bank.step(k).losses for k in range(40)]
    assert together[-1][2] < together[0][2] - 0.2
    for slot in range(3):
        alone = over_nf4((slot,))
        assert [alone.step(k).losses[0] for k in range(40)] == pytest.approx([one[slot] for one in together], abs=1e-5)


def test_beside_a_slot_that_diverges_the_others_keep_their_bits(plan):
    healthy = trainer(plan, ALL, torch.float32)
    broken = trainer(plan, ALL, torch.float32)
    layer = next(iter(broken.adapters.layers.values()))
    others = [slot for slot in ALL if slot != 1]
    for k in range(40):
        if k == 4:
            layer.lora_A.data[1, 0, 0] = float("nan")
        good, bad = healthy.step(k), broken.step(k)
        for slot in others:
            assert good.losses[slot] == bad.losses[slot]
            assert good.norms[slot] == bad.norms[slot]
        assert bad.moved == tuple(slot != 1 or k < 4 for slot in ALL)
    assert broken.optimizer.alive == [slot != 1 for slot in ALL]
    for (name, mine), (_, theirs) in zip(healthy.adapters.trainable(), broken.adapters.trainable(), strict=True):
        assert mine[others].equal(theirs[others]), name
