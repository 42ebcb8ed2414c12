"""A study in TensorBoard, Weights & Biases, MLflow or Trackio: one run a setting, by the readers of training.

    trackers/STUDY-07_scaling_4_lr_1e-4/     what each service knows the setting by; TensorBoard's event files

A setting's numbers are handed on at the end of a rung, run by run: the services know one current run at a time, and a
rung that is done again after a kill was not told yet. `tensorboard --logdir STUDY/trackers` shows them all.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorawise.report.trackers import TRACKERS, require_trackers
from lorawise.tuning.events import (
    Event,
    PackStepped,
    RungEnded,
    StudyResumed,
    StudyStarted,
    TrialAsked,
    TrialMeasured,
)
from lorawise.tuning.result import in_words

FOLDER = "trackers"
LONGEST = 60  # characters of a setting in a name


Numbers = list[tuple[int, dict[str, float | None]]]  # (step, name → value), in order


class StudyTrackers:
    """A reader. `ConfigError` where a service is unknown, not installed or will not start."""

    def __init__(self, names: Sequence[str], study: Path) -> None:
        require_trackers(names)
        self._names = tuple(dict.fromkeys(names))
        self._study = study
        self._asked: dict[int, TrialAsked] = {}
        self._heard: dict[int, Numbers] = {}
        self._base_loss: float | None = None
        self._lost: set[str] = set()

    def __call__(self, event: Event | StudyResumed) -> None:
        match event:
            case StudyResumed():
                self._asked |= {each.trial: each for each in event.told if isinstance(each, TrialAsked)}
            case StudyStarted():
                self._base_loss = event.base_loss
            case TrialAsked():
                self._asked[event.trial] = event
            case PackStepped():
                self._step(event)
            case TrialMeasured():
                self._of(event.trial).append((event.step, {"validation/loss": event.loss}))
            case RungEnded():
                for trial, heard in sorted(self._heard.items()):
                    self._hand_on(trial, heard)
                self._heard.clear()

    def _step(self, event: PackStepped) -> None:
        rate = event.tokens / event.seconds if event.seconds else None
        for trial, loss, learning_rate in zip(event.trials, event.losses, event.rates, strict=True):
            told = {"train/loss": loss, "train/learning_rate": learning_rate, "train/tokens_per_second": rate}
            if event.step == 1:
                self._of(trial).append((0, {"base/loss": self._base_loss}))
            self._of(trial).append((event.step, told))

    def _of(self, trial: int) -> Numbers:
        return self._heard.setdefault(trial, [])

    def _hand_on(self, trial: int, heard: Numbers) -> None:
        asked = self._asked[trial]
        folder = self._study / FOLDER / run_name(self._study.name, asked)
        folder.mkdir(parents=True, exist_ok=True)
        setting: Mapping[str, object] = {"trial": trial, **asked.full, **asked.setting}
        for name in self._names:
            if name in self._lost:
                continue
            tracker = TRACKERS[name](folder)
            try:
                tracker.begin(setting, max(heard[0][0], 1))
                for step, numbers in heard:
                    tracker.send(numbers, step)
            finally:
                tracker.close()
            if tracker.lost:
                self._lost.add(name)


def run_name(study: str, asked: TrialAsked) -> str:
    """`first-07_scaling_4_lr_1e-4`: what a service shows, and the name of a folder."""
    words = re.sub(r"[^A-Za-z0-9.+-]+", "_", in_words(asked.setting))[:LONGEST].strip("_")
    return f"{study}-{asked.trial:02d}_{words}"
