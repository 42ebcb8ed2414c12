"""What a person sees of a study: a table that fits the terminal, plain lines elsewhere, and an honest time left."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.tuning.small_study import small_study

from lorawise.report.console import LastingConsole
from lorawise.tuning.console import StudyConsole, table_of
from lorawise.tuning.events import (
    PackStepped,
    RungEnded,
    StudyResumed,
    StudyStarted,
    TrialAsked,
    TrialMeasured,
    WorkerChanged,
)
from lorawise.tuning.folder import StudyFolder
from lorawise.tuning.pace import Pace
from lorawise.tuning.result import table


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    work = tmp_path_factory.mktemp("console")
    over = ("lora.r=2,8", "lora.scaling=0.5,8", "train.learning_rate=1e-3,1e-2,1e+30")
    return StudyFolder(path=small_study(work, work / "study", over=over).study).events()


def shown_on(events, *, width: int, terminal: bool, height: int = 40) -> str:
    out = io.StringIO()
    console = StudyConsole(
        Console(file=out, width=width, height=height, force_terminal=terminal, color_system=None, highlight=False)
    )
    for event in events:
        console._drawn = -1e9 if terminal else console._drawn  # every step is drawn
        console(event)
    console.close()
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_table_fits_the_terminal_and_says_what_each_setting_does(events, width):
    seen = shown_on(events, width=width, terminal=True)
    lines = [line.split("\x1b")[0] for line in seen.splitlines()]
    assert max(len(line.rstrip()) for line in lines if "behind" in line or "training" in line) <= width
    for said in ("training", "eliminated", "failed at step", "leads", " ± ", "tokens/s", "left"):
        assert said in seen


def test_the_table_leaves_room_on_a_low_terminal(events):
    rows = table(events, ended=True)
    console = Console(file=io.StringIO(), width=80)
    assert len(console.render_lines(table_of(rows, events, most=5))) == 7
    assert "… 7 more" in shown_on(events, width=80, terminal=True, height=13)


def test_elsewhere_it_is_plain_lines(events):
    seen = shown_on(events, width=80, terminal=False)
    assert "\x1b" not in seen
    lines = seen.splitlines()
    assert lines[0] == "study    12 settings of r × scaling × lr; 8 at most side by side"
    assert sum(line.startswith("failed") for line in lines) == 4
    assert sum(line.startswith("rung ") for line in lines) == len([e for e in events if isinstance(e, RungEnded)])
    assert len(lines) < 20


def test_a_resumed_study_knows_what_came_before(events):
    first = next(i for i, event in enumerate(events) if isinstance(event, RungEnded))
    before = tuple(event for event in events[: first + 1] if not isinstance(event, PackStepped))
    seen = shown_on([StudyResumed(told=before), *events[first + 1 :]], width=100, terminal=True)
    assert "rung 1 of 3 done before" in seen or "rung 1 of 2 done before" in seen
    assert "eliminated" in seen
    assert "left" in seen


def test_nobody_left_to_read_does_not_end_the_study(events):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    console = StudyConsole(LastingConsole(file=Gone(), width=80))
    for event in events:
        console(event)


def pretend(rungs, trials, slots, *, second: float):
    """A study whose settings take `second` each a step, whatever stands beside them; measuring takes nothing."""
    yield StudyStarted(
        axes=("lora.r",),
        rungs=rungs,
        trials=trials,
        slots=slots,
        sampler="tpe",
        eliminate="halving",
        first_rung=1,
        rows=10,
        validation_rows=5,
        base_loss=2.0,
    )
    for trial in range(trials):
        yield TrialAsked(trial=trial, setting={"lora.r": trial + 1}, full={}, origin="grid")
    alive, before = list(range(trials)), 0
    for rung, last in enumerate(rungs, start=1):
        for first in range(0, len(alive), slots):
            pack = tuple(alive[first : first + slots])
            for step in range(before + 1, last + 1):
                yield PackStepped(
                    rung=rung,
                    step=step,
                    trials=pack,
                    losses=(1.0,) * len(pack),
                    rates=(1e-3,) * len(pack),
                    tokens=100,
                    seconds=second * len(pack),
                )
        kept = alive if rung == len(rungs) else alive[: -(-len(alive) // 4)]
        yield RungEnded(
            rung=rung,
            step=last,
            ranking=tuple(alive),
            kept=tuple(kept),
            eliminated=tuple(alive[len(kept) :]),
            seconds=1.0,
            evaluation_seconds=0.0,
        )
        alive, before = list(kept), last


@given(
    rungs=st.sampled_from([(20,), (16, 64), (15, 60, 240)]),
    trials=st.integers(1, 40),
    slots=st.sampled_from([1, 4, 16]),
    second=st.floats(0.01, 3.0),
)
def test_time_left_is_what_is_left_where_every_step_costs_the_same(rungs, trials, slots, second):
    events = list(pretend(rungs, trials, slots, second=second))
    total = sum(e.seconds for e in events if isinstance(e, PackStepped))
    pace, spent = Pace(), 0.0
    assert pace.left() is None
    for event in events:
        pace(event)
        if isinstance(event, PackStepped):
            spent += event.seconds
            assert pace.left() == pytest.approx(total - spent, rel=1e-6, abs=1e-6 * total)
            assert pace.tokens_per_second() == pytest.approx(100 / second)


def test_two_workers_take_half_the_time_and_make_twice_the_tokens():
    events = list(pretend((20,), 8, 4, second=0.5))
    pace = Pace()
    for number in (1, 2):
        pace(WorkerChanged(host="here", pid=number, state="joined", trials=()))
    steps = [e for e in events if isinstance(e, PackStepped)]
    for event in events[: -len(steps) - 1]:
        pace(event)
    pace(steps[0])
    pace(steps[20])
    assert pace.tokens_per_second() == pytest.approx(400)
    assert pace.left() == pytest.approx((8 * 20 - 8) * 0.5 / 2)
    assert not any(isinstance(e, TrialMeasured) for e in events)
