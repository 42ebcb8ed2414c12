"""Our own run files, and PEFT as a target of conversion (its settings are read from scripts and adapter folders)."""

from collections.abc import Iterable
from pathlib import Path

from lorawise.base.errors import ConfigError
from lorawise.base.findings import Finding
from lorawise.checking.draft import Draft
from lorawise.checking.setting import Setting
from lorawise.checking.tools.tool import Tool, add, says
from lorawise.checking.tools.writing import lorawise, peft
from lorawise.checking.tree import Tree
from lorawise.runfile import RunFile, load_run_file
from lorawise.runfile.schema import QUANTISED

_SECTIONS = ("model", "data", "task", "base", "lora", "train")


def is_run_file(tree: Tree) -> bool:
    """Our sections, and none of another tool's flat keys."""
    named = set(tree.values)
    nested = all(isinstance(tree.get(key), dict) for key in ("lora", "train") if says(tree, key))
    return "model" in named and len(named & set(_SECTIONS)) >= 2 and nested and isinstance(tree.get("model"), str)


add(Tool(name="lorawise", title="lorawise", recognises=is_run_file, write=lorawise))
add(Tool(name="peft", title="PEFT", recognises=lambda tree: False, write=peft))


def read_run_file(path: Path, tree: Tree) -> tuple[RunFile, Setting]:
    """The checked run file and its setting. Raises `ConfigError` with every problem of the file."""
    run, findings = load_run_file(path)
    return run, _setting(run, tree, str(path), findings)


def _setting(run: RunFile, tree: Tree, path: str, _: Iterable[Finding]) -> Setting:
    config = run.lora_config()
    draft = Draft(tool="lorawise", path=path)
    for name, key, value in (
        ("model", "model", run.model),
        ("task", "task", run.task),
        ("r", "lora.r", config.r),
        ("alpha", "lora.alpha", config.alpha),
        ("rslora", "lora.rslora", config.rslora),
        ("dropout", "lora.dropout", config.dropout),
        ("targets", "lora.target_modules", config.target_modules),
        ("layers", "lora.layers", config.layers),
        ("full", "lora.modules_to_save", config.modules_to_save),
        ("rank_pattern", "lora.rank_pattern", dict(config.rank_pattern)),
        ("alpha_pattern", "lora.alpha_pattern", dict(config.alpha_pattern)),
        ("learning_rate", "train.learning_rate", run.train.learning_rate),
        ("lora_plus_ratio", "train.lora_plus_ratio", run.train.lora_plus_ratio),
        ("schedule", "train.schedule", run.train.schedule),
        ("epochs", "train.epochs", run.train.epochs),
        ("steps", "train.steps", run.train.steps),
        ("rows_at_once", "train.batch_size", run.train.batch_size),
        ("max_length", "train.max_length", run.train.max_length),
        ("packing", "train.packing", run.train.packing),
    ):
        draft.put(name, value, tree.lines.get(key))
    if "lora.scaling" in tree.lines:
        draft.lines.setdefault("alpha", tree.lines["lora.scaling"])
    warmup = run.train.warmup
    draft.put("warmup_share" if warmup < 1 else "warmup_steps", warmup, tree.lines.get("train.warmup"))
    draft.put("validation", run.data.validation is not None, tree.lines.get("data.validation"))
    draft.put("attention", "block-diagonal", None)
    if run.base.dtype != "auto":
        field = "quantization" if run.base.dtype in QUANTISED else "model_precision"
        draft.put(field, run.base.dtype, tree.lines.get("base.dtype"))
    return draft.setting()


def problems_of(problem: ConfigError, path: str) -> list[tuple[int | None, str]]:
    """(line, sentence) of each problem a run file was refused for: `path:line: sentence` a line."""
    told: list[tuple[int | None, str]] = []
    for text in problem.found.splitlines():
        place, _, rest = text.strip().removeprefix(f"{path}:").partition(": ")
        if text.strip().startswith(path) and place.isdecimal():
            told.append((int(place), rest))
        elif not text.endswith("problems"):
            told.append((None, text.strip().removeprefix(f"{path}: ")))
    return told
