import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorawise.base.errors import ConfigError, DataError
from lorawise.data.batches import BatchOptions, BatchPlan, eval_batches
from lorawise.data.encoded import Encoded, EncodedSet

PAD = 999


def encoded_set(lengths, weights=None, labels=None):
    """Row i holds tokens 1000·i, 1000·i + 1, ...; every second token is trained, the first never."""
    rows = [
        Encoded(
            ids=np.arange(length, dtype=np.int32) + 1000 * i,
            trained=np.arange(length) % 2 == 1,
            row=i,
            label=labels[i] if labels else None,
        )
        for i, length in enumerate(lengths)
    ]
    weights = np.ones(len(rows)) if weights is None else np.array(weights, dtype=float)
    return EncodedSet(rows=tuple(rows), weights=weights, stop_ids=(0,))


some_lengths = st.lists(st.integers(2, 40), min_size=1, max_size=60)
some_options = st.one_of(
    st.builds(
        BatchOptions,
        layout=st.sampled_from(["packed", "padded"]),
        batch_tokens=st.integers(40, 200),
        micro_batch_tokens=st.none() | st.integers(40, 100),
        micro_batch_size=st.none() | st.integers(1, 5),
        seed=st.integers(0, 5),
        pad_id=st.just(PAD),
    ),
    st.builds(
        BatchOptions,
        layout=st.sampled_from(["packed", "padded"]),
        batch_size=st.integers(1, 9),
        micro_batch_tokens=st.none() | st.integers(40, 100),
        micro_batch_size=st.none() | st.integers(1, 5),
        seed=st.integers(0, 5),
        pad_id=st.just(PAD),
    ),
)


def documents(batch):
    """The (ids, trained, positions) of each document of a micro-batch."""
    if batch.layout == "padded":
        cells = [(i, 0, length) for i, length in enumerate(batch.lengths)]
    else:
        ends = np.cumsum(batch.lengths).tolist()
        cells = [(0, end - length, end) for end, length in zip(ends, batch.lengths, strict=True)]
    return [(batch.ids[r, a:b], batch.trained[r, a:b], batch.position_ids[r, a:b]) for r, a, b in cells]


@given(rows=st.lists(st.tuples(st.integers(2, 40), st.integers(1, 3)), min_size=1, max_size=30), seed=st.integers(0, 3))
def test_the_tokens_of_an_epoch_are_those_its_steps_hold(rows, seed):
    encoded = encoded_set([length for length, _ in rows], weights=[weight for _, weight in rows])
    plan = BatchPlan(encoded, BatchOptions(batch_tokens=64, seed=seed))
    steps = [batch for k in range(plan.steps_per_epoch) for batch in plan.step(k)]
    assert encoded.tokens_per_epoch == sum(batch.tokens for batch in steps)
    assert encoded.trained_tokens_per_epoch == sum(batch.trained_tokens for batch in steps)


@given(lengths=some_lengths, options=some_options)
def test_every_row_is_seen_whole_and_exactly_once_an_epoch_within_all_bounds(lengths, options):
    encoded = encoded_set(lengths)
    plan = BatchPlan(encoded, options)
    seen = Counter()
    for k in range(plan.steps_per_epoch):
        step = plan.step(k)
        assert options.batch_tokens is None or sum(batch.tokens for batch in step) <= options.batch_tokens
        assert options.batch_size is None or sum(len(batch.rows) for batch in step) <= options.batch_size
        for batch in step:
            assert options.micro_batch_tokens is None or batch.cells <= options.micro_batch_tokens
            assert options.micro_batch_size is None or len(batch.rows) <= options.micro_batch_size
            assert batch.ids.shape == batch.trained.shape == batch.position_ids.shape
            seen.update(batch.rows)
            for row, (ids, trained, positions) in zip(batch.rows, documents(batch), strict=True):
                assert ids.tolist() == encoded[row].ids.tolist()
                assert trained.tolist() == encoded[row].trained.tolist()
                assert positions.tolist() == list(range(lengths[row]))
            assert batch.trained_tokens == sum(encoded[row].trained_tokens for row in batch.rows)
            assert batch.tokens == sum(lengths[row] for row in batch.rows)
            assert len(batch.ids) == (1 if batch.layout == "packed" else len(batch.rows))
            assert batch.layout == "padded" or batch.cells == batch.tokens
    assert seen == Counter(range(len(lengths)))


@given(lengths=some_lengths, options=some_options, data=st.data())
@settings(max_examples=40)
def test_a_step_is_the_same_whenever_and_in_whatever_order_it_is_asked_for(lengths, options, data):
    encoded = encoded_set(lengths)
    plan = BatchPlan(encoded, options)
    steps = plan.steps_in(3)
    k = data.draw(st.integers(0, steps - 1))
    for earlier in range(k):
        plan.step(earlier)
    ours, fresh = plan.step(k), BatchPlan(encoded, options).step(k)
    assert [batch.rows for batch in ours] == [batch.rows for batch in fresh]
    assert all((a.ids == b.ids).all() for a, b in zip(ours, fresh, strict=True))


@given(lengths=some_lengths, options=some_options, size=st.integers(40, 90))
def test_how_a_step_is_split_into_micro_batches_does_not_change_its_rows(lengths, options, size):
    encoded = encoded_set(lengths)
    one = BatchPlan(encoded, replace(options, micro_batch_tokens=None, micro_batch_size=None))
    many = BatchPlan(encoded, replace(options, micro_batch_tokens=size))
    assert one.steps_per_epoch == many.steps_per_epoch
    for k in range(one.steps_per_epoch):
        rows = [sorted(row for batch in plan.step(k) for row in batch.rows) for plan in (one, many)]
        assert rows[0] == rows[1]


@given(lengths=some_lengths, options=some_options)
def test_evaluation_sees_every_row_once_in_an_order_that_never_changes(lengths, options):
    encoded = encoded_set(lengths)
    batches = eval_batches(encoded, options)
    again = eval_batches(encoded, options)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(lengths)))
    assert [batch.rows for batch in batches] == [batch.rows for batch in again]
    bound = options.micro_batch_tokens or options.batch_tokens
    assert bound is None or all(batch.cells <= max(bound, *lengths) for batch in batches)


@given(lengths=some_lengths, options=some_options)
def test_the_longest_micro_batch_is_as_large_as_any_of_the_plan(lengths, options):
    plan = BatchPlan(encoded_set(lengths), options)
    largest = max(batch.cells for k in range(plan.steps_in(2)) for batch in plan.step(k))
    assert plan.longest(epochs=2).cells == largest


def test_filler_is_never_a_target_and_positions_stay_inside_the_document():
    batch = BatchPlan(encoded_set([2, 7]), BatchOptions(layout="padded", batch_size=2, pad_id=PAD)).step(0)[0]
    filler = batch.ids == PAD
    assert filler.sum() == 5
    assert not batch.trained[filler].any()
    assert (batch.position_ids < np.array(batch.lengths)[:, None]).all()
    assert (batch.tokens, batch.cells) == (9, 14)


def test_epochs_and_seeds_shuffle_anew():
    encoded = encoded_set([5] * 50)
    plan = BatchPlan(encoded, BatchOptions(batch_size=5, seed=0))
    other = BatchPlan(encoded, BatchOptions(batch_size=5, seed=1))
    epochs = [[plan.step(10 * e + k)[0].rows for k in range(10)] for e in range(2)]
    together = [{frozenset(rows) for rows in epoch} for epoch in epochs]
    assert not together[0] & together[1], "rows meet others in another epoch"
    assert epochs[0] != [other.step(k)[0].rows for k in range(10)]


def test_long_documents_do_not_come_in_order():
    lengths = np.random.default_rng(0).integers(2, 100, 2000)
    for options in (BatchOptions(batch_tokens=200), BatchOptions(layout="padded", batch_size=4)):
        plan = BatchPlan(encoded_set(lengths), options)
        longest = [max(max(batch.lengths) for batch in plan.step(k)) for k in range(plan.steps_per_epoch)]
        assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.15


def test_packing_and_bucketing_are_efficient_on_uneven_chats():
    lengths = np.clip(np.random.default_rng(0).lognormal(4, 0.9, 2000).astype(int), 4, 512)
    encoded = encoded_set(lengths)
    assert BatchPlan(encoded, BatchOptions(batch_tokens=1024)).efficiency > 0.95
    assert BatchPlan(encoded, BatchOptions(layout="padded", batch_size=8)).efficiency > 0.9
    unsorted = 8 * np.array([lengths[i : i + 8].max() for i in range(0, 2000, 8)]).sum()
    assert lengths.sum() / unsorted < 0.5


def test_weights_say_how_often_a_row_is_seen():
    encoded = encoded_set([5] * 400, weights=[2.0] * 100 + [0.5] * 200 + [1.0] * 100)
    plan = BatchPlan(encoded, BatchOptions(batch_size=10))
    seen = np.zeros(400)
    first = np.zeros(400)
    for k in range(plan.steps_in(4)):
        for batch in plan.step(k):
            np.add.at(seen, list(batch.rows), 1)
            if k < plan.steps_per_epoch:
                np.add.at(first, list(batch.rows), 1)
    assert set(seen[:100]) == {8}
    assert set(seen[100:300]) == {2}
    assert set(seen[300:]) == {4}
    assert 70 < first[100:300].sum() < 130, "half of the half-weighted rows in each epoch"


def test_epochs_are_counted_in_steps_and_back():
    plan = BatchPlan(encoded_set([5] * 20), BatchOptions(batch_size=4))
    assert (plan.steps_per_epoch, plan.steps_in(3), plan.steps_in(0.5), plan.steps_in(1.5)) == (5, 15, 3, 8)
    assert plan.epoch_at(0) == 0
    assert plan.epoch_at(5) == 1
    assert plan.epoch_at(12) == pytest.approx(2.4)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_labels_follow_their_documents(layout):
    plan = BatchPlan(encoded_set([3, 4, 5], labels=[2, 0, 1]), BatchOptions(layout=layout, batch_size=3))
    (batch,) = plan.step(0)
    assert [batch.labels[batch.rows.index(i)] for i in range(3)] == [2, 0, 1]
    assert BatchPlan(encoded_set([3]), BatchOptions(batch_size=1)).step(0)[0].labels == ()


@pytest.mark.parametrize("name", ["batch_tokens", "micro_batch_tokens"])
def test_a_budget_below_the_longest_row_is_refused(name):
    options = BatchOptions(**{"batch_tokens": 100, "micro_batch_tokens": 100, name: 40})
    with pytest.raises(ConfigError, match=f"{name}=40, but the longest row has 50"):
        BatchPlan(encoded_set([50, 3]), options)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"batch_tokens": 8, "batch_size": 2}, {"batch_size": 0}, {"batch_size": 1, "layout": "x"}],
)
def test_options_refuse_nonsense(wrong):
    with pytest.raises(ConfigError):
        BatchOptions(**wrong)


def test_no_rows_are_refused_for_training_and_are_no_batches_for_evaluation():
    empty = encoded_set([])
    with pytest.raises(DataError, match="no rows"):
        BatchPlan(empty, BatchOptions(batch_size=1))
    assert eval_batches(empty, BatchOptions(batch_size=1)) == []


def test_a_hundred_thousand_rows_are_planned_in_about_a_second():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.9, 100_000).astype(int), 8, 2048)
    ids = np.zeros(2048, dtype=np.int32)
    rows = tuple(Encoded(ids=ids[:length], trained=ids[:length] > 0, row=i) for i, length in enumerate(lengths))
    encoded = EncodedSet(rows=rows, weights=np.ones(len(rows)), stop_ids=(0,))
    assert encoded.tokens == lengths.sum()
    started = time.process_time()
    plan = BatchPlan(encoded, BatchOptions(batch_tokens=4096))
    assert plan.steps_per_epoch
    assert time.process_time() - started < 3, "about 0.1 s on an idle machine"
    assert plan.efficiency > 0.99


@pytest.mark.parametrize("ask", [lambda plan: plan.epoch_at(10**12), lambda plan: plan.steps_in(1e9)])
def test_more_passes_than_anyone_means_are_refused_at_once(ask) -> None:
    with pytest.raises(ConfigError, match="more than 10,000 passes"):
        ask(BatchPlan(encoded_set([5, 6, 7]), BatchOptions(batch_size=2)))
