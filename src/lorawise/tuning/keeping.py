"""What a study keeps of its last rung: adapters with their true r and alpha, and a run file that trains the best."""

import json
from collections.abc import Mapping, Sequence

from lorawise.base.files import write_text
from lorawise.lora.wrapping import base_modules
from lorawise.store import Provenance, save_adapter
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
    pack.hold([members[row.trial] for row in finalists], states)
    for place, row in enumerate(finalists):
        _keep(pack, folder, row, f"adapters/{row.trial:02d}")
        if place == 0:
            _keep(pack, folder, row, "adapter")
            write_text(folder.path / "best.yaml", run_of(pack.prepared.run, row.setting).to_yaml())


def _keep(pack: Pack, folder: StudyFolder, row: Row, where: str) -> None:
    prepared = pack.prepared
    inputs = prepared.inputs
    save_adapter(
        folder.path / where,
        pack.weights(row.trial),
        base=prepared.run.model,
        provenance=Provenance(
            base_digest=prepared.files.digest,
            tokenizer_digest=inputs.tokenizer.digest,
            template_digest=inputs.tokenizer.template_digest,
            data_digest=inputs.digest,
            run={
                "step": row.step,
                "validation_loss": row.validation_loss,
                "labels": list(inputs.labels),
                "settings": json.loads(json.dumps(run_of(prepared.run, row.setting).model_dump())),
            },
        ),
        modules=[name for name, _ in base_modules(prepared.model)],
    )
