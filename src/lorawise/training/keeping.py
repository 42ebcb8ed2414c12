"""An adapter that training made, written with where it came from: the run's settings, its base, tokenizer and rows."""

import json
from pathlib import Path

from lorawise.lora.weights import AdapterWeights
from lorawise.lora.wrapping import base_modules
from lorawise.runfile import RunFile
from lorawise.store import Provenance, save_adapter
from lorawise.training.setup import Prepared


def keep_adapter(
    folder: Path,
    weights: AdapterWeights,
    prepared: Prepared,
    *,
    run: RunFile,
    step: int,
    validation_loss: float | None,
) -> None:
    """`run` is what these weights were trained by: `prepared.run`, or a study's setting over it."""
    inputs = prepared.inputs
    save_adapter(
        folder,
        weights,
        base=run.model,
        provenance=Provenance(
            base_digest=prepared.files.digest,
            tokenizer_digest=inputs.tokenizer.digest,
            template_digest=inputs.tokenizer.template_digest,
            data_digest=inputs.digest,
            run={
                "step": step,
                "validation_loss": validation_loss,
                "labels": list(inputs.labels),
                "settings": json.loads(json.dumps(run.model_dump())),
            },
        ),
        modules=[name for name, _ in base_modules(prepared.model)],
    )
