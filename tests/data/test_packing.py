import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawise.data.packing import pack, pack_windows, random_bits, shuffled

lengths_within = st.lists(st.integers(1, 64), min_size=1, max_size=200)


@given(lengths=lengths_within, capacity=st.integers(64, 300), most=st.none() | st.integers(1, 5))
def test_every_document_is_in_exactly_one_bin_and_no_bin_overflows(lengths, capacity, most):
    bins = pack(lengths, capacity, most=most)
    assert sorted(index for chosen in bins for index in chosen) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in chosen) <= capacity for chosen in bins)
    assert most is None or all(len(chosen) <= most for chosen in bins)


@given(lengths=lengths_within, capacity=st.integers(64, 300), window=st.integers(1, 50))
def test_windows_lose_and_repeat_nothing(lengths, capacity, window):
    sizes = np.array(lengths)
    order = shuffled(np.arange(len(lengths)), 7)
    bins = list(pack_windows(order, sizes, capacity, window=window))
    assert sorted(np.concatenate(bins).tolist()) == list(range(len(lengths)))
    assert all(sizes[chosen].sum() <= capacity for chosen in bins)


@given(lengths=lengths_within, capacity=st.integers(64, 300))
def test_no_two_bins_fit_into_one(lengths, capacity):
    filled = sorted(sum(lengths[i] for i in chosen) for chosen in pack(lengths, capacity))
    assert len(filled) == 1 or filled[0] + filled[1] > capacity


def test_a_document_longer_than_the_capacity_has_a_bin_of_its_own():
    assert pack([9, 3, 2], 5) == [[0], [1, 2]]


def test_the_best_fit_is_taken_not_the_first():
    assert pack([7, 6, 4, 3], 10) == [[0, 3], [1, 2]]


def test_chats_of_many_lengths_fill_more_than_nine_tenths():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.9, 3000).astype(int), 8, 1024)
    bins = pack(lengths, 1024)
    assert lengths.sum() / (len(bins) * 1024) > 0.97


def test_what_a_small_window_leaves_open_goes_on_into_the_next():
    lengths = np.random.default_rng(0).integers(1, 40, 1000)
    bins = list(pack_windows(np.arange(1000), lengths, 100, window=8))
    assert lengths.sum() / (len(bins) * 100) > 0.85


def test_a_shuffle_follows_from_its_seeds_alone():
    indices = np.arange(1000)
    assert shuffled(indices, 1, 2).tolist() == shuffled(indices, 1, 2).tolist()
    assert sorted(shuffled(indices, 1, 2).tolist()) == indices.tolist()
    orders = [shuffled(indices, *seeds) for seeds in ((1, 2), (2, 1), (1, 3), (1,))]
    for i, one in enumerate(orders):
        assert all((one == other).mean() < 0.02 for other in orders[:i])


def splitmix64(state):
    """The published algorithm on Python's integers."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_the_random_numbers_are_splitmix64_on_every_machine():
    state = splitmix64(splitmix64(0 ^ 42) ^ 7)
    expected = [splitmix64((state + i * 0x9E3779B97F4A7C15) % 2**64) for i in (1, 2, 3)]
    assert random_bits(3, 42, 7).tolist() == expected


@pytest.mark.parametrize("seeds", [(0,), (1, 5), (2**63, 3)])
def test_the_random_numbers_are_uniform(seeds):
    unit = random_bits(20_000, *seeds) / 2.0**64
    assert abs(unit.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(unit[:-1], unit[1:])[0, 1]) < 0.03
