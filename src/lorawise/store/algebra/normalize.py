"""The portable normal form: what every engine reads alike.

    ΔW = (s·B)·A with alpha = r, no rsLoRA, no patterns, one rank that servers allow, dropout 0

llama.cpp's converter reads lora_alpha alone, vLLM one r and one lora_alpha for all modules, with ranks from a fixed
list: other forms are served with another scaling, silently. Smaller ranks are padded with zeros, which is exact.
"""

import numpy as np

from lorawise.base.errors import AdapterError
from lorawise.lora.config import LoraConfig
from lorawise.lora.weights import StoredAdapter
from lorawise.store.algebra.factors import Factors
from lorawise.store.algebra.result import computed, shapes_of
from lorawise.store.served import SERVED_RANKS, served_rank


def normal_rank(adapter: StoredAdapter) -> int:
    """The smallest served rank that holds every module. `AdapterError` when none does."""
    largest = max((a.shape[-2] for a, _ in adapter.layers.values()), default=1)
    served = served_rank(largest)
    if served is None:
        raise AdapterError(
            f"a module has rank {largest}",
            expected=f"at most {SERVED_RANKS[-1]}, the largest that is served",
            cure=f"lorawise adapter resize --rank {SERVED_RANKS[-1]} first",
        )
    return served


def normal_form(adapter: StoredAdapter, dtype: str) -> StoredAdapter:
    """`adapter` in the normal form, computed as it is written in `dtype` (F32, BF16, …)."""
    rank = normal_rank(adapter)
    config = adapter.config
    plain = LoraConfig(
        r=rank,
        alpha=rank,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        layers=config.layers,
        modules_to_save=config.modules_to_save,
        bias=config.bias,
    )
    return computed(
        adapter, plain, shapes_of(adapter), lambda module: _padded(Factors.of(adapter, module), rank), dtype
    )


def folds_exactly(adapter: StoredAdapter) -> bool:
    """Whether every scaling is a power of two, so that folding it into B rounds nothing."""
    return all(np.frexp(adapter.config.scaling_of(module))[0] == 0.5 for module in adapter.layers)


def _padded(factors: Factors, rank: int) -> Factors:
    more = rank - factors.rank
    stack = ((0, 0),) * (factors.A.ndim - 2)
    A = np.pad(factors.A, (*stack, (0, more), (0, 0)))
    return Factors(A=A, B=np.pad(factors.B, (*stack, (0, 0), (0, more))))
