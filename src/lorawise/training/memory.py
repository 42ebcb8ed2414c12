"""Memory: what a run took, how activations are kept, and how many tokens to take at once.

    speed      every activation is kept
    balanced   every second decoder layer keeps only its input and is computed again in backward
    frugal     every decoder layer does
    offload    as frugal, and those inputs wait in pinned host memory; on a CPU they are there already
    auto       the fastest that is predicted to fit (`fitting.py`); for models that planning cannot read, speed where
               one micro-batch fits half of what is free, else frugal

Computed again is exact: dropout masks are functions of the step, so both forwards see the same ones.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from lorawise.base.errors import MemoryExhausted
from lorawise.base.peak import peak_memory as resident_peak
from lorawise.base.registry import Registry

CPU_TOKENS, ACCELERATOR_TOKENS = 2048, 16_384  # at once, at most: beyond these a step is no faster per token
SHARE = 0.5  # of free memory that activations may take; the rest is for logits, gradients and what we do not count


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """every  how many layers one is computed again; 0 for none.  offload  their inputs to the host"""

    every: int
    offload: bool = False


modes: Registry[Keeping] = Registry("memory mode")
modes.register("speed")(Keeping(every=0))
modes.register("balanced")(Keeping(every=2))
modes.register("frugal")(Keeping(every=1))
modes.register("offload")(Keeping(every=1, offload=True))


def keep_activations(model: PreTrainedModel, mode: str) -> None:
    """Set how activations are kept while the model is in training mode; `mode` is not `auto` any more."""
    kept = modes[mode]
    if kept.every:  # with use_reentrant False no input has to require a gradient
        model.activation_checkpointing_enable(
            {"use_reentrant": False},
            every_n_layers=kept.every,
            offload=kept.offload and model.device.type != "cpu",
        )


def choose_mode(model: PreTrainedModel, tokens: int, *, slots: int = 1) -> str:
    """What `auto` becomes for micro-batches of `tokens`."""
    fits = bytes_per_token(model) * tokens * slots <= SHARE * free_memory(model.device)
    return "speed" if fits or not model.supports_gradient_checkpointing else "frugal"


def choose_tokens(model: PreTrainedModel, *, step: int, longest: int, mode: str, slots: int = 1) -> int:
    """What `micro_batch_tokens: auto` becomes: a power of two that memory allows, no less than the longest row."""
    at_most = CPU_TOKENS if model.device.type == "cpu" else ACCELERATOR_TOKENS
    per_token = bytes_per_token(model) // (8 if mode == "frugal" else 1)
    fitting = int(SHARE * free_memory(model.device) / (per_token * slots))
    tokens = at_most
    while tokens > 16 and tokens > fitting:
        tokens //= 2
    return max(longest, min(tokens, step))


def bytes_per_token(model: PreTrainedModel) -> int:
    """About what one token keeps for backward in all decoder layers: the inputs of norms, products and attention.

    Eleven vectors of the hidden width and four of the MLP's, in the base's type: what a Llama layer saves with the
    frozen products keeping nothing.
    """
    config: Any = model.config.get_text_config()
    hidden = int(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    return int(config.num_hidden_layers) * (11 * hidden + 4 * int(inner)) * model.dtype.itemsize


def free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def total_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(psutil.virtual_memory().total)


def held_memory(device: torch.device) -> int:
    """Bytes now: allocated on CUDA, this process's resident memory elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak so far: allocated on CUDA, this process's resident memory elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resident_peak()


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Out of memory, said with its cure."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as problem:
        raise _out_of_memory(str(problem)) from problem
    except RuntimeError as problem:
        if "can't allocate memory" not in str(problem):
            raise
        raise _out_of_memory(str(problem)) from problem


def _out_of_memory(said: str) -> MemoryExhausted:
    return MemoryExhausted(
        f"out of memory: {said.splitlines()[0] if said else 'an allocation failed'}",
        expected="a micro-batch that fits",
        cure="halve train.micro_batch_tokens (the training stays the same), set train.memory: frugal, or lower "
        "train.max_length",
    )
