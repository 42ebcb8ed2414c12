"""From text to a RunFile, or to every problem of the text at once, each with its line.

text ─ read_tree ─▶ plain data + lines ─ resolve_paths ─▶ + sets ─ schema ─▶ RunFile, findings
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from lorawise.base.errors import ConfigError, nearest
from lorawise.base.findings import Finding
from lorawise.runfile.not_built import not_built
from lorawise.runfile.overrides import apply_sets, parse_sets, scaling_findings
from lorawise.runfile.paths import resolve_paths
from lorawise.runfile.schema import DataSettings, DataSource, LoraSettings, RunFile, TrainSettings
from lorawise.runfile.yaml_lines import Key, Tree, read_tree

OTHER_TOOLS = {  # what PEFT, TRL, Axolotl and others call it
    "lora_alpha": "lora.alpha",
    "lora_r": "lora.r",
    "rank": "lora.r",
    "lora_dropout": "lora.dropout",
    "use_rslora": "lora.rslora",
    "lora_target_modules": "lora.target_modules",
    "layers_to_transform": "lora.layers",
    "base_model": "model",
    "model_name_or_path": "model",
    "datasets": "data.train",
    "val_set_size": "data.validation",
    "lr": "train.learning_rate",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.steps",
    "max_seq_length": "train.max_length",
    "sequence_len": "train.max_length",
    "sample_packing": "train.packing",
    "per_device_train_batch_size": "train.micro_batch_size",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "warmup_steps": "train.warmup",
    "warmup_ratio": "train.warmup",
    "max_grad_norm": "train.clip",
    "report_to": "train.trackers",
    "gradient_checkpointing": "train.memory",
    "torch_dtype": "base.dtype",
}


Unbuilt = Literal["refuse", "keep"]


def load_run_file(
    path: Path | str, sets: Sequence[str] = (), *, unbuilt: Unbuilt = "refuse"
) -> tuple[RunFile, list[Finding]]:
    """The run file at `path` with `sets` over it, and what is worth knowing about it.

    ConfigError lists every problem with its line. Relative paths start at the file's folder, those in `sets` at the
    folder of the call. `unbuilt="keep"` takes what cannot be run yet too (`base.dtype: nf4`): it can be planned.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no run file {path}", cure="see `lorawise train --help`") from None
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{path} is not UTF-8 text (byte {problem.start})", expected="a run file: YAML") from None
    except OSError as problem:
        raise ConfigError(f"{path} cannot be read: {problem.strerror}", expected="a run file: YAML") from None
    tree = read_tree(text, str(path))
    values = resolve_paths(tree.values, path.absolute().parent)
    return _build(tree, values, parse_sets(sets), origin=str(path), unbuilt=unbuilt)


def make_run_file(
    values: Mapping[str, Any], sets: Sequence[str] = (), *, unbuilt: Unbuilt = "refuse"
) -> tuple[RunFile, list[Finding]]:
    """A run file from the call alone, nested as the file is: `{"model": …, "data": {"train": …}}`."""
    return _build(Tree(values={}), resolve_paths(values, Path.cwd()), parse_sets(sets), origin="", unbuilt=unbuilt)


def _build(
    tree: Tree, values: Mapping[str, Any], sets: Mapping[Key, Any], *, origin: str, unbuilt: Unbuilt
) -> tuple[RunFile, list[Finding]]:
    where = _Where(tree.lines, sets, origin)
    merged = apply_sets({key: value for key, value in values.items() if not _is_bare(key, value)}, sets, Path.cwd())
    problems = [(line, f"{origin}:{line}: {message}") for line, message in tree.problems]
    refused_keys: list[str] = []
    run: RunFile | None = None
    try:
        run = RunFile.model_validate(merged)
    except ValidationError as refused:
        found = list(_problems(refused, merged))
        problems += [where.tell(key, message) for key, message in found]
        refused_keys = [key for key, _ in found]
    if unbuilt == "refuse":
        problems += [where.tell(key, message) for key, message in not_built(merged)]
    if problems or run is None:
        lines = list(dict.fromkeys(text for _, text in sorted(problems, key=lambda problem: problem[0])))
        head = "" if len(lines) == 1 else f"{len(lines)} problems\n  "
        raise ConfigError(
            head + "\n  ".join(lines),
            expected="a run file as in `lorawise train --help`",
            cure="\n    ".join(dict.fromkeys(filter(None, map(_about, refused_keys)))),
        )
    return run, scaling_findings(values, sets, run)


def _is_bare(key: str, value: object) -> bool:
    """`lora:` with every line below it commented out: the section's defaults are meant."""
    return value is None and key in ("base", "lora", "train")


class _Where:
    """Puts the place before a problem: file and line, the --set that brought it, or nothing."""

    def __init__(self, lines: Mapping[Key, int], sets: Mapping[Key, Any], origin: str) -> None:
        self.lines, self.sets, self.origin = lines, sets, origin

    def tell(self, dotted: str, message: str) -> tuple[int, str]:
        path = tuple(dotted.split("."))
        for depth in range(len(path), 0, -1):
            key = path[:depth]
            if key in self.sets:
                return 10**9, f"--set {'.'.join(key)}={self.sets[key]}: {message}"
            if key in self.lines:
                return self.lines[key], f"{self.origin}:{self.lines[key]}: {message}"
        return 0, f"{self.origin}: {message}" if self.origin else message


def _problems(refused: ValidationError, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(dotted key, sentence) for each thing pydantic refused, and for conflicts it did not get to."""
    for problem in refused.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        match problem["type"]:
            case "extra_forbidden":
                yield key, f"unknown key {key}; {_suggestion(key)}"
            case "missing":
                yield key, f"{key} is missing"
            case "value_error":
                yield from _sentences(key, str(problem["ctx"]["error"]))
            case "model_type" | "model_attributes_type" | "dict_type":
                yield key, f"{key}: {problem['input']!r} is not a mapping of keys to values"
            case _:
                yield key, f"{key}: {problem['msg']}"
    for section in (DataSettings, LoraSettings, TrainSettings):
        written = values.get(section.section)
        if isinstance(written, Mapping):
            for sentence in section.conflicts(written):
                yield sentence.partition(":")[0], sentence


def _sentences(key: str, message: str) -> Iterator[tuple[str, str]]:
    """A field's own refusal continues its key; a section's are lines that name their key themselves."""
    for line in message.splitlines():
        named, colon, _ = line.partition(": ")
        if key in ("lora", "train") and colon and named.split(".")[0] == key:
            yield named, line.strip()
        else:
            yield key, f"{key}: {line.strip()}"


def _about(dotted: str) -> str:
    """What a field is for, and what it is when left out; empty for what is no field with a default."""
    section, _, leaf = dotted.partition(".")
    model = RunFile.model_fields[section].annotation if section in RunFile.model_fields and leaf else RunFile
    field = (
        model.model_fields.get(leaf or section) if isinstance(model, type) and issubclass(model, BaseModel) else None
    )
    if field is None or field.is_required() or not field.description:
        return ""
    default = field.get_default(call_default_factory=True)
    return f"{dotted} is {field.description}" + ("" if default is None else f"; left out, it is {default!r}")


def _suggestion(dotted: str) -> str:
    section, _, leaf = dotted.rpartition(".")
    if section.rpartition(".")[0] == "data.train":  # an entry of a list of sources
        return nearest(leaf, list(DataSource.model_fields))
    known = _known_keys(RunFile)
    if leaf in OTHER_TOOLS:
        return f"here it is '{OTHER_TOOLS[leaf]}'"
    elsewhere = [key for key in known if key.rpartition(".")[2] == leaf and key != dotted]
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    beside = [key for key in known if key.rpartition(".")[0] == section]
    near = get_close_matches(leaf, [key.rpartition(".")[2] for key in beside], n=1)
    return f"did you mean '{section}{'.' if section else ''}{near[0]}'?" if near else nearest(dotted, beside)


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys
