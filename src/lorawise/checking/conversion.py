"""One file's setting in another tool's terms, alpha · lr unchanged."""

from pathlib import Path

from lorawise.base.errors import ConfigError, nearest
from lorawise.checking.adapter_file import CONFIG_NAME
from lorawise.checking.files import Unreadable
from lorawise.checking.reading import read_settings
from lorawise.checking.setting import Setting
from lorawise.checking.tools import TOOLS


def convert(path: Path, tool: str) -> tuple[Setting, str]:
    """(the setting as read, its text for `tool`). `ConfigError` when there is none, several, or no such tool."""
    if tool not in TOOLS:
        raise ConfigError(f"no tool is called {tool!r}", cure=nearest(tool, list(TOOLS)))
    if not path.exists():
        raise ConfigError(f"{path} does not exist", cure="check the path")
    if path.is_dir() and not (path / CONFIG_NAME).is_file():
        raise ConfigError(f"{path} is a folder without an adapter", expected="one file, or an adapter's folder")
    try:
        found = read_settings(path)
    except Unreadable as problem:
        raise ConfigError(f"{path}: {problem.found}", cure=problem.cure) from None
    distinct = list({str(setting): setting for setting in found}.values())
    if len(distinct) != 1:
        listed = "; ".join(map(str, distinct)) or "none"
        raise ConfigError(f"{path} holds {len(distinct)} settings: {listed}", expected="a file with one LoRA setting")
    setting = distinct[0]
    if setting.r is None or setting.scaling is None:
        raise ConfigError(f"{path}: {setting} is not known without running it", cure="write r and alpha as numbers")
    write = TOOLS[tool].write
    if write is None:
        raise ConfigError(f"{tool} has no config to write", cure=nearest("", [n for n in TOOLS if TOOLS[n].write]))
    return setting, write(setting) + _layers_left_out(setting, tool)


def _layers_left_out(setting: Setting, tool: str) -> str:
    """A comment where only some layers are adapted and the text written adapts all of them."""
    if isinstance(setting.layers, int) and setting.layers > 0 and tool != "mlx-lm":
        return f"# adapts all layers; {setting.tool} adapted the last {setting.layers}\n"
    if isinstance(setting.layers, tuple) and setting.layers:
        return f"# adapts all layers; {setting.tool} adapted {', '.join(map(str, setting.layers))}\n"
    return ""
