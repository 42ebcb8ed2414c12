"""`export(adapter, "vllm", folder)`: an adapter folder becomes one that an engine reads."""

from pathlib import Path

from lorawise.base.errors import ConfigError
from lorawise.exporting import gguf, mlx, ollama, peft, vllm  # noqa: F401 - each registers its engine
from lorawise.exporting.exporters import EXPORTERS, Exported, Options
from lorawise.store.algebra.result import Source, require_free

WHOLE = ("gguf", "ollama")  # engines that may be given a whole model


def export(source: Source, engine: str, folder: Path, options: Options | None = None) -> Exported:
    """Write `folder` in the engine's form.

    `ConfigError` for an unknown engine or dtype, and for a whole model where the engine is given an adapter;
    `AdapterError` for what the engine cannot compute and for a folder that exists; `StorageError` when the disk
    refuses.
    """
    exporter, options = EXPORTERS[engine], options or Options()
    if options.merged and engine not in WHOLE:
        raise ConfigError(
            f"--merged is for {' and '.join(WHOLE)}: {engine} is given an adapter",
            cure="leave it out, or lorawise merge for a whole model",
        )
    require_free(folder)
    return exporter(source, folder, options)


def opens(engine: str, options: Options) -> bool:
    """Whether what the export leaves can be opened here, and so compared with the adapter at run time."""
    return engine in ("vllm", "peft", "ollama") or (options.merged and engine in WHOLE)
