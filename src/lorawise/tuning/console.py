"""A study on the terminal: one live table of settings; elsewhere a line now and then. All on stderr.

Columns: the axes, the rung, training loss, validation loss, how far behind the leader of the same rung (± 95 %, paired
row by row), and what becomes of the setting.
"""

import math
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorawise.report import words
from lorawise.report.console import LastingConsole
from lorawise.tuning.events import (
    Event,
    PackStepped,
    RungEnded,
    StudyEnded,
    StudyResumed,
    StudyStarted,
    TrialAsked,
    TrialFailed,
    TrialMeasured,
    WorkerChanged,
    measured_in,
)
from lorawise.tuning.pace import Pace
from lorawise.tuning.result import SHORT, Row, in_words, shown, table
from lorawise.tuning.rungs import paired_interval

SHOWN = 20
REDRAWS = 0.25  # seconds between
SECONDS_BETWEEN_LINES = 20.0
MOST_COLUMNS = 5  # axes with a column of their own
STYLES = {"leads": "bold green", "eliminated": "dim", "failed": "red", "equal": "dim"}


class StudyConsole:
    """Shows every event; nobody left to read it does not end the study."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or LastingConsole(stderr=True)
        self._told: list[Event] = []
        self._pace = Pace()
        self._training: dict[int, float] = {}  # trial → its training loss, a running mean
        self._busy: set[int] = set()  # settings that have begun this rung and are not measured yet
        self._live: Live | None = None
        self._drawn = -math.inf

    def __call__(self, event: Event | StudyResumed) -> None:
        for each in event.told if isinstance(event, StudyResumed) else (event,):
            self._pace(each)
            self._keep_busy(each)
            if not isinstance(each, PackStepped):
                self._told.append(each)
        try:
            self._show(event)
        except OSError:
            self.console.quiet = True

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, event: Event | StudyResumed) -> None:
        match event:
            case StudyResumed():
                self._resumed()
            case StudyStarted():
                self._began(event)
            case PackStepped():
                self._step(event)
            case TrialFailed() if self._live is None:  # the table shows it
                self._say("failed", f"{self._words(event.trial)} at step {event.step}: {event.reason}")
            case WorkerChanged():
                hand = f"; its {len(event.trials)} settings go on elsewhere" if event.state == "lost" else ""
                self._say("worker", f"{event.host}, process {event.pid}: {event.state}{hand}")
            case RungEnded():
                self._compared(event)
            case StudyEnded():
                self.close()

    def _began(self, event: StudyStarted) -> None:
        axes = " × ".join(_short(key) for key in event.axes)
        self._say("study", f"{event.trials} settings of {axes}; {event.slots} at most side by side")
        steps = ", ".join(str(step) for step in event.rungs)
        rows = f"on {event.validation_rows} validation rows"
        self._say("rungs", f"after step{'' if len(event.rungs) == 1 else 's'} {steps}, {rows}")
        self._say("base", f"loss {words.loss(event.base_loss)}")
        if len(event.rungs) > 1:
            self._say("note", f"the learning rate is held until step {event.rungs[-2]}, then decays")

    def _resumed(self) -> None:
        done = sum(isinstance(each, RungEnded) for each in self._told)
        started = self._pace.started
        of = f" of {len(started.rungs)}" if started is not None else ""
        self._say("resumed", f"rung{'' if done == 1 else 's'} 1{f' to {done}' if done > 1 else ''}{of} done before")

    def _compared(self, event: RungEnded) -> None:
        best = next(e for e in measured_in(self._told, event.rung) if e.trial == event.ranking[0])
        self._say(
            f"rung {event.rung}",
            f"step {event.step}: {self._words(best.trial)} leads with {words.loss(best.loss)}; "
            f"{len(event.kept)} of {len(event.ranking)} kept; {words.duration(event.seconds)}",
        )
        started = self._pace.started
        if started is not None and event.rung == len(started.rungs):
            self.close()
            self._say("then", "the winner's scaling is turned up and down, and the finalists answer")

    def _step(self, event: PackStepped) -> None:
        for trial, loss in zip(event.trials, event.losses, strict=True):
            self._training[trial] = 0.9 * self._training.get(trial, loss) + 0.1 * loss
        live = self.console.is_terminal and not self.console.is_dumb_terminal
        now = time.perf_counter()
        if now - self._drawn < (REDRAWS if live else SECONDS_BETWEEN_LINES):
            return
        first, self._drawn = self._drawn == -math.inf, now
        if not live:
            if not first:
                self._say("…", self._progress(event))
            return
        progress = Text(self._progress(event), style="dim", no_wrap=True, overflow="ellipsis")
        view = Group(self._view(event.rung), progress)
        if self._live is None:
            self._live = Live(view, console=self.console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(view, refresh=True)

    def _progress(self, event: PackStepped) -> str:
        started, left = self._pace.started, self._pace.left()
        rung = f"rung {event.rung}" + (f" of {len(started.rungs)}" if started is not None else "")
        step = f"step {event.step}" + (f" of {started.rungs[event.rung - 1]}" if started is not None else "")
        rate = words.count(self._pace.tokens_per_second())
        side = f"{len(self._busy)} side by side" + (
            f" on {workers} workers" if (workers := self._pace.workers) > 1 else ""
        )
        parts = [rung, step, side, f"{rate} tokens/s"]
        return "  ".join([*parts, f"about {words.duration(left)} left"] if left is not None else parts)

    def _view(self, rung: int) -> Table:
        rows = table(self._told, ended=False)
        states = {row.trial: self._doing(row, rung) for row in rows}
        room = max(3, self.console.height - 8)
        return table_of(rows, self._told, training=self._training, states=states, most=min(SHOWN, room))

    def _doing(self, row: Row, rung: int) -> str:
        if row.state != "running":
            return f"failed at step {row.step}" if row.state == "failed" else row.state
        if any(isinstance(e, TrialMeasured) and e.trial == row.trial and e.rung == rung for e in self._told):
            return "measured"
        return "training" if row.trial in self._busy else "waiting"

    def _keep_busy(self, event: Event) -> None:
        match event:
            case PackStepped():
                self._busy |= set(event.trials)
            case TrialMeasured() | TrialFailed():
                self._busy -= {event.trial}
            case RungEnded():
                self._busy = set()

    def _say(self, name: str, text: str) -> None:
        self.console.print(Text(f"{name:<8} {words.visible(text)}"), soft_wrap=True)

    def _words(self, trial: int) -> str:
        return in_words(next(e for e in self._told if isinstance(e, TrialAsked) and e.trial == trial).setting)


def table_of(
    rows: Sequence[Row],
    told: Sequence[Event],
    *,
    training: dict[int, float] | None = None,
    states: dict[int, str] | None = None,
    most: int = SHOWN,
) -> Table:
    """The settings, best first; while they train with their `training` losses and what each is doing (`states`)."""
    axes = list(rows[0].setting) if rows else []
    apart = len(axes) <= MOST_COLUMNS
    view = Table(box=None, pad_edge=False)
    view.add_column("", justify="right", style="dim", no_wrap=True)
    for name in [_short(key) for key in axes] if apart else ["setting"]:
        view.add_column(name, justify="right" if apart else "left", no_wrap=True, overflow="ellipsis")
    view.add_column("rung", justify="right", no_wrap=True)
    if training is not None:
        view.add_column("train", justify="right", no_wrap=True)
    view.add_column("loss", justify="right", no_wrap=True)
    view.add_column("behind the leader", justify="right", no_wrap=True, min_width=14)
    view.add_column("", no_wrap=True)
    behind, rungs = _behind(told), {e.trial: e.rung for e in told if isinstance(e, TrialMeasured)}
    for row in rows[:most]:
        state = f"same as {row.equal_to}" if row.equal_to is not None else (states or {}).get(row.trial, row.state)
        gap = behind.get(row.trial, "") if row.equal_to is None else ""
        cells = [shown(row.setting[key], key) for key in axes] if apart else [in_words(row.setting)]
        cells.append(str(rungs.get(row.trial if row.equal_to is None else row.equal_to, "")))
        if training is not None:
            cells.append(f"{training[row.trial]:.3f}" if row.trial in training else "")
        cells.append("" if row.validation_loss is None else words.loss(row.validation_loss))
        style = STYLES.get("leads" if gap == "leads" and row.state != "eliminated" else row.state, "")
        view.add_row(str(row.trial), *(Text(words.visible(cell)) for cell in (*cells, gap, state)), style=style)
    if len(rows) > most:
        view.add_row("", Text(f"… {len(rows) - most} more", style="dim"))
    return view


def _short(key: str) -> str:
    return SHORT.get(key, key.partition(".")[2])


def _behind(told: Sequence[Event]) -> dict[int, str]:
    """trial → its paired difference to the leader of the last rung it was measured in."""
    by_rung: dict[int, list[TrialMeasured]] = {}
    for event in told:
        if isinstance(event, TrialMeasured) and math.isfinite(event.loss):
            by_rung.setdefault(event.rung, []).append(event)
    said: dict[int, str] = {}
    for rung in sorted(by_rung):
        leader = min(by_rung[rung], key=lambda e: (e.loss, e.trial))
        for each in by_rung[rung]:
            gap = paired_interval(np.array(each.row_losses), np.array(leader.row_losses))
            said[each.trial] = "leads" if each is leader else str(gap)
    return said
