"""What a prediction of memory promises whatever the model: law 11, causes that sum, counts that are exact, refusals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planning.shapes import config_of, facts_of

from lorawise.base.errors import ConfigError
from lorawise.facts.targets import trainable
from lorawise.lora.config import LoraConfig
from lorawise.models import loss as real_loss
from lorawise.planning.memory import Line, Memory, Stack, Workload, loss, predict
from lorawise.planning.memory.allocator import CachingAllocator, replayed
from lorawise.planning.memory.model import METHODS, MODES, TRAINERS

MIB = 2**20
BY_LAYERS = {n: facts_of(config_of("llama", num_hidden_layers=n), "LlamaForCausalLM") for n in (2, 3, 9, 10, 17)}
FACTS = BY_LAYERS[3]
SETTINGS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(METHODS),
        "mode": st.sampled_from(MODES),
        "trainer": st.sampled_from(TRAINERS),
        "targets": st.sampled_from(["qv", "attention", "mlp", "all-linear"]),
        "rows": st.integers(1, 3),
        "length": st.integers(1, 700),
        "r": st.integers(1, 64),
        "packed": st.booleans(),
    }
)


def allocated(facts: object = FACTS, **s: object) -> int:
    length, rows, packed = int(str(s["length"])), int(str(s["rows"])), bool(s["packed"])
    workload = Workload(tokens=rows * length, rows=rows, length=length, packed=packed)
    config = LoraConfig(r=int(str(s["r"])), target_modules=str(s["targets"]))
    return predict(
        facts,  # type: ignore[arg-type]
        config,
        method=s["method"],  # type: ignore[arg-type]
        workload=workload,
        mode=s["mode"],  # type: ignore[arg-type]
        trainer=s["trainer"],  # type: ignore[arg-type]
    ).allocated


@given(SETTINGS, st.sampled_from(["r", "rows", "length"]), st.integers(1, 40))
@settings(max_examples=120, deadline=None)
def test_more_rank_rows_or_length_never_take_less(s: dict[str, object], what: str, more: int) -> None:
    assert allocated(**s) <= allocated(**{**s, what: int(str(s[what])) + more})


@given(SETTINGS)
@settings(max_examples=40, deadline=None)
def test_more_layers_never_take_less(s: dict[str, object]) -> None:
    found = [allocated(facts, **s) for facts in BY_LAYERS.values()]
    assert found == sorted(found)


@given(SETTINGS, st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_more_slots_never_take_less(s: dict[str, object], slots: int) -> None:
    config = LoraConfig(r=int(str(s["r"])), target_modules=str(s["targets"]))
    workload = Workload(tokens=int(str(s["length"])))
    sizes = [predict(FACTS, config, workload=workload, slots=n).allocated for n in (slots, slots + 1)]
    assert sizes[0] <= sizes[1]


@given(SETTINGS)
@settings(max_examples=40, deadline=None)
def test_causes_sum_to_what_is_allocated_and_each_says_why(s: dict[str, object]) -> None:
    config = LoraConfig(r=int(str(s["r"])), target_modules=str(s["targets"]))
    memory = predict(FACTS, config, method=s["method"], workload=Workload(tokens=int(str(s["length"]))), mode=s["mode"])  # type: ignore[arg-type]
    assert sum(line.bytes for line in memory.by_cause) == memory.allocated <= memory.reserved
    assert all(line.bytes > 0 and len(line.because) > 15 for line in memory.by_cause)


def test_what_does_not_depend_on_the_batch_is_exact() -> None:
    config = LoraConfig(r=16)
    lines = {line.cause: line.bytes for line in predict(FACTS, config, workload=Workload(tokens=512)).by_cause}
    count = trainable(FACTS, config)
    assert abs(lines["base weights"] - 2 * FACTS.parameters) < 512 * len(FACTS.matrices + FACTS.others)
    for cause, times in (("adapters", 4), ("gradients", 4), ("optimizer moments", 8)):
        assert abs(lines[cause] - times * count) < 2048


def test_a_chunk_is_that_of_the_trainer() -> None:
    for vocabulary in (300, 4000, 128_256):
        for slots in (1, 3, 64):
            for itemsize in (2, 4):
                assert loss.chunk_of(vocabulary, slots, itemsize) == real_loss.chunk_of(vocabulary, slots, itemsize)


def test_nf4_takes_half_a_byte_a_weight_and_its_constants() -> None:
    one = {"workload": Workload(tokens=16), "method": "qlora", "mode": "frugal"}
    twice = {line.cause: line.bytes for line in predict(FACTS, LoraConfig(r=4), **one).by_cause}  # type: ignore[arg-type]
    once = predict(FACTS, LoraConfig(r=4), **one, trainer="hf", stack=Stack(double_quant=False))  # type: ignore[arg-type]
    linear = sum(m.weights for m in FACTS.linear if m not in FACTS.heads)
    rounding = 5 * 512 * len(FACTS.matrices)
    kept = 2 * (FACTS.parameters - linear)
    assert abs(twice["base weights"] - linear / 2 - kept) < rounding
    assert abs(twice["quantisation constants"] - linear * (1 / 64 + 4 / (64 * 256))) < rounding
    assert abs({x.cause: x.bytes for x in once.by_cause}["quantisation constants"] - linear * 4 / 64) < rounding


def test_int8_takes_a_byte_a_weight_and_a_scale_a_row() -> None:
    workload = Workload(tokens=16)
    sizes = {
        line.cause: line.bytes
        for line in predict(
            FACTS, LoraConfig(r=4), method="qlora", workload=workload, stack=Stack(packing="int8")
        ).by_cause
    }
    linear = [m for m in FACTS.linear if m not in FACTS.heads]
    packed = sum(m.weights for m in linear)
    rounding = 2 * 512 * len(FACTS.matrices)
    assert abs(sizes["base weights"] - packed - 2 * (FACTS.parameters - packed)) < rounding
    assert abs(sizes["quantisation constants"] - 4 * sum(m.out_features for m in linear)) < rounding
    with pytest.raises(ConfigError, match="int8"):
        Stack(packing="int4")  # type: ignore[arg-type]


def test_gradients_from_the_micro_batch_before_are_there_when_a_step_has_several() -> None:
    def stock(accumulate: bool) -> int:
        workload = Workload(tokens=512, packed=False, accumulate=accumulate)
        return predict(FACTS, LoraConfig(r=64), workload=workload, trainer="hf").allocated

    assert stock(True) - stock(False) >= 4 * trainable(FACTS, LoraConfig(r=64))


@pytest.mark.parametrize(
    ("size", "reserved"), [(512, 2 * MIB), (MIB, 2 * MIB), (MIB + 512, 20 * MIB), (11 * MIB, 12 * MIB)]
)
def test_a_first_request_takes_the_segment_that_cuda_takes(size: int, reserved: int) -> None:
    allocator = CachingAllocator()
    allocator.request(1, size)
    assert allocator.reserved == reserved


def test_what_was_freed_is_taken_again_and_neighbours_merge() -> None:
    five, nine = 5 * MIB, 9 * MIB
    assert replayed([(1, five), (2, five), (1, -five), (2, -five), (3, nine)]).reserved == 20 * MIB
    assert (
        replayed([(1, five), (2, five), (1, -five), (3, nine)]).reserved == 20 * MIB
    )  # beside the two, where the segment ends
    assert replayed([(1, nine), (2, nine), (1, -nine), (3, 12 * MIB)]).reserved == 32 * MIB


def test_a_rest_too_small_to_split_off_is_counted_with_its_tensor() -> None:
    """A free block of 5 MiB given whole to a tensor of 4.5 MiB; to one of 3 MiB in part."""
    five, most, less = 5 * MIB, 9 * MIB // 2, 3 * MIB
    beside = [(1, five), (2, five), (1, -five)]
    assert replayed([*beside, (3, most)]).counted == 2 * five
    assert replayed([*beside, (3, less)]).counted == 2 * five
    assert replayed([*beside, (3, most), (4, MIB)]).counted == 2 * five + MIB
    assert replayed([*beside, (3, less), (4, MIB)]).counted == 2 * five


@given(SETTINGS)
@settings(max_examples=30, deadline=None)
def test_torchs_counter_lies_between_what_tensors_hold_and_what_is_reserved(s: dict[str, object]) -> None:
    config = LoraConfig(r=int(str(s["r"])), target_modules=str(s["targets"]))
    workload = Workload(tokens=int(str(s["length"])))
    memory = predict(FACTS, config, method=s["method"], workload=workload, mode=s["mode"], trainer=s["trainer"])  # type: ignore[arg-type]
    assert memory.allocated <= memory.counted <= memory.reserved


def test_outputs_that_a_loop_holds_until_the_next_are_there_take_a_segment_of_the_logits_size() -> None:
    """16-bit logits of the step before lie in the way of the next step's fp32 ones."""
    workload = Workload(tokens=2048, packed=False)
    plain, held = (
        predict(FACTS, LoraConfig(r=4), workload=workload, trainer="hf", stack=Stack(held_outputs=held))
        for held in (False, True)
    )
    wide = 4 * workload.tokens * FACTS.vocab_size
    assert held.reserved - plain.reserved >= wide
    assert held.allocated - plain.allocated < wide


@pytest.mark.parametrize(
    "wrong",
    [{"tokens": 0}, {"tokens": -4}, {"tokens": 10, "length": 20}, {"tokens": 10, "rows": 0, "packed": False}],
)
def test_a_workload_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"tokens|rows|length|document"):
        Workload(**wrong)  # type: ignore[arg-type]


def test_what_cannot_be_meant_is_refused() -> None:
    workload = Workload(tokens=8)
    for wrong in ({"method": "dora"}, {"mode": "fast"}, {"slots": 0}, {"config": None}):
        with pytest.raises(ConfigError):
            predict(FACTS, **{"config": LoraConfig(r=2), "workload": workload, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="fused"):
        Stack(optimizer="fuse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sum"):
        Memory(allocated=2, reserved=2, context=0, by_cause=(Line(cause="a", bytes=1, because="b"),))
