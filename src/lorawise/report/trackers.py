"""TensorBoard, Weights & Biases, MLflow, Trackio: one small reader each of the step stream.

Each is imported when a run asks for it (`train.trackers: [tensorboard]`) and comes with `pip install
'lorawise[trackers]'`. All get the same names: train/loss, train/learning_rate, validation/loss, base/loss, …
A number that is not finite is not sent. What a service calls a run is kept in the run's folder (`trackers.json`), so
that a resumed run goes on in the same place.
"""

import importlib
import json
import math
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lorawise.base.errors import ConfigError, LorawiseError
from lorawise.base.files import write_text
from lorawise.base.registry import Registry
from lorawise.report.events import Evaluated, Event, RunStarted, StepDone

PROJECT = "lorawise"
IDS_NAME = "trackers.json"
STEP_NUMBERS = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory", "epoch")
EVALUATION_NUMBERS = ("loss", "perplexity", "exact_match", "accuracy", "f1")

TRACKERS: Registry["type[Tracker]"] = Registry("tracker")


def require_trackers(names: Sequence[str]) -> None:
    """ConfigError when one is unknown or not installed; asked before a run writes anything."""
    for name in names:
        _library(name, TRACKERS[name].package)


def open_trackers(names: Sequence[str], run: Path) -> tuple["Tracker", ...]:
    """One reader a name, for the run in folder `run`. ConfigError when one is unknown or not installed."""
    return tuple(TRACKERS[name](run) for name in dict.fromkeys(names))


class Tracker(ABC):
    """A reader that hands a run's numbers on. `start` comes once, before the first `log`."""

    package: ClassVar[str]

    @abstractmethod
    def __init__(self, run: Path) -> None: ...

    lost = False  # the service failed on the way: what follows is not sent

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.begin(dict(event.setting), event.first_step)
            case StepDone():
                self.send(_numbers("train", event, STEP_NUMBERS), event.step)
            case Evaluated():
                self.send(_numbers(event.name, event, EVALUATION_NUMBERS), event.step)

    def begin(self, setting: Mapping[str, object], first_step: int) -> None:
        """`start`, or `ConfigError` when the service will not."""
        try:
            self.start(setting, first_step)
        except LorawiseError:
            raise
        except Exception as problem:
            raise ConfigError(
                f"the tracker '{self.package}' did not start: {problem}",
                cure="log in to it, or take it out of train.trackers",
            ) from problem

    def send(self, numbers: Mapping[str, float | None], step: int) -> None:
        """`log` what is finite. A service that fails on the way (a network that is down) is told once and left, since a
        run is worth more than its curves."""
        if self.lost:
            return
        finite = {name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)}
        try:
            self.log(finite, step)
        except LorawiseError:
            raise
        except Exception as problem:  # noqa: BLE001 - whatever a service's library raises
            self._leave(problem)

    def close(self) -> None:
        try:
            self.end()
        except Exception as problem:  # noqa: BLE001 - as above
            if not self.lost:
                self._leave(problem)

    def _leave(self, problem: Exception) -> None:
        self.lost = True
        print(
            f"warning: '{self.package}' takes no more numbers ({problem}); the run's own files have all",
            file=sys.stderr,
        )

    @abstractmethod
    def start(self, setting: Mapping[str, object], first_step: int) -> None: ...

    @abstractmethod
    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    @abstractmethod
    def end(self) -> None: ...


def _numbers(prefix: str, event: StepDone | Evaluated, names: Sequence[str]) -> dict[str, float | None]:
    return {f"{prefix}/{name}": getattr(event, name) for name in names}


@TRACKERS.register("tensorboard")
class TensorBoard(Tracker):
    """Event files in `<run>/tensorboard`; a resumed run hides what came after its checkpoint."""

    package = "tensorboard"

    def __init__(self, run: Path) -> None:
        writers = _library("tensorboard", "tensorboard.summary.writer.event_file_writer")
        self.protos = _library("tensorboard", "tensorboard.compat.proto.event_pb2")
        self.summaries = _library("tensorboard", "tensorboard.compat.proto.summary_pb2")
        self.writer = writers.EventFileWriter(str(run / "tensorboard"))

    def start(self, setting: Mapping[str, object], first_step: int) -> None:
        if first_step > 1:
            log = self.protos.SessionLog(status=self.protos.SessionLog.START)
            self.writer.add_event(self.protos.Event(wall_time=time.time(), step=first_step, session_log=log))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        values = [self.summaries.Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        summary = self.summaries.Summary(value=values)
        self.writer.add_event(self.protos.Event(wall_time=time.time(), step=step, summary=summary))

    def end(self) -> None:
        self.writer.close()


@TRACKERS.register("wandb")
class Wandb(Tracker):
    package = "wandb"

    def __init__(self, run: Path) -> None:
        self.library = _library("wandb", "wandb")
        self.folder = run
        self.run: Any = None

    def start(self, setting: Mapping[str, object], first_step: int) -> None:
        known = _known_id(self.folder, "wandb")
        found = known or _remember(self.folder, "wandb", secrets.token_hex(4))
        self.run = self.library.init(
            project=PROJECT,
            name=self.folder.name,
            id=found,
            resume="allow",
            config=dict(setting),
            dir=str(self.folder),
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def end(self) -> None:
        if self.run is not None:
            self.run.finish()


@TRACKERS.register("mlflow")
class MLflow(Tracker):
    package = "mlflow"

    def __init__(self, run: Path) -> None:
        self.library = _library("mlflow", "mlflow")
        self.folder = run
        self.started = False

    def start(self, setting: Mapping[str, object], first_step: int) -> None:
        self.library.set_experiment(PROJECT)
        known = _known_id(self.folder, "mlflow")
        run = self.library.start_run(run_id=known, run_name=self.folder.name)
        self.started = True
        if known is None:
            _remember(self.folder, "mlflow", str(run.info.run_id))
            self.library.log_params({name: str(value) for name, value in setting.items()})

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.library.log_metrics(dict(numbers), step=step)

    def end(self) -> None:
        if self.started:
            self.library.end_run()


@TRACKERS.register("trackio")
class Trackio(Tracker):
    package = "trackio"

    def __init__(self, run: Path) -> None:
        self.library = _library("trackio", "trackio")
        self.folder = run
        self.started = False

    def start(self, setting: Mapping[str, object], first_step: int) -> None:
        known = _known_id(self.folder, "trackio")
        name = known or _remember(self.folder, "trackio", f"{self.folder.name}-{secrets.token_hex(2)}")
        resume = "never" if known is None else "allow"
        self.library.init(project=PROJECT, name=name, config=dict(setting), resume=resume)
        self.started = True

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.library.log(dict(numbers), step=step)

    def end(self) -> None:
        if self.started:
            self.library.finish()


def _known_id(folder: Path, tracker: str) -> str | None:
    """What `tracker` calls the run in `folder`; None before its first start."""
    return _ids(folder).get(tracker)


def _remember(folder: Path, tracker: str, found: str) -> str:
    write_text(folder / IDS_NAME, json.dumps(_ids(folder) | {tracker: found}, indent=1) + "\n")
    return found


def _ids(folder: Path) -> dict[str, str]:
    try:
        held = json.loads((folder / IDS_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return {str(name): str(value) for name, value in held.items()} if isinstance(held, dict) else {}


def _library(tracker: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"train.trackers names '{tracker}', but its package is not installed (no module '{missing.name}')",
            cure="pip install 'lorawise[trackers]', or take it out of train.trackers",
        ) from None
