"""What a model's tables bound: how many positions it has embeddings for, and which tokens.

A row that exceeds either ends in an index error inside a kernel (on CUDA, in a dead device), so both are asked first.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorawise.base.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Decoders that look positions up in a learned or fixed table; the others turn (rotary) or bias (ALiBi) them.
TABLE = frozenset({"gpt2", "gpt_bigcode", "gpt_neo", "opt", "biogpt", "openai-gpt", "ctrl"})
UNBOUNDED = 1 << 30
_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


def window_of(config: Mapping[str, Any]) -> int | None:
    """Tokens of one row the model was made for, by its config.json; None where that does not say."""
    return next((value for name in _NAMES if isinstance(value := config.get(name), int) and value > 0), None)


def window_of_model(model: "PreTrainedModel") -> int:
    """Tokens that a prompt and its answer may have together; without end where the config does not say."""
    return int(getattr(model.config, "max_position_embeddings", None) or UNBOUNDED)


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Tokens a row can have at all; None where positions are computed and only quality suffers."""
    return window_of(config) if config.get("model_type") in TABLE else None


def require_known_tokens(model: "PreTrainedModel", highest: int) -> None:
    """`ModelError` when a token id has no embedding: the tokenizer is of another model, or grew after it."""
    embeddings: Any = model.get_input_embeddings()
    known = int(embeddings.weight.shape[0])
    if highest >= known:
        raise ModelError(
            f"the tokenizer gives token {highest:,}, and the model has embeddings for {known:,}",
            expected="the tokenizer that belongs to the model",
            cure="take both from one place; a vocabulary that grew needs a model resized and saved with it",
        )
