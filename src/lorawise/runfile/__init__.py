"""Run files: what a run is asked to do, read from YAML, checked, completed and written again."""

from lorawise.runfile.load import load_run_file, make_run_file
from lorawise.runfile.not_built import require_built
from lorawise.runfile.schema import BaseSettings, DataSettings, DataSource, LoraSettings, RunFile, TrainSettings

__all__ = [
    "BaseSettings",
    "DataSettings",
    "DataSource",
    "LoraSettings",
    "RunFile",
    "TrainSettings",
    "load_run_file",
    "make_run_file",
    "require_built",
]
