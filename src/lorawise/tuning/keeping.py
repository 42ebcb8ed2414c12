"""What a study keeps of its last rung: adapters with their true r and alpha, and a run file that trains the best."""

from collections.abc import Mapping, Sequence

from lorawise.base.files import write_text
from lorawise.training.keeping import keep_adapter
from lorawise.tuning.folder import StudyFolder
from lorawise.tuning.pack import Member, Pack, SlotState
from lorawise.tuning.result import Row
from lorawise.tuning.space import run_of

KEPT = 3  # the best and the next two

States = Mapping[int, SlotState]


def finalists_of(rows: Sequence[Row], states: States) -> list[Row]:
    """The first `KEPT` of the table, best first, each as the last rung it came to left it. One that is the same run as
    another, or diverged, is none."""
    return [row for row in rows if row.validation_loss is not None and row.trial in states][:KEPT]


def keep_finalists(
    pack: Pack, folder: StudyFolder, finalists: Sequence[Row], members: Mapping[int, Member], states: States
) -> None:
    prepared = pack.prepared
    pack.hold([members[row.trial] for row in finalists], states)
    for place, row in enumerate(finalists):
        run = run_of(prepared.run, row.setting)
        for where in (f"adapters/{row.trial:02d}", *(("adapter",) if place == 0 else ())):
            keep_adapter(
                folder.path / where,
                pack.weights(row.trial),
                prepared,
                run=run,
                step=row.step,
                validation_loss=row.validation_loss,
            )
        if place == 0:
            write_text(folder.path / "best.yaml", run.to_yaml())
