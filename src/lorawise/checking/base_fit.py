"""A setting over the base it names, where that base is known on this machine: a folder, a GGUF file, the hub's cache,
the bundled table of well-known models. Nothing is fetched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from lorawise.base.errors import LorawiseError
from lorawise.base.patterns import full_match
from lorawise.checking.setting import Setting
from lorawise.facts.model import ModelFacts
from lorawise.facts.read import read_model_here
from lorawise.facts.targets import selected
from lorawise.lora.config import PRESETS, LoraConfig


@dataclass(frozen=True, kw_only=True)
class BaseFit:
    """One setting over one base."""

    path: str
    setting: Setting
    facts: ModelFacts

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """Module → (out, in), of every module that can be adapted."""
        return {
            matrix.name: (matrix.out_features, matrix.in_features)
            for matrix in self.facts.matrices
            if matrix.kind != "experts" and matrix.role != "position"
        }

    def matched(self, name: str) -> list[str]:
        """Modules one target names: the whole name or its last components, as PEFT does."""
        return [module for module in self.shapes if module == name or module.endswith(f".{name}")]

    @cached_property
    def found(self) -> tuple[str, ...] | None:
        """Modules the targets name, experts apart; None where it cannot be told: failing pattern, refused preset."""
        targets = self.setting.targets
        if not isinstance(targets, str):
            return tuple(dict.fromkeys(module for name in targets or () for module in self.matched(name)))
        try:
            if targets not in PRESETS:
                return tuple(module for module in self.shapes if full_match(targets, module))
            chosen = selected(self.facts, LoraConfig(r=1, target_modules=targets))
            return tuple(matrix.name for matrix in chosen if matrix.name in self.shapes)
        except LorawiseError:
            return None

    @property
    def chosen(self) -> tuple[str, ...]:
        """Every module the setting is seen to adapt."""
        return self.found or ()

    @property
    def parameters(self) -> int:
        """Of the adapter: r · (in + out) a module."""
        rank = self.setting.r or 0
        return sum(rank * sum(self.shapes[module]) for module in self.chosen)


def base_fit(setting: Setting) -> BaseFit | None:
    """None when the setting names no base, or one that cannot be known without the hub."""
    if not setting.model:
        return None
    facts = _facts(setting.model, _stamp(Path(setting.model)))
    return None if facts is None else BaseFit(path=setting.path, setting=setting, facts=facts)


def _stamp(path: Path) -> float:
    """Changes when a folder's files do, so that what was read of it before does not count."""
    try:
        return max((entry.stat().st_mtime for entry in path.iterdir()), default=0.0) if path.is_dir() else 0.0
    except (OSError, ValueError):
        return 0.0


@lru_cache(maxsize=32)
def _facts(source: str, _: float) -> ModelFacts | None:
    try:
        return read_model_here(source)
    except (LorawiseError, OSError, ValueError):
        return None
