"""`python -m tests.tuning.small_study DIR [WORK] [--resume]`: a small real study of a tiny random model, in seconds."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.workbench import rows_of, tiny_run

from lorawise.tuning.events import Reader
from lorawise.tuning.options import StudyOptions
from lorawise.tuning.result import StudyResult
from lorawise.tuning.study import tune

OVER = ("lora.scaling=0.5,2,8", "train.learning_rate=1e-4,2e-3,1e-2")


def small_study(
    work: Path,
    out: Path,
    *,
    resume: bool = False,
    readers: Sequence[Reader] = (),
    seed_of_run: int = 0,
    **options: Any,
) -> StudyResult:
    """9 settings over 64 steps, compared after 16; `options` as `StudyOptions` takes them."""
    run = tiny_run(work, rows=rows_of(60), train__steps=64, train__seed=seed_of_run)
    return tune(run, out=out, resume=resume, readers=readers, options=StudyOptions(**{"over": OVER, **options}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        given = [word for word in sys.argv[1:] if word != "--resume"]
        work = Path(given[1] if len(given) > 1 else scratch)
        print(small_study(work, Path(given[0]), resume="--resume" in sys.argv).sentence)
