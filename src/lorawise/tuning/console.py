"""A study on the terminal: one live table of settings; elsewhere a line a rung. All on stderr."""

import math
import time

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

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
)
from lorawise.tuning.result import Row, in_words, table
from lorawise.tuning.rungs import paired_interval

SHOWN = 20
REDRAWS = 0.25  # seconds between


class StudyConsole:
    """Shows every event; nobody left to read it does not end the study."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._told: list[Event] = []
        self._live: Live | None = None
        self._drawn = 0.0

    def __call__(self, event: Event | StudyResumed) -> None:
        if isinstance(event, StudyResumed):
            self._told.extend(event.told)
        elif not isinstance(event, PackStepped):
            self._told.append(event)
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
                done = sum(isinstance(each, RungEnded) for each in event.told)
                self._say(f"going on after rung {done}")
            case StudyStarted():
                rungs = ", ".join(str(step) for step in event.rungs)
                self._say(
                    f"study    {event.trials} settings of {', '.join(event.axes)}; compared after steps {rungs} on "
                    f"{event.validation_rows} rows; {event.slots} at most side by side"
                )
                if len(event.rungs) > 1:
                    self._say(f"note     the learning rate is held until step {event.rungs[-2]}, then decays")
            case PackStepped():
                self._step(event)
            case TrialFailed():
                self._say(f"failed   setting {event.trial} at step {event.step}: {event.reason}")
            case WorkerChanged():
                hand = f"; its {len(event.trials)} settings go on elsewhere" if event.state == "lost" else ""
                self._say(f"worker   {event.host}, process {event.pid}: {event.state}{hand}")
            case RungEnded():
                best = next(e for e in self._measured(event.rung) if e.trial == event.ranking[0])
                setting = in_words(self._setting(best.trial).setting)
                self._say(
                    f"rung {event.rung:<3} step {event.step}: {setting} leads with {best.loss:.4f}; "
                    f"{len(event.kept)} of {len(event.ranking)} kept; {event.seconds:.0f} s"
                )
            case StudyEnded():
                self.close()

    def _step(self, event: PackStepped) -> None:
        if not self.console.is_terminal or time.perf_counter() - self._drawn < REDRAWS:
            return
        self._drawn = time.perf_counter()
        started = next((e for e in self._told if isinstance(e, StudyStarted)), None)
        end = f"of {started.rungs[event.rung - 1]}" if started is not None else ""
        rate = event.tokens * len(event.trials) / event.seconds
        caption = f"rung {event.rung}, step {event.step} {end}; {len(event.trials)} side by side, {rate:,.0f} tokens/s"
        view = table_of(table(self._told, ended=False), self._told, caption=caption)
        if self._live is None:
            self._live = Live(view, console=self.console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(view, refresh=True)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _measured(self, rung: int) -> list[TrialMeasured]:
        return [e for e in self._told if isinstance(e, TrialMeasured) and e.rung == rung]

    def _setting(self, trial: int) -> TrialAsked:
        return next(e for e in self._told if isinstance(e, TrialAsked) and e.trial == trial)


def table_of(rows: tuple[Row, ...], told: list[Event], *, caption: str = "") -> Table:
    """Setting, steps, loss, the paired difference to the leader of the same rung (± 95 %), state."""
    view = Table(box=None, caption=caption or None, caption_justify="left", pad_edge=False)
    for name, side in (("", "right"), ("setting", "left"), ("steps", "right"), ("loss", "right")):
        view.add_column(name, justify="right" if side == "right" else "left")
    view.add_column("behind the leader", justify="right")
    view.add_column("state")
    behind = _behind(told)
    for row in rows[:SHOWN]:
        loss = "" if row.validation_loss is None else f"{row.validation_loss:.4f}"
        state = f"equal to {row.equal_to}" if row.equal_to is not None else row.state
        gap = behind.get(row.trial, "") if row.equal_to is None else ""
        view.add_row(str(row.trial), in_words(row.setting), str(row.step), loss, gap, state)
    return view


def _behind(told: list[Event]) -> dict[int, str]:
    by_rung: dict[int, list[TrialMeasured]] = {}
    for event in told:
        if isinstance(event, TrialMeasured) and math.isfinite(event.loss):
            by_rung.setdefault(event.rung, []).append(event)
    shown: dict[int, str] = {}
    for rung in sorted(by_rung):
        leader = min(by_rung[rung], key=lambda e: e.loss)
        for each in by_rung[rung]:
            gap = paired_interval(np.array(each.row_losses), np.array(leader.row_losses))
            shown[each.trial] = "leads" if each is leader else f"{gap.mean:+.3f} ± {gap.half:.3f}"
    return shown
