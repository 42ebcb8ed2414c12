"""Where an adapter came from: `provenance.json`, written beside PEFT's two files and read back verified.

    {"format": 1, "base": {"source", "digest"}, "tokenizer": {"digest", "template_digest"}, "data": {"digest"},
     "run": {…}, "versions": {…}, "parents": [adapter digests], "created": "2026-11-24T00:00:00+00:00",
     "adapter": {"digest", "setting": the LoraConfig as asked}}

Every digest is a sha256 in hex, or empty where there was nothing to digest. PEFT's files decide what an adapter
computes; this one adds what they cannot hold: the setting as asked (a preset's name, the seed, `scaling` to the last
bit) and the history.
"""

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Self

from lorawise import __version__
from lorawise.base.errors import AdapterError, ConfigError
from lorawise.base.tensors import StoredTensor
from lorawise.lora.config import LoraConfig
from lorawise.lora.weights import StoredAdapter

FORMAT = 1
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # as digests have named them
_DIGEST = re.compile(r"[0-9a-f]{64}|")
_CURE = "restore the file, or delete provenance.json to use the adapter without its history"


def _versions() -> dict[str, str]:
    return {
        "lorawise": __version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The history of one adapter. `run` is plain JSON; refuses what is not a digest or not JSON at birth."""

    base: str = ""
    base_digest: str = ""
    tokenizer_digest: str = ""
    template_digest: str = ""
    data_digest: str = ""
    run: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=_versions)
    parents: tuple[str, ...] = ()
    created: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value!r} is not a sha256 in hex"
            for name, value in (
                *((f.name, getattr(self, f.name)) for f in fields(self) if f.name.endswith("_digest")),
                *(("parents", parent) for parent in self.parents),
            )
            if not isinstance(value, str) or not _DIGEST.fullmatch(value)
        ]
        try:
            json.dumps(self.run, allow_nan=False)
        except (TypeError, ValueError) as problem:
            problems.append(f"run holds what JSON cannot: {problem}")
        if problems:
            raise ConfigError("\n  ".join(problems), expected="digests from lorawise.base.files and plain values")

    @property
    def base_held(self) -> Mapping[str, Any]:
        """How the run held its base (`dtype`, `compute_dtype`, `double_quant`); empty where it does not say."""
        settings = self.run.get("settings")
        base = settings.get("base") if isinstance(settings, Mapping) else None
        return base if isinstance(base, Mapping) else {}

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "base": {"source": self.base, "digest": self.base_digest},
            "tokenizer": {"digest": self.tokenizer_digest, "template_digest": self.template_digest},
            "data": {"digest": self.data_digest},
            "run": dict(self.run),
            "versions": dict(self.versions),
            "parents": list(self.parents),
            "created": self.created,
        }

    @classmethod
    def from_json(cls, record: object) -> Self:
        """The inverse of `to_json`; other keys are left alone. `AdapterError` for anything of another shape."""
        top = _table(record, "provenance.json")
        if top.get("format") != FORMAT:
            raise AdapterError(
                f"provenance.json has format {top.get('format')!r}",
                expected=f"format {FORMAT}",
                cure="upgrade lorawise, or delete provenance.json to use the adapter without its history",
            )
        base, tokenizer, data = (_table(top.get(name), name) for name in ("base", "tokenizer", "data"))
        versions, parents = _table(top.get("versions"), "versions"), top.get("parents")
        if not isinstance(parents, list):
            raise AdapterError("parents in provenance.json is not a list", cure=_CURE)
        try:
            return cls(
                base=_text(base, "source"),
                base_digest=_text(base, "digest"),
                tokenizer_digest=_text(tokenizer, "digest"),
                template_digest=_text(tokenizer, "template_digest"),
                data_digest=_text(data, "digest"),
                run=_table(top.get("run"), "run"),
                versions={name: _text(versions, name) for name in versions},
                parents=tuple(parents),
                created=_text(top, "created"),
            )
        except ConfigError as problem:
            raise AdapterError(f"provenance.json: {problem.found}", expected=problem.expected, cure=_CURE) from None


def stored_digest(weights: StoredAdapter) -> str:
    """sha256 of what decides the answers: every tensor (name, dtype, shape, bytes), each module's scaling, bias, task.

    Dropout, seed, init and how the targets were named do not change it.
    """
    digest = hashlib.sha256()

    def add(label: str, tensor: StoredTensor) -> None:
        digest.update(f"{label}|torch.{_TYPES[tensor.dtype]}|{tensor.shape}|".encode())
        digest.update(tensor.bits().ravel().data)

    for module in sorted(weights.layers):
        a, b = weights.layers[module]
        digest.update(f"{module}|{weights.config.scaling_of(module):.12g}|".encode())
        add("A", a)
        add("B", b)
    for name in sorted(weights.full):
        add(name, weights.full[name])
    digest.update(f"{weights.config.bias}|{weights.task}".encode())
    return digest.hexdigest()


def record_of(weights: StoredAdapter, provenance: Provenance) -> dict[str, Any]:
    """The whole of `provenance.json` for one adapter."""
    return provenance.to_json() | {"adapter": {"digest": stored_digest(weights), "setting": asdict(weights.config)}}


def verified(record: object, weights: StoredAdapter) -> Provenance:
    """The provenance in `record`, if it speaks of these very weights; `AdapterError` if it speaks of others."""
    provenance = Provenance.from_json(record)
    told, found = _text(_adapter_part(record), "digest"), stored_digest(weights)
    if told != found:
        raise AdapterError(
            f"the adapter's digest is {found[:12]}…, provenance.json tells of {told[:12]}…",
            expected="the tensors and the setting as lorawise wrote them",
            cure="the adapter was changed since: delete provenance.json to use it without its history",
        )
    return provenance


def setting_of(record: object) -> LoraConfig:
    """The setting as asked. `AdapterError` when the record holds none that is well formed."""
    values = _table(_adapter_part(record).get("setting"), "setting")
    shaped: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    known = {f.name for f in fields(LoraConfig)}
    wrong = [name for name, value in shaped.items() if name not in known or not _fits(name, value)]
    try:
        if not wrong:
            return LoraConfig(**shaped)
        found = f"{', '.join(map(repr, wrong))} in its setting are not fields of LoraConfig, or not of their type"
    except ConfigError as problem:
        found = problem.found
    raise AdapterError(f"provenance.json: {found}", expected="the fields of LoraConfig", cure=_CURE)


def _fits(name: str, value: object) -> bool:
    """Whether JSON gave the right type; `LoraConfig` itself judges the values."""
    match name:
        case "target_modules" | "exclude_modules":
            return isinstance(value, str) or _is_names(value)
        case "modules_to_save":
            return _is_names(value)
        case "layers":
            return value is None or isinstance(value, tuple)
        case "expert_r":
            return value is None or isinstance(value, int)
        case "rank_pattern" | "alpha_pattern":
            return isinstance(value, dict)
        case "rslora":
            return isinstance(value, bool)
        case "bias" | "init":
            return isinstance(value, str)
        case _:
            return isinstance(value, (int, float))


def _is_names(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) for name in value)


def _adapter_part(record: object) -> dict[str, Any]:
    return _table(_table(record, "provenance.json").get("adapter"), "adapter")


def _table(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise AdapterError(f"{name} of provenance.json is not a JSON object", cure=_CURE)
    return value


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table.get(name)
    if not isinstance(value, str):
        raise AdapterError(f"{name!r} of provenance.json is {value!r}, not a text", cure=_CURE)
    return value
