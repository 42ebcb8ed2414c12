"""vLLM: PEFT's two files in the portable normal form, alpha = r, one rank out of vLLM's own list.

vLLM reads one r and one lora_alpha for all modules, and takes ranks up to --max-lora-rank, which is one of
`SERVED_RANKS`; the flag to give it is in `Exported.flags`.
"""

from pathlib import Path

from lorawise.exporting.exporters import EXPORTERS, Exported, Options
from lorawise.exporting.refusals import refuse_beyond_linear
from lorawise.store.algebra.factors import Factors
from lorawise.store.algebra.normalize import folds_exactly, normal_form
from lorawise.store.algebra.result import Source, stored_type, write_child


@EXPORTERS.register("vllm")
def to_vllm(source: Source, folder: Path, options: Options) -> Exported:
    """With provenance and model card beside the two files: vLLM leaves them alone."""
    refuse_beyond_linear(source, "vLLM")
    adapter = source.adapter
    exact = folds_exactly(adapter)
    child = normal_form(adapter, stored_type(options.dtype, [adapter], computes=not exact))
    run = {"to": "vllm", "dtype": options.dtype}
    written = write_child(
        folder, child, [source], lambda module: Factors.of(adapter, module), operation="export", options=run
    )
    return Exported(
        path=folder,
        error=written.error,
        rank=child.config.r,
        scale=child.config.scaling,
        files=tuple(sorted(path.name for path in folder.iterdir())),
        rounded=not exact,
        opens=folder,
        flags=("--enable-lora", f"--max-lora-rank {child.config.r}"),
    )
