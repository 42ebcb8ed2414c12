"""`tune`: a run file and axes become a table of settings, the best adapter, and what is known of the difference.

    ask settings ─▶ [ bank them ─ step to the rung ─ score every slot on the same rows ─ eliminate ]* ─▶ the best

All settings see the same rows in the same order. The learning rate is held (after warm-up) until the last rung and
decays for the finalists by the run file's schedule: a decaying rate mis-ranks high rates at an early rung.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from lorawise.base.errors import ConfigError, UsageError
from lorawise.base.files import digest_text
from lorawise.models.files import resolve_model
from lorawise.report.trackers import require_trackers
from lorawise.runfile import RunFile, load_run_file, require_built
from lorawise.training.inputs import Inputs, dated, read_inputs
from lorawise.training.setup import prepare
from lorawise.tuning.events import Reader
from lorawise.tuning.folder import StudyFolder
from lorawise.tuning.options import StudyOptions
from lorawise.tuning.result import StudyResult
from lorawise.tuning.rungs import ETA, rung_steps
from lorawise.tuning.session import Study
from lorawise.tuning.shared import Plans, every_shared
from lorawise.tuning.space import Axis, Grid, default_axes, grid_of, parse_axes
from lorawise.tuning.width import slots_of

DEFAULT_TRIALS = 16


def tune(
    run_file: RunFile | Path | str,
    *,
    out: Path | str,
    options: StudyOptions | None = None,
    resume: bool = False,
    readers: Sequence[Reader] = (),
) -> StudyResult:
    """Find the best setting around `run_file`, into the folder `out`; every event is told to `readers`.

    `UsageError` for what cannot be meant, `Interrupted` after a signal: `resume=True` then goes on from the last rung.
    """
    run = run_file if isinstance(run_file, RunFile) else load_run_file(run_file)[0]
    require_built(run)
    require_trackers(run.train.trackers)
    options = options or StudyOptions()
    folder = StudyFolder(path=Path(out))
    folder.require_usable(resume=resume)
    if resume and folder.asked.is_file():
        run = run.with_values({"data.date": load_run_file(folder.path / "run.yaml")[0].data.date})
    run = dated(run)
    axes = parse_axes(options.over, run) if options.over else default_axes(run)
    count = _count(axes, options)
    files = resolve_model(run.model)
    inputs = read_inputs(run, files)
    _require_comparable(run, inputs)
    prepared = prepare(run, files, inputs)
    rungs = rung_steps(prepared.total, count, eliminate=options.eliminate)
    _require_budget(options, rungs, count)
    plans = Plans(prepared)
    for shared in every_shared(axes):
        plans.of(shared)  # refuses a batch that does not hold the longest row, before anything is trained
    asked = {
        "axes": [repr(axis) for axis in axes],
        "options": options.asked(),
        "run file": digest_text(run.to_yaml()),
        "data": inputs.digest,
        "base": files.digest,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.held())
        slots = slots_of(prepared)
        if folder.asked.is_file():
            slots = int(folder.require_same(asked)["slots"])
        study = Study(
            prepared=prepared, folder=folder, options=options, axes=axes, count=count, rungs=rungs, slots=slots
        )
        return study.run({**asked, "slots": slots}, readers, stack)


def _count(axes: Sequence[Axis], options: StudyOptions) -> int:
    if all(isinstance(axis, Grid) for axis in axes):
        if options.trials is not None:
            raise ConfigError("--trials is for ranges; the axes are grids, which are tried whole")
        return sum(1 for _ in grid_of(axes))
    return options.trials or DEFAULT_TRIALS


def _require_comparable(run: RunFile, inputs: Inputs) -> None:
    if inputs.validation is None:
        raise UsageError(
            "there are no validation rows, and settings are compared on them", cure="write data.validation: 0.05"
        )
    if inputs.head or run.lora.modules_to_save or run.lora.bias != "none":
        raise UsageError(
            "modules trained in full (a class head, modules_to_save, biases) cannot be shared by many settings",
            cure="data.labels_as: text trains the labels as generated text",
        )


def _require_budget(options: StudyOptions, rungs: Sequence[int], count: int) -> None:
    """`ConfigError` when the settings, eliminated by halving, take more than may be spent."""
    if options.budget is None:
        return
    needed, before, left = 0.0, 0, count
    for step in rungs:
        needed += left * (step - before) / rungs[-1]
        before, left = step, -(-left // ETA) if options.eliminate == "halving" else left
    if options.budget < needed:
        first = count * rungs[0] / rungs[-1]
        below = "below one rung: " if options.budget < first else ""
        raise ConfigError(
            f"--budget {options.budget:g} is {below}less than the {needed:.2f} full-run equivalents that {count} "
            f"settings take",
            cure="raise --budget, or try fewer settings",
        )
