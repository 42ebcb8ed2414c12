"""From a path to what the rules look at: settings, scripts, rows, runs, adapters, and the files that could not be read.

    folder with adapter_config.json   an adapter            *.py, *.ipynb        scripts
    folder with metrics.jsonl         a run of ours         *.yaml, *.yml, *.json  configs, by what they say
    trainer_state.json                a run of Trainer      *.jsonl, *.csv, …    rows
    any other folder                  everything below it
A file that was named and says nothing is told; one that was found below a folder is passed over.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lorawise.base.errors import ConfigError
from lorawise.checking.adapter_file import CONFIG_NAME, TENSORS_NAME, config_fields, read_adapter_folder
from lorawise.checking.base_fit import BaseFit, base_fit
from lorawise.checking.files import MAX_NOTEBOOK, Unreadable, read_text, walk
from lorawise.checking.notebook import read_notebook
from lorawise.checking.rows_seen import Data, encoded, holds_rows, is_data, read_data
from lorawise.checking.rules.files import Trouble
from lorawise.checking.run_log import RunLog, read_metrics_log, read_trainer_state
from lorawise.checking.script import read_script
from lorawise.checking.script_setting import settings_of
from lorawise.checking.setting import Setting
from lorawise.checking.tools import TOOLS
from lorawise.checking.tools.own import is_run_file, problems_of, read_run_file
from lorawise.checking.tree import Tree, read_yaml
from lorawise.runfile import RunFile

METRICS_NAME = "metrics.jsonl"
FACTS_NAME = "facts.json"
STATE_NAME = "trainer_state.json"
RUN_NAME = "run.yaml"
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
TRAINING_PACKAGES = ("peft", "trl", "unsloth", "transformers")
MAX_METRICS = 64 * 2**20
MAX_FOUND_JSON = 32_000  # bytes: a larger one below a folder holds rows or results, not a config

Subject = object


def subjects(*paths: Path, base: Path | None = None) -> Iterator[Subject]:
    """Everything a rule can look at under the paths that a person named; a file met again, by a link too, once."""
    met: set[Path] = set()
    for path in paths:
        if path.is_dir():
            yield from _folder(path, base, met)
        elif not path.exists():
            yield Trouble(code="LW001", path=str(path), found="does not exist", cure="check the path")
        elif _first_time(path, met):
            yield from _guarded(path, named=True, base=base)


def _first_time(path: Path, met: set[Path]) -> bool:
    real = path.resolve()
    known = real in met
    met.add(real)
    return not known


def _folder(path: Path, base: Path | None, met: set[Path]) -> Iterator[Subject]:
    holds_files = False
    for file in walk(path):
        holds_files = True
        if _first_time(file, met):
            yield from _guarded(file, named=False, base=base)
    if not holds_files:
        yield Trouble(
            code="LW003", path=str(path), found="holds no file", cure="name a file, or a folder that has some"
        )


def _guarded(path: Path, *, named: bool, base: Path | None) -> Iterator[Subject]:
    """One file's subjects; what cannot be read is one of them."""
    try:
        yield from _file(path, named=named, base=base)
    except Unreadable as problem:
        if named or problem.code != "LW003":
            code, found, cure = problem.code, problem.found, problem.cure
            yield Trouble(code=code, path=str(path), found=found, cure=cure, line=problem.line)


def _file(path: Path, *, named: bool, base: Path | None) -> Iterator[Subject]:
    suffix = path.suffix.lower()
    if path.name == CONFIG_NAME:
        yield read_adapter_folder(path.parent, str(path), base)
    elif path.name == TENSORS_NAME and not (path.parent / CONFIG_NAME).is_file():
        raise Unreadable("LW001", f"there is no {CONFIG_NAME} beside it", "copy it from where it was trained")
    elif path.name == TENSORS_NAME and named:
        yield read_adapter_folder(path.parent, str(path), base)
    elif path.name == METRICS_NAME:
        yield _run_log(path)
    elif path.name == STATE_NAME:
        yield _with_checkpoints(read_trainer_state(read_text(path, MAX_METRICS), str(path)), path)
    elif suffix == ".py":
        yield from _script(read_text(path), path, None, named=named)
    elif suffix == ".ipynb":
        notebook = read_notebook(read_text(path, MAX_NOTEBOOK))
        script = list(_script(notebook.code, path, notebook.lines, named=named))
        yield from script
        for line in notebook.left_out if script else ():
            yield Trouble(code="LW004", path=str(path), found="a cell is not plain Python and was left out", line=line)
    elif suffix in CONFIG_SUFFIXES:
        yield from _config(path, named=named)
    elif is_data(path):
        yield from _rows(path, named=named)
    elif named:
        raise Unreadable("LW003", f"is no kind of file lorawise knows ({suffix or 'no suffix'})", "see `check --help`")


def _script(text: str, path: Path, lines: dict[int, int] | None, *, named: bool) -> Iterator[Subject]:
    if not named and not any(package in text for package in TRAINING_PACKAGES):
        return
    script = read_script(text, str(path), lines=lines)
    if any(script.uses(package) for package in TRAINING_PACKAGES):
        yield script
        for setting in settings_of(script):
            yield from _over_base(setting)[0]
    elif named:
        raise Unreadable("LW003", "imports none of peft, trl, unsloth, transformers")


def _config(path: Path, *, named: bool) -> Iterator[Subject]:
    if not named and path.suffix.lower() == ".json" and path.stat().st_size > MAX_FOUND_JSON:
        return
    text = read_text(path)
    if not named and "lora" not in text and "model" not in text:
        return
    try:
        tree = read_yaml(text)
    except Unreadable:
        if named or _speaks_of_lora(text):
            raise
        return
    if is_run_file(tree) and path.suffix != ".json":
        yield from _own(path, tree)
        return
    tool = next((tool for name in TOOLS if (tool := TOOLS[name]).recognises(tree)), None)
    if tool is not None and not tool.adapts(tree):
        raise Unreadable("LW003", f"is a config of {tool.title} that trains no LoRA adapter")
    if tool is not None:
        yield from _over_base(tool.read(tree, str(path)))[0]
    elif named:
        raise Unreadable("LW003", "is the config of no tool lorawise knows", f"it knows {', '.join(TOOLS)}")


def _speaks_of_lora(text: str) -> bool:
    return "lora_r" in text or "lora_alpha" in text or "\nlora:" in text


def _own(path: Path, tree: Tree) -> Iterator[Subject]:
    """A run file, the rows it names, and the base where it lies here."""
    try:
        run, setting = read_run_file(path, tree)
    except ConfigError as problem:
        for line, sentence in problems_of(problem, str(path)):
            yield Trouble(code="LW006", path=str(path), found=sentence, cure=problem.cure, line=line)
        return
    found, fit = _over_base(setting)
    yield from found
    yield from _rows_of(run, setting, Path(run.model), None if fit is None else fit.parameters)


def _over_base(setting: Setting) -> tuple[list[Subject], BaseFit | None]:
    """The setting, and its fit to the base it names where that base is known here."""
    fit = base_fit(setting)
    return ([setting] if fit is None else [replace(setting, base_known=True), fit]), fit


def _rows_of(run: RunFile, setting: Setting, folder: Path, parameters: int | None) -> Iterator[Subject]:
    name = None if run.data.format == "auto" else run.data.format
    validation, held_out = None, None
    asked = run.data.validation
    if isinstance(asked, str) and Path(asked).is_file() and is_data(Path(asked)):
        validation = read_data(Path(asked), format=name, role="validation")
        yield validation
    for source in run.data.train:
        path = Path(source.path)
        if not path.is_file() or not is_data(path):
            continue
        data = read_data(path, format=name)
        if isinstance(asked, (int, float)) and len(run.data.train) == 1:
            held_out = int(asked) if asked >= 1 else max(1, round(asked * len(data.rows)))
        yield from _parts(
            replace(
                data,
                setting=setting,
                validation=validation,
                held_out=held_out,
                parameters=parameters,
                tokens=encoded(data.rows, folder, run.train.max_length) if folder.is_dir() else None,
            )
        )


def _rows(path: Path, *, named: bool) -> Iterator[Subject]:
    if not path.is_file():
        raise Unreadable("LW001", "is not a regular file")  # a pipe would wait
    if named or holds_rows(path):
        yield from _parts(read_data(path, role="rows"))


def _parts(data: Data) -> Iterator[Subject]:
    yield data
    if not data.whole:
        found = f"only the first {len(data.rows) + data.bad_count:,} rows were looked at"
        yield Trouble(code="LW004", path=data.path, found=found)


def _run_log(path: Path) -> RunLog:
    """metrics.jsonl with what the folder around it says: the run file and the checkpoints."""
    log = read_metrics_log(read_text(path, MAX_METRICS), str(path))
    if not log.points and not log.evaluations and _why_it_ended(path.parent) is None:
        raise Unreadable("LW003", "holds no steps of a run")
    setting = None
    run_file = path.parent / RUN_NAME
    if run_file.is_file():
        try:
            setting = read_run_file(run_file, read_yaml(read_text(run_file)))[1]
        except (ConfigError, Unreadable):
            setting = None
    return _with_checkpoints(replace(log, setting=setting, ended=_why_it_ended(path.parent)), path)


def _why_it_ended(folder: Path) -> str | None:
    try:
        facts = json.loads(read_text(folder / FACTS_NAME, MAX_METRICS))
    except (Unreadable, ValueError, RecursionError):
        return None
    ended = facts.get("ended") if isinstance(facts, dict) else None
    reason = ended.get("reason") if isinstance(ended, dict) else None
    return reason if isinstance(reason, str) else None


def _with_checkpoints(log: RunLog, path: Path) -> RunLog:
    """Ours are checkpoints/step-000200, Trainer's are checkpoint-200 beside or around the state."""
    names = [p.name for p in path.parent.glob("checkpoints/step-*")]
    names += [p.name for p in (*path.parent.glob("checkpoint-*"), *path.parent.parent.glob("checkpoint-*"))]
    steps = {int(number) for name in names[:1000] if (number := name.rpartition("-")[2]).isdecimal()}
    return replace(log, saved=tuple(sorted(steps)))


def read_settings(path: Path) -> list[Setting]:
    """The settings a file holds, for conversion. Raises `Unreadable`."""
    if path.name == CONFIG_NAME or (path / CONFIG_NAME).is_file():
        return [_adapter_setting(path if path.is_file() else path / CONFIG_NAME)]
    return [subject for subject in _file(path, named=True, base=None) if isinstance(subject, Setting)]


def _adapter_setting(path: Path) -> Setting:
    from lorawise.checking.draft import Draft
    from lorawise.checking.script_setting import LORA_ARGUMENTS

    fields = config_fields(read_text(path))
    draft = Draft(tool="peft", path=str(path))
    for name, field in LORA_ARGUMENTS.items():
        if fields.get(name) is not None:
            draft.put(field, fields[name], None)
    draft.put("model", fields.get("base_model_name_or_path"), None)
    return draft.setting()
