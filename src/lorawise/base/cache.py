"""Where lorawise keeps what it can make again: converted models, tokenised rows."""

import os
from pathlib import Path

from lorawise.base.errors import ConfigError


def cache_folder() -> Path:
    """`$LORAWISE_CACHE`, else `$XDG_CACHE_HOME/lorawise`, else `~/.cache/lorawise`. Not created here."""
    if chosen := os.environ.get("LORAWISE_CACHE"):
        try:
            return Path(chosen).expanduser()
        except RuntimeError:
            raise ConfigError(f"LORAWISE_CACHE={chosen} names a home that nobody has", cure="name a folder") from None
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "lorawise"
    return Path.home() / ".cache" / "lorawise"
