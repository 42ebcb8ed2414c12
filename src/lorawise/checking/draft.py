"""A setting while it is being read: what a file says goes in raw and comes out typed, or as not known.

draft = Draft(tool="axolotl", path=…); draft.put("r", "16", line=3); draft.setting()
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorawise.checking.setting import Senseless, Setting
from lorawise.runfile.fields import number

Kind = Callable[[object], Any]
Sense = Callable[[float], bool]

MAX_WHOLE = 10**12


def whole(value: object) -> int | None:
    found = number(value)
    return found if isinstance(found, int) and abs(found) <= MAX_WHOLE else None


def real(value: object) -> float | None:
    found = number(value)
    return None if found is None else float(found)


def flag(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False, "yes": True, "no": False}.get(str(value).lower())


def text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def names(value: object) -> tuple[str, ...]:
    """A list of names, or names with commas between them; anything else is none."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(entry for entry in value if isinstance(entry, str))
    return ()


def targets(value: object) -> str | tuple[str, ...] | None:
    """Names, or one text: a preset or a regex."""
    if isinstance(value, str):
        return value or None
    return names(value) or None


def precision(value: object) -> str | None:
    """`torch.bfloat16`, `bf16-true`, `fp16`, `float` …"""
    word = str(value).rpartition(".")[2].lower().partition("-")[0]
    return {
        "bf16": "bfloat16",
        "bfloat16": "bfloat16",
        "fp16": "float16",
        "16": "float16",
        "half": "float16",
        "float16": "float16",
        "fp32": "float32",
        "32": "float32",
        "float": "float32",
        "float32": "float32",
        "auto": "auto",
    }.get(word)


def interval(value: object) -> int | str | None:
    """A number of steps, or the word a tool has for it."""
    return whole(value) if whole(value) is not None else text(value)


def numbers(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {}
    return {str(key): found for key, entry in value.items() if (found := number(entry)) is not None}


KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("r", "steps", "rows_at_once", "accumulation", "devices", "max_length", "warmup_steps"), whole),
    **dict.fromkeys(("alpha", "dropout", "learning_rate", "lora_plus_ratio", "warmup_share", "epochs"), real),
    **dict.fromkeys(("rslora", "dora", "packing", "checkpointing", "assistant_only", "validation", "load_best"), flag),
    **dict.fromkeys(("model", "task", "schedule", "attention", "quantization", "objective"), text),
    **dict.fromkeys(("precision", "model_precision", "compute_precision"), precision),
    **dict.fromkeys(("evaluate_every", "save_every"), interval),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), numbers),
    "targets": targets,
    "full": names,
}
_SENSE: Mapping[str, tuple[Sense, str]] = {
    **dict.fromkeys(("r", "rows_at_once", "accumulation"), (lambda n: n >= 1 and n % 1 == 0, "a whole number from 1")),
    **dict.fromkeys(("learning_rate", "lora_plus_ratio"), (lambda x: 0 < x < math.inf, "a number above 0")),
    "alpha": (math.isfinite, "a number"),
    "dropout": (lambda p: 0 <= p < 1, "a share from 0 to below 1"),
    "warmup_share": (lambda p: 0 <= p <= 1, "a share from 0 to 1"),
}
_NEVER_NONE = frozenset({"rslora", "dora", "full", "rank_pattern", "alpha_pattern", "objective"})


def _senseless(name: str, value: object) -> Senseless | None:
    """A number no training can use. A text that is no number (`auto`, `${RANK}`) is only not known."""
    if name not in _SENSE or isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        meant = float(value)
    except (ValueError, OverflowError):
        return None
    makes_sense, expected = _SENSE[name]
    return None if makes_sense(meant) else Senseless(written=str(value)[:40], expected=expected)


@dataclass
class Draft:
    tool: str
    path: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    defaulted: set[str] = field(default_factory=set)
    senseless: dict[str, Senseless] = field(default_factory=dict)

    def put(self, name: str, value: object, line: int | None) -> None:
        """What the file says for a field. A value of the wrong kind is written and not known."""
        kind = KINDS.get(name)
        typed = kind(value) if kind is not None else value
        if (told := _senseless(name, value)) is not None:
            self.senseless[name], typed = told, None
        if typed is not None or name not in _NEVER_NONE:
            self.values[name] = typed
        if line is not None:
            self.lines[name] = line

    def unknown(self, name: str, line: int | None) -> None:
        """Written, and only running it would tell."""
        if name not in _NEVER_NONE:
            self.values[name] = None
        if line is not None:
            self.lines[name] = line

    def default(self, name: str, value: object) -> None:
        """The tool's own, where the file is silent."""
        if name not in self.values and name not in self.lines:
            self.values[name] = value
            self.defaulted.add(name)

    def setting(self) -> Setting:
        return Setting(
            tool=self.tool,
            path=self.path,
            lines=dict(self.lines),
            defaulted=frozenset(self.defaulted),
            senseless=dict(self.senseless),
            **self.values,
        )
