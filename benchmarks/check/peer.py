"""peft-doctor's own file-based checks, given each case of the corpus in the form they take.

    train.py                 diagnose_peft (behind `check`), and the fixer (behind `fix --dry-run`)
    another tool's YAML      diagnose_peft
    rows.jsonl               check_dataset, check_dataset_leakage
    *.ipynb                  scan_notebook
    metrics, trainer state   scan_training_log, given the log's records
    adapter folder           diagnose_adapter_merge, check_adapter_integrity, inspect_adapter_tensors, check_lora_config

It does not read r, alpha or the learning rate out of a script or another tool's config; `check` takes some of them as
options. So that it is judged on its rules and not on its reading, diagnose_peft is handed every value our reader found,
and what it says of this machine (no CUDA) is left out.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft_doctor.adapters import diagnose_adapter_merge
from peft_doctor.datasets import check_dataset
from peft_doctor.diagnostics import diagnose_peft
from peft_doctor.fixer import repair_python_file
from peft_doctor.logs import scan_training_log
from peft_doctor.modern import check_dataset_leakage, check_lora_config, inspect_adapter_tensors
from peft_doctor.notebooks import scan_notebook
from peft_doctor.operations import check_adapter_integrity
from peft_doctor.report import DiagnosisReport

from lorawise.checking.files import Unreadable
from lorawise.checking.reading import read_settings
from lorawise.checking.setting import Setting

VERSION = version("peft-doctor")
OF_THE_MACHINE = ("memory.no_cuda",)


@dataclass(frozen=True, kw_only=True)
class Issue:
    code: str
    severity: str
    message: str


def issues_of(folder: Path) -> list[Issue]:
    """What peft-doctor says of everything below a folder; a crash of its own is an issue called `crash`."""
    found: list[Issue] = []
    for run, path in _calls(folder):
        try:
            told = [Issue(code=i.code, severity=i.severity, message=i.message) for i in run(path)]
            found += [issue for issue in told if issue.code not in OF_THE_MACHINE]
        except Exception as problem:  # noqa: BLE001 - a peer's crash is a result, not the benchmark's end
            found.append(Issue(code="crash", severity="crash", message=f"{type(problem).__name__}: {problem}"))
    return found


def _calls(folder: Path) -> Iterator[tuple[Any, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".py":
            yield _script, path
        elif path.suffix == ".ipynb":
            yield (lambda p: scan_notebook(p).issues), path
        elif path.suffix == ".jsonl" and path.name != "metrics.jsonl":
            yield _rows, path
        elif path.name in ("metrics.jsonl", "trainer_state.json"):
            yield (lambda p: scan_training_log(_records(p))), path
        elif path.name == "adapter_config.json":
            yield _adapter, path.parent
        elif path.suffix in (".yaml", ".yml"):
            yield _config, path
    if (folder / "held_out.jsonl").is_file():
        yield (lambda p: check_dataset_leakage(p / "train.jsonl", p / "held_out.jsonl").issues), folder


def _script(path: Path) -> list[Any]:
    return [*_config(path), *repair_python_file(path, dry_run=True).issues]


def _config(path: Path) -> list[Any]:
    try:
        settings = read_settings(path)
    except Unreadable:
        return []
    return [issue for setting in settings for issue in _diagnosed(setting)]


def _diagnosed(setting: Setting) -> list[Any]:
    targets = list(setting.targets) if isinstance(setting.targets, tuple) else setting.targets
    config = {
        "r": setting.r,
        "lora_alpha": setting.alpha,
        "lora_dropout": setting.dropout,
        "target_modules": targets,
        "use_rslora": setting.rslora,
        "modules_to_save": list(setting.full) or None,
        "task_type": "CAUSAL_LM",
    }
    training = {
        "learning_rate": setting.learning_rate,
        "per_device_train_batch_size": setting.rows_at_once,
        "gradient_accumulation_steps": setting.accumulation,
        "warmup_steps": setting.warmup_steps,
        "warmup_ratio": setting.warmup_share,
        "max_steps": setting.steps,
        "bf16": setting.precision == "bfloat16",
        "fp16": setting.precision == "float16",
        "load_in_4bit": setting.quantization in ("nf4", "fp4", "4bit"),
        "packing": setting.packing,
        "assistant_only_loss": setting.assistant_only,
        "attn_implementation": setting.attention,
        "gradient_checkpointing": setting.checkpointing,
        "load_best_model_at_end": setting.load_best,
        "eval_steps": setting.evaluate_every if isinstance(setting.evaluate_every, int) else None,
        "save_steps": setting.save_every if isinstance(setting.save_every, int) else None,
    }
    report = diagnose_peft(
        peft_config=_given(config),
        training_args=_given(training),
        model_name=setting.model,
        sequence_length=setting.max_length or 2048,
    )
    return list(report.issues)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _records(path: Path) -> list[dict[str, Any]]:
    """A log as the list of records the scanner takes; a loss that is null is NaN, as Trainer logs it."""
    text = path.read_text(encoding="utf-8")
    log = json.loads(text)["log_history"] if path.name == "trainer_state.json" else map(json.loads, text.splitlines())
    return [entry | ({"loss": float("nan")} if entry.get("loss", 0) is None else {}) for entry in log]


def _rows(path: Path) -> list[Any]:
    report = DiagnosisReport()
    check_dataset(report, dataset_path=path)
    return list(report.issues)


def _adapter(path: Path) -> list[Any]:
    reports = (
        diagnose_adapter_merge(base_model=None, adapter=str(path), merge_plan=False),
        check_adapter_integrity(path),
        inspect_adapter_tensors(path),
        check_lora_config(path / "adapter_config.json"),
    )
    return [issue for report in reports for issue in report.issues]
