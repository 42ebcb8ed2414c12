"""PEFT: adapter_config.json and adapter_model.safetensors in the normal form, and nothing else.

The form that readers of PEFT's files agree on (alpha = r, no rsLoRA, no patterns); modules trained in full stay.
"""

import json
from pathlib import Path

from lorawise.base.files import atomic_folder
from lorawise.base.safetensors_write import write_safetensors
from lorawise.exporting.exporters import EXPORTERS, Exported, Options
from lorawise.exporting.measure import error_of
from lorawise.store.algebra.factors import Factors
from lorawise.store.algebra.normalize import folds_exactly, normal_form
from lorawise.store.algebra.result import Source, stored_type
from lorawise.store.peft_config import to_peft
from lorawise.store.peft_format import CONFIG, TENSORS, read_adapter
from lorawise.store.peft_keys import to_keys


@EXPORTERS.register("peft")
def to_plain_peft(source: Source, folder: Path, options: Options) -> Exported:
    adapter = source.adapter
    exact = folds_exactly(adapter)
    child = normal_form(adapter, stored_type(options.dtype, [adapter], computes=not exact))
    fields = to_peft(child, base=source.base)
    with atomic_folder(folder) as scratch:
        write_safetensors(scratch / TENSORS, to_keys(child), metadata={"format": "pt"})
        (scratch / CONFIG).write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    written = read_adapter(folder)
    return Exported(
        path=folder,
        error=error_of(adapter, lambda module: Factors.of(written, module)),
        rank=child.config.r,
        scale=child.config.scaling,
        files=(CONFIG, TENSORS),
        rounded=not exact,
        opens=folder,
    )
