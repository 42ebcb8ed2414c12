import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorawise.base.errors import ConfigError
from lorawise.training.schedule import Schedule, schedules, warmup_steps


@given(name=st.sampled_from(sorted(schedules)), total=st.integers(1, 300), data=st.data())
def test_every_step_moves_and_none_moves_more_than_the_peak(name, total, data):
    warmup = data.draw(st.integers(0, total - 1))
    factors = [Schedule(name=name, total=total, warmup=warmup)(k) for k in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[warmup] == 1.0
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


def test_shapes_are_the_ones_named():
    cosine = Schedule(name="cosine", total=110, warmup=10)
    assert (cosine(0), cosine(10), cosine(60)) == (pytest.approx(1 / 11), 1.0, pytest.approx(0.5))
    linear = Schedule(name="linear", total=100)
    assert (linear(0), linear(25), linear(99)) == (1.0, 0.75, pytest.approx(0.01))
    wsd = Schedule(name="wsd", total=100)
    assert (wsd(0), wsd(80), wsd(95)) == (1.0, 1.0, pytest.approx(1 - 0.75**0.5))
    assert Schedule(name="constant", total=5)(4) == 1.0


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match="a warm-up of 100 steps in a run of 60"):
        Schedule(name="cosine", total=60, warmup=100)


def test_an_unknown_schedule_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        Schedule(name="cosin", total=10)


@pytest.mark.parametrize(
    ("warmup", "total", "steps"), [(5, 100, 5), (0.03, 100, 3), (0.03, 10, 1), (0.5, 1, 0), (0.0, 9, 0)]
)
def test_a_warmup_is_steps_or_a_share(warmup, total, steps):
    assert warmup_steps(warmup, total) == steps
