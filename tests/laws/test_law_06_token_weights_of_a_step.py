"""Law 6, the data's part: however a step is cut into micro-batches, the token-weighted mean over them is the same."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawise.data.batches import BatchOptions, BatchPlan, MicroBatch
from lorawise.data.encoded import Encoded, EncodedSet

rows = st.lists(st.lists(st.booleans(), min_size=2, max_size=30), min_size=1, max_size=25)


def encoded_set(masks: list[list[bool]]) -> EncodedSet:
    encoded = [
        Encoded(ids=np.arange(len(mask), dtype=np.int32) + 100 * i, trained=np.array([False, *mask[1:]]), row=i)
        for i, mask in enumerate(masks)
    ]
    return EncodedSet(rows=tuple(encoded), weights=np.ones(len(encoded)), stop_ids=(0,))


def summed(step: list[MicroBatch]) -> tuple[float, int]:
    """Σ of a loss that depends on token and position over the trained tokens of a step, and how many there are."""
    losses = [(np.sin(batch.ids + 0.5 * batch.position_ids) ** 2)[batch.trained].sum() for batch in step]
    return float(sum(losses)), sum(batch.trained_tokens for batch in step)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@given(masks=rows, micro_tokens=st.integers(30, 60), micro_rows=st.integers(1, 4))
def test_one_big_batch_has_the_loss_and_the_tokens_of_its_micro_batches(layout, masks, micro_tokens, micro_rows):
    whole = BatchOptions(layout=layout, batch_tokens=120)
    encoded = encoded_set(masks)
    one = BatchPlan(encoded, whole)
    for options in (
        replace(whole, micro_batch_tokens=micro_tokens),
        replace(whole, micro_batch_size=micro_rows),
        replace(whole, layout="padded" if layout == "packed" else "packed", micro_batch_size=micro_rows),
    ):
        many = BatchPlan(encoded, options)
        assert many.steps_per_epoch == one.steps_per_epoch
        for k in range(one.steps_per_epoch):
            (loss, tokens), (parts, part_tokens) = summed(one.step(k)), summed(many.step(k))
            assert part_tokens == tokens
            assert parts == pytest.approx(loss, rel=1e-12)
