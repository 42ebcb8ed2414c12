"""Where a model's tokenizer lies on this machine, if it does. Nothing is fetched: planning costs no download."""

import os
from pathlib import Path

FILE = "tokenizer.json"


def tokenizer_folder(source: str) -> Path | None:
    """The folder with the tokenizer of `source`: the model's own, or the newest snapshot in the hub's cache."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path if (path / FILE).is_file() else None
    if source.count("/") != 1 or path.is_file():
        return None
    found = (hub_cache() / f"models--{source.replace('/', '--')}" / "snapshots").glob(f"*/{FILE}")
    newest = max(found, key=lambda each: each.stat().st_mtime, default=None)
    return None if newest is None else newest.parent


def hub_cache() -> Path:
    """As huggingface_hub finds it, which would take longer to import than to plan."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
