"""Predicted beside measured: peaks that others published, each with what is known of how it was run (benchmarks)."""

import pytest
from benchmarks.memory.facts import facts_of
from benchmarks.memory.rows import STRICT, Row

from lorawise.planning.memory import predict
from lorawise.training.trace import trace

GIB = 2**30
TRACED = ("Qwen2.5-0.5B lora 1×1024", "Qwen2.5-1.5B qlora 1×1024, all kept")  # the two that needed a cause
settings = {row.name: {"workload": row.workload, "mode": row.mode, "stack": row.stack} for row in STRICT}


@pytest.mark.parametrize("row", STRICT, ids=lambda row: row.name)
def test_the_closed_form_is_within_one_percent_of_what_was_measured(row: Row) -> None:
    memory = predict(facts_of(row.model), row.config, method=row.method, trainer="hf", **settings[row.name])
    assert row.measured is not None
    assert abs(memory.counted / GIB / row.measured - 1) < 0.01
    if row.reserved is not None:
        assert abs(memory.reserved / GIB / row.reserved - 1) < 0.05


@pytest.mark.parametrize("name", TRACED)
def test_the_trace_is_too(name: str) -> None:
    row = next(row for row in STRICT if row.name == name)
    memory = trace(row.model, row.config, method=row.method, trainer="hf", **settings[name]).memory
    assert row.measured is not None
    assert row.reserved is not None
    assert abs(memory.counted / GIB / row.measured - 1) < 0.01
    assert abs(memory.reserved / GIB / row.reserved - 1) < 0.05
