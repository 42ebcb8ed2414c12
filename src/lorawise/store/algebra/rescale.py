"""Rescaling, exactly: the numbers stay as they are, to the bit, and alpha changes.

scaling → k · scaling   alpha → k · alpha, and every entry of alpha_pattern with it
"""

from dataclasses import replace

from lorawise.base.errors import ConfigError
from lorawise.lora.weights import StoredAdapter


def rescale(adapter: StoredAdapter, by: float) -> StoredAdapter:
    """The same adapter, `by` times as strong in every module. Modules trained in full have no scaling and stay."""
    if not 0 < by < float("inf"):
        raise ConfigError(
            f"cannot rescale by {by:g}",
            expected="a positive number",
            cure="to subtract an adapter, combine it with a negative weight; to switch it off, leave it out",
        )
    config = adapter.config
    pattern = {key: by * alpha for key, alpha in config.alpha_pattern.items()}
    return replace(adapter, config=config.replace(alpha=by * config.alpha, alpha_pattern=pattern))


def rescale_to(adapter: StoredAdapter, scaling: float) -> StoredAdapter:
    """The setting's scaling becomes `scaling`; modules with an alpha or rank of their own keep their proportion."""
    return rescale(adapter, scaling / adapter.config.scaling)
