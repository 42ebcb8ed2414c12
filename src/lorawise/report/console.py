"""A run on the terminal: progress on stderr, evaluations as lines, preflight as a table, one row as the model sees it.

On a terminal one live line is redrawn; elsewhere (a log file, CI) plain lines come now and then. Text from data is
never read as markup and its control characters are shown, not obeyed.
"""

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from lorawise.report import words
from lorawise.report.events import (
    Evaluated,
    Event,
    Noted,
    Preflight,
    PreflightDone,
    RunEnded,
    RunStarted,
    Saved,
    StepDone,
)

SECONDS_BETWEEN_LINES = 5.0
ROW_CHARACTERS = 1_500
WITH_BAR = 104  # columns that hold the step, a bar and all numbers
NARROW = 64  # columns; the longest name of a check takes 38 of them
LEVEL_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


class LastingConsole(Console):
    """One that raises `BrokenPipeError` when its reader has left, where rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class ConsoleReader:
    """Shows every event on `console`, which is stderr unless given. Nobody left to read it does not end the run."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or LastingConsole(stderr=True)
        self._pace = _Pace()
        self._progress: _LiveLine | _PlainLines | None = None

    def __call__(self, event: Event) -> None:
        try:
            self._show(event)
        except OSError:  # a pipe whose reader left, a terminal that is gone, a full disk
            self.console.quiet = True

    def _show(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._say(_started(event))
                self._pace.start(event)
            case PreflightDone():
                self._say(preflight_view(event.report))
            case StepDone():
                self._step(event)
            case Evaluated():
                self._say(_evaluated(event))
            case Saved():
                self._say(Text(f"step {event.step}: saved {event.path.name}", style="dim"))
            case Noted():
                finding = event.finding
                self._say(
                    Text.assemble((f"{finding.level}: ", LEVEL_STYLES[finding.level]), words.visible(str(finding)))
                )
            case RunEnded():
                self.close()
                self._say(_ended(event))

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def _step(self, event: StepDone) -> None:
        self._pace.add(event)
        if self._progress is None:
            live = self.console.is_terminal and not self.console.is_dumb_terminal
            self._progress = _LiveLine(self.console, self._pace) if live else _PlainLines(self.console, self._pace)
        self._progress.show(event)

    def _say(self, what: RenderableType) -> None:
        self.console.print(what, soft_wrap=isinstance(what, Text))


class _Pace:
    """How far the run is and how long it will take: the mean of a step's seconds, recent ones weighing more."""

    def __init__(self) -> None:
        self.total = 0
        self.first = 1
        self.mean = 0.0

    def start(self, event: RunStarted) -> None:
        self.total, self.first = event.steps_total, event.first_step

    def add(self, event: StepDone) -> None:
        weight = max(0.1, 1 / (event.step - self.first + 1))
        self.mean += weight * (event.seconds - self.mean)

    def left(self, step: int) -> float:
        return self.mean * max(self.total - step, 0)


def _numbers(event: StepDone, pace: _Pace) -> str:
    return (
        f"loss {words.loss(event.loss)}  lr {words.rate(event.learning_rate)}  {words.count(event.tokens_per_second)} "
        f"tokens/s  {words.duration(pace.left(event.step))} left  {words.size(event.memory)}"
    )


class _LiveLine:
    """The step is always readable; a narrow terminal loses the bar first, then the numbers from their end."""

    def __init__(self, console: Console, pace: _Pace) -> None:
        self.pace = pace
        step = Column(no_wrap=True, min_width=len(f"step {pace.total}/{pace.total}"))
        bar = [BarColumn(24)] if console.width >= WITH_BAR else []
        columns = (
            TextColumn("step {task.completed}/{task.total}", table_column=step),
            *bar,
            TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        self.progress = Progress(*columns, console=console, transient=True, redirect_stdout=False)
        self.task: TaskID = self.progress.add_task("", total=pace.total, numbers="")
        self.progress.start()

    def show(self, event: StepDone) -> None:
        self.progress.update(self.task, completed=event.step, numbers=_numbers(event, self.pace))

    def close(self) -> None:
        self.progress.stop()


class _PlainLines:
    def __init__(self, console: Console, pace: _Pace) -> None:
        self.console, self.pace = console, pace
        self.since = SECONDS_BETWEEN_LINES

    def show(self, event: StepDone) -> None:
        self.since += event.seconds
        if self.since >= SECONDS_BETWEEN_LINES or event.step >= self.pace.total:
            self.since = 0.0
            line = f"step {event.step}/{self.pace.total}  {_numbers(event, self.pace)}"
            self.console.print(Text(line), soft_wrap=True)

    def close(self) -> None:
        """Each line is complete."""


def _started(event: RunStarted) -> Text:
    setting = "  ".join(f"{name}={_setting(value)}" for name, value in event.setting.items() if value is not None)
    share = 100 * event.trainable_parameters / max(event.total_parameters, 1)
    lines = [
        f"run {event.run} on {event.device} in {event.dtype}",
        setting,
        f"trainable params: {words.count(event.trainable_parameters)} || all: {words.count(event.total_parameters)} "
        f"|| trainable%: {share:.4f}",
        f"{words.count(event.steps_total)} steps over {event.epochs:.4g} epoch{'' if event.epochs == 1 else 's'} of "
        f"{words.count(event.tokens_per_epoch)} "
        f"tokens, {words.count(event.trained_tokens_per_epoch)} of them trained",
    ]
    if event.first_step > 1:
        lines.append(f"going on at step {event.first_step}")
    return Text(words.visible("\n".join(lines)))


def _setting(value: object) -> str:
    return (
        words.rate(value)
        if isinstance(value, float) and 0 < value < 0.01
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _evaluated(event: Evaluated) -> Text:
    parts = [f"step {event.step}: {event.name} loss {words.loss(event.loss)}", f"perplexity {event.perplexity:.3f}"]
    measured = {"exact match": event.exact_match, "accuracy": event.accuracy, "F1": event.f1}
    parts += [f"{name} {words.percent(share)}" for name, share in measured.items() if share is not None]
    line = Text("  ".join(parts), style="bold")
    return line.append("  best so far", style="green") if event.best else line


def _ended(event: RunEnded) -> Text:
    parts = [
        f"{event.reason} after step {event.step} in {words.duration(event.seconds)}",
        f"{words.count(event.tokens)} tokens at {words.count(event.tokens_per_second)} tokens/s",
        f"peak memory {words.size(event.peak_memory)}",
    ]
    if event.validation_loss is not None and event.base_validation_loss is not None:
        parts.append(
            f"validation loss {words.loss(event.validation_loss)}, the base's {words.loss(event.base_validation_loss)}"
        )
    return Text("\n".join(parts))


def preflight_view(report: Preflight) -> RenderableType:
    """What preflight saw: each check with its mark, the counts, and one row with trained tokens coloured."""
    return Group(
        _Checks(report),
        Text(_counts(report)),
        Panel(_row(report), title="one row; trained tokens in green", expand=False),
    )


class _Checks:
    """The checks as two columns, or where the terminal is too narrow for them each detail under its check."""

    def __init__(self, report: Preflight) -> None:
        self.report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(title="preflight", title_justify="left", box=None, show_header=False, pad_edge=False)
        narrow = options.max_width < NARROW
        table.add_column(no_wrap=not narrow)
        for check in self.report.checks:
            mark = Text("✓ ", style="green") if check.passed else Text("✗ ", style="bold red")
            name, detail = mark + Text(words.visible(check.name)), Text(words.visible(check.detail), style="dim")
            if narrow:
                table.add_row(name)
                table.add_row(Padding(detail, (0, 0, 0, 4)))
            else:
                table.add_row(name, detail)
        yield table


def _counts(report: Preflight) -> str:
    parts = [
        f"{words.count(report.rows)} rows ({words.count(report.validation_rows)} for validation)",
        f"{words.count(report.tokens)} tokens, {words.count(report.trained_tokens)} trained",
        f"longest {words.count(report.longest)}",
    ]
    if report.skipped_rows:
        parts.append(f"{words.count(report.skipped_rows)} bad rows skipped")
    if report.cut_rows:
        parts.append(f"{words.count(report.cut_rows)} rows cut by {words.count(report.cut_tokens)} tokens")
    return ", ".join(parts) + f"; longest row took {words.size(report.peak_memory)}"


def _row(report: Preflight) -> Text:
    shown = Text()
    for piece in report.row:
        room = ROW_CHARACTERS - len(shown)
        if room <= 0:
            return shown.append(" …", style="dim")
        shown.append(words.visible(piece.text[:room]), style="green" if piece.trained else "dim")
    return shown
