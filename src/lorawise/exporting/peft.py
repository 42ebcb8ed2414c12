"""PEFT: adapter_config.json and adapter_model.safetensors in the normal form, and nothing else.

The form that readers of PEFT's files agree on (alpha = r, no rsLoRA, no patterns); modules trained in full stay.
"""

import json
import math
from pathlib import Path

from lorawise.base.files import atomic_folder
from lorawise.base.safetensors_write import write_safetensors
from lorawise.exporting.exporters import EXPORTERS, Exported, Options
from lorawise.store.algebra.factors import Factors, distance
from lorawise.store.algebra.normalize import folds_exactly, normal_form
from lorawise.store.algebra.result import Source, ratio, stored_type
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
    return Exported(
        path=folder,
        error=_error(source, folder),
        rank=child.config.r,
        scale=child.config.scaling,
        files=(CONFIG, TENSORS),
        rounded=not exact,
    )


def _error(source: Source, folder: Path) -> float:
    written = read_adapter(folder)
    norms, errors = [], []
    for module in written.layers:
        wanted = Factors.of(source.adapter, module)
        norms.append(wanted.norm())
        errors.append(distance(Factors.of(written, module), wanted))
    return ratio(math.hypot(*errors), math.hypot(*norms))
