"""The matrices of a base model that lies in a folder, from its safetensors headers; and what a setting makes of them.

Names are those on disk, which are the modules' own for every dense family (experts may be fused in memory).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorawise.base.errors import ConfigError, TensorFileError
from lorawise.base.patterns import full_match
from lorawise.base.roles import ATTENTION_ROLES, Role, role_of
from lorawise.base.safetensors import SafetensorsFile
from lorawise.checking.setting import ALL_LINEAR, Setting

MAX_SHARDS = 500
_ENDS: frozenset[Role | None] = frozenset({"head", "embedding", "position"})
_PRESETS: Mapping[str, frozenset[Role | None]] = {
    "qv": frozenset({"q", "v", "qkv"}),
    "attention": frozenset(ATTENTION_ROLES),
    "mlp": frozenset({"mlp"}),
}


@dataclass(frozen=True, kw_only=True)
class BaseFit:
    """One setting over one base: `shapes` is module → (out, in)."""

    path: str
    setting: Setting
    shapes: Mapping[str, tuple[int, int]]

    def matched(self, name: str) -> list[str]:
        """Modules one target names: the whole name or its last components, as PEFT does."""
        return [module for module in self.shapes if module == name or module.endswith(f".{name}")]

    @property
    def chosen(self) -> list[str]:
        """Every module the setting adapts."""
        targets = self.setting.targets
        if isinstance(targets, str):
            if targets == ALL_LINEAR:
                return [module for module in self.shapes if role_of(module) not in _ENDS]
            if targets in _PRESETS:
                return [module for module in self.shapes if role_of(module) in _PRESETS[targets]]
            return [module for module in self.shapes if _matches(targets, module)]
        return list(dict.fromkeys(module for name in targets or () for module in self.matched(name)))

    @property
    def parameters(self) -> int:
        """Of the adapter: r · (in + out) a module."""
        rank = self.setting.r or 0
        return sum(rank * sum(self.shapes[module]) for module in self.chosen)


def _matches(pattern: str, module: str) -> bool:
    try:
        return full_match(pattern, module)
    except ConfigError:
        return False


def base_fit(setting: Setting, folder: Path) -> BaseFit | None:
    """None when the folder holds no safetensors with 2-D weights."""
    shapes: dict[str, tuple[int, int]] = {}
    for path in sorted(folder.glob("*.safetensors"))[:MAX_SHARDS]:
        try:
            file = SafetensorsFile.open(path)
        except (TensorFileError, OSError):
            continue
        for name, tensor in file.tensors.items():
            if name.endswith(".weight") and len(tensor.shape) == 2:
                shapes[name.removesuffix(".weight")] = (tensor.shape[0], tensor.shape[1])
    return BaseFit(path=setting.path, setting=setting, shapes=shapes) if shapes else None
