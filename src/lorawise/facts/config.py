"""config.json as a source of shapes: the keys that families spell in their own ways, read once and checked.

transformers leaves a key out when it equals its class's default, and older files use other names for the same thing;
a null means "not set". Everything here is a whole number of at least 1 or refused with the file's name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lorawise.base.errors import ModelError

_KEYS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "vocab_size": ("vocab_size",),
}
_MOST = 1 << 31  # no dimension of a model comes near; a larger number in a file is a mistake
_MOST_LAYERS = 10_000  # layers, and heads of one


@dataclass(frozen=True, kw_only=True)
class Config:
    """The values of one config.json, over the family's defaults. `where` is the file, for messages."""

    where: str
    values: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """What the file says, null too; else the family's default, else `default`."""
        return self.values.get(key, self.defaults.get(key, default))

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self.get(key, default))

    def number(self, *keys: str) -> int | None:
        """The value under whichever of `keys` the file has, else the family's default; None when it is not set.

        `ModelError` when it is not a whole number from 1.
        """
        said = [key for key in keys if key in self.values]
        for key in said or keys:
            value = self.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _MOST:
                raise ModelError(
                    f"{self.where}: {key} is {value!r}", expected="a whole number from 1", cure="fetch the model again"
                )
            return value
        return None

    def numbers(self, key: str) -> tuple[int, ...]:
        """A list of layer indices; empty when it is not set."""
        value = self.get(key) or ()
        if not isinstance(value, (list, tuple)) or not all(isinstance(n, int) for n in value):
            raise ModelError(f"{self.where}: {key} is {value!r}", expected="a list of layer indices")
        return tuple(value)

    def need(self, *keys: str) -> int:
        """As `number`, but it must be there."""
        value = self.number(*keys)
        if value is None:
            raise self.lacks([keys])
        return value

    def lacks(self, missing: Iterable[tuple[str, ...]]) -> ModelError:
        named = ", ".join(" or ".join(keys) for keys in missing)
        kind = self.values.get("model_type")
        return ModelError(
            f"{self.where} has no {named}, which the shapes of a {kind} follow from",
            expected="the config.json that transformers writes",
            cure="fetch the model again, or put its safetensors beside it",
        )


@dataclass(frozen=True, kw_only=True)
class Dimensions:
    """The sizes that most families share."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    positions: int | None

    @property
    def q(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all key heads together; values the same."""
        return self.kv_heads * self.head_dim


def read_dimensions(config: Config, *, intermediate: str, widening: int | None, kv_heads: int | None) -> Dimensions:
    """`ModelError` names every key that is missing, at once.

    intermediate   the key of the feed-forward width
    widening       feed-forward width over hidden size where that key is not set; None: it must be
    kv_heads       None: every query head has its own keys and values
    """
    found = {name: config.number(*keys) for name, keys in _KEYS.items()}
    wide = config.number(intermediate)
    missing = [keys for name, keys in _KEYS.items() if found[name] is None]
    if wide is None and widening is None:
        missing.append((intermediate,))
    if missing:
        raise config.lacks(missing)
    for name in ("layers", "heads"):
        if (count := found[name] or 0) > _MOST_LAYERS:
            raise ModelError(
                f"{config.where} says {count:,} {name}",
                expected=f"at most {_MOST_LAYERS:,}",
                cure="fetch the model again",
            )
    sizes = {name: value for name, value in found.items() if value is not None}
    hidden, heads = sizes["hidden_size"], sizes["heads"]
    return Dimensions(
        hidden=hidden,
        intermediate=wide or hidden * (widening or 1),
        layers=sizes["layers"],
        heads=heads,
        kv_heads=kv_heads or heads,
        head_dim=config.number("head_dim") or max(1, hidden // heads),
        vocab=sizes["vocab_size"],
        positions=config.number("max_position_embeddings", "n_positions"),
    )
