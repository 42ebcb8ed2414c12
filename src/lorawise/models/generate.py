"""Answers to many prompts at once: left-padded batches through transformers' own `generate`, with its KV cache.

    prompts: n lists of token ids  →  n lists of new ids, in the same order, without the stop token

Prompts are sorted by length into batches, so that little is padding; the padding stands left, is masked and does not
count as a position, so an answer does not depend on what else is in its batch (to rounding; exactly the same ids in
fp32). The model answers as it is: with the adapters in use, or as the base alone.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorawise.base.errors import ModelError
from lorawise.models.quiet import quiet_transformers
from lorawise.models.window import require_known_tokens, window_of_model

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

Done = Callable[[int, int], None]  # answers there, answers wanted


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn when it is not simply the likeliest one."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise ModelError(
                f"temperature {self.temperature}, top_p {self.top_p}",
                expected="temperature above 0 and top_p in (0, 1]",
                cure="leave sampling away for the likeliest answer",
            )


def generate(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int,
    batch_size: int = 16,
    sampling: Sampling | None = None,
    done: Done | None = None,
) -> list[list[int]]:
    """The new tokens after each prompt, up to (not including) the first of `stop_ids` or `max_new_tokens`.

    Greedy, or drawn as `sampling` says (then an answer depends on its batch too). `done` is called after each batch.
    Neither the model's mode and settings nor the global random state are changed. `ModelError` for an empty prompt, or
    one that leaves no room in the model's window; a prompt that leaves less room than wanted gets what there is.
    """
    if max_new_tokens < 1:
        raise ModelError(f"max_new_tokens={max_new_tokens}", expected="a whole number from 1")
    _check(model, prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    answers: list[list[int]] = [[] for _ in prompts]
    with _ready(model), torch.random.fork_rng(devices=_devices(model)):
        if sampling is not None:
            torch.manual_seed(sampling.seed)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            room = window_of_model(model) - len(prompts[batch[0]])
            settings = _settings(stop_ids, min(max_new_tokens, room), sampling)
            for i, answer in zip(batch, _batch(model, [prompts[i] for i in batch], settings), strict=True):
                answers[i] = _until(answer, stop_ids)
            if done is not None:
                done(min(start + batch_size, len(order)), len(order))
    return answers


def _batch(model: "PreTrainedModel", prompts: Sequence[Sequence[int]], settings: "GenerationConfig") -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[settings.pad_token_id] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    answer: Any = model.generate  # mypy takes it for a tensor: nn.Module.__getattr__
    out = answer(input_ids=ids, attention_mask=mask, generation_config=settings)
    new: list[list[int]] = out[:, width:].tolist()
    return new


def _settings(stop_ids: Collection[int], new_tokens: int, sampling: Sampling | None) -> "GenerationConfig":
    from transformers import GenerationConfig

    stops = sorted(stop_ids)
    drawn = {} if sampling is None else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=new_tokens,
        do_sample=sampling is not None,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
        use_cache=True,
        **drawn,
    )


@contextmanager
def _ready(model: "PreTrainedModel") -> Iterator[None]:
    """Eval mode, and none of the checkpoint's own defaults (temperature, penalties), which would be filled in."""
    from transformers import GenerationConfig

    training, defaults = model.training, model.generation_config
    model.train(False)
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        with quiet_transformers():
            yield
    finally:
        model.generation_config = defaults
        model.train(training)


def _until(answer: list[int], stop_ids: Collection[int]) -> list[int]:
    end = next((i for i, token in enumerate(answer) if token in stop_ids), len(answer))
    return answer[:end]


def _check(model: "PreTrainedModel", prompts: Sequence[Sequence[int]]) -> None:
    require_known_tokens(model, max((max(prompt) for prompt in prompts if len(prompt)), default=0))
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ModelError(f"prompt {i} is empty", expected="at least one token to go on from")
        if len(prompt) >= window_of_model(model):
            raise ModelError(
                f"prompt {i} has {len(prompt):,} tokens, and the model's window is {window_of_model(model):,}",
                cure="shorten it, or leave the row out",
            )


def _devices(model: "PreTrainedModel") -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []
