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
from lorawise.training.setup import Prepared, prepare
from lorawise.tuning.budget import cost, parse_budget, require_within, trials_within
from lorawise.tuning.events import Reader
from lorawise.tuning.folder import StudyFolder
from lorawise.tuning.options import StudyOptions
from lorawise.tuning.result import StudyResult
from lorawise.tuning.rungs import rung_steps
from lorawise.tuning.session import Study
from lorawise.tuning.shared import Plans, every_shared
from lorawise.tuning.space import Axis, Grid, default_axes, grid_of, parse_axes, with_ranks
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
    if options.trials is not None and _are_grids(axes):
        raise ConfigError("--trials is for ranges; the axes are grids, which are tried whole")
    files = resolve_model(run.model)
    inputs = read_inputs(run, files)
    _require_comparable(run, inputs)
    prepared = prepare(run, files, inputs)
    budget = _budget_in_runs(options, prepared, folder)
    axes, count = _settled(axes, options, prepared, budget)
    rungs = rung_steps(prepared.total, count, eliminate=options.eliminate)
    plans = Plans(prepared)
    for shared in every_shared(axes):
        plans.of(shared)  # refuses a batch that does not hold the longest row, before anything is trained
    asked = {
        "axes": [repr(axis) for axis in axes],
        "options": options.asked(),
        "run file": digest_text(run.to_yaml()),
        "data": inputs.digest,
        "base": files.digest,
        "budget in runs": budget,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.held())
        slots = slots_of(prepared, axes)
        if folder.asked.is_file():
            slots = int(folder.require_same(asked)["slots"])
        study = Study(
            prepared=prepared, folder=folder, options=options, axes=axes, count=count, rungs=rungs, slots=slots
        )
        return study.run({**asked, "slots": slots}, readers, stack)


def _are_grids(axes: Sequence[Axis]) -> bool:
    return all(isinstance(axis, Grid) for axis in axes)


def _budget_in_runs(options: StudyOptions, prepared: Prepared, folder: StudyFolder) -> float | None:
    """As it was when the study began, where it did: minutes would be another number of runs on a busier machine."""
    if options.budget is None:
        return None
    begun = folder.begun_with().get("budget in runs")
    return parse_budget(str(options.budget)).in_runs(prepared) if begun is None else float(begun)


def _settled(
    axes: tuple[Axis, ...], options: StudyOptions, prepared: Prepared, budget: float | None
) -> tuple[tuple[Axis, ...], int]:
    """The axes and how many settings of them: what was asked, or what the budget allows; refused where it does not."""
    total, eliminate, run = prepared.total, options.eliminate, prepared.run
    if not _are_grids(axes):
        count = options.trials or DEFAULT_TRIALS
        if budget is not None and options.trials is None:
            count = max(1, trials_within(budget, total, eliminate=eliminate))
    else:
        count = sum(1 for _ in grid_of(axes))
        if budget is not None and not options.over:
            wider = with_ranks(axes, run)
            more = sum(1 for _ in grid_of(wider))
            if cost(total, more, eliminate=eliminate) <= budget:
                axes, count = wider, more
    if budget is not None:
        require_within(budget, total, count, eliminate=eliminate, written=str(options.budget))
    return axes, count


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
