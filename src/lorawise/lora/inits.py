"""How A starts (B starts at zero, so a fresh adapter changes nothing).

kaiming   U(−1/√in, 1/√in), what `kaiming_uniform_(a=√5)` gives and PEFT uses: standard deviation 1/√(3·in)
gaussian  N(0, 1/(3·in)), the guide's bell curve with kaiming's standard deviation (PEFT's 1/r is about 7 times wider at
          width 4,096, which changes the early strength of every learning rate)

Every draw comes from its own generator, seeded by (seed, module): it depends on no other layer, slot or device.
An embedding starts the other way round, as in PEFT: A is zero and B is N(0, 1).
"""

import math
from collections.abc import Callable

import torch

from lorawise.base.files import digest_text
from lorawise.base.registry import Registry

Init = Callable[[int, int, torch.Generator], torch.Tensor]
INITS: Registry[Init] = Registry("init")


@INITS.register("kaiming")
def kaiming(rank: int, fan_in: int, generator: torch.Generator) -> torch.Tensor:
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(rank, fan_in).uniform_(-bound, bound, generator=generator)


@INITS.register("gaussian")
def gaussian(rank: int, fan_in: int, generator: torch.Generator) -> torch.Tensor:
    return torch.empty(rank, fan_in).normal_(0.0, 1 / math.sqrt(3 * fan_in), generator=generator)


def generator_for(seed: int, module: str) -> torch.Generator:
    """A CPU generator whose stream belongs to one module of one seed."""
    return torch.Generator().manual_seed(int(digest_text(str(seed), module)[:15], 16))
