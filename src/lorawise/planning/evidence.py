"""What others measured, published and ship, as figures with their source. Nothing here is an opinion of this project.

SOURCES    short name → what it is and where it stands
SHIPPED    what tools ship as their default, as early strength alpha · learning rate
SWEEP      the public learning-rate sweep of tinker-cookbook, as far as it is published
"""

from collections.abc import Mapping
from dataclasses import dataclass

SOURCES: Mapping[str, str] = {
    "guide": "LoRA Scaling Factor: Alpha, Rank & Tuning Guide (the guide this project started from)",
    "LoRA": "Hu et al. 2021, arXiv 2106.09685",
    "LoRA Without Regret": "Schulman and Thinking Machines Lab 2025, LoRA Without Regret",
    "tinker-cookbook": "Thinking Machines' tinker-cookbook: sweep of 35 models, r 32, alpha 32, batch 128, 780 steps",
    "Learning Rate Matters": "arXiv 2602.04998: LoRA variants land within 1 to 2 % once the rate is tuned",
    "QLoRA": "Dettmers et al. 2023, arXiv 2305.14314",
    "Unsloth": "Unsloth's LoRA hyperparameter guide: lr 2e-4, r 16 or 32, 7 modules, 1 to 3 epochs, dropout 0",
    "capacity": "Allen-Zhu and Li 2024, arXiv 2404.05405: a trained network stores about 2 bits a parameter",
    "Llama 3": "The Llama 3 Herd of Models, arXiv 2407.21783: 38 to 43 % of the dense bf16 rate in training",
    "DESIGN": "lorawise: small steps keep LoRA near full fine-tuning, and the run file's defaults",
    "model": "the model's own files",
    "data": "the data itself",
    "device": "the device's own figures",
    "memory": "lorawise's memory prediction",
}


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A tool's default: `strength` is alpha · lr, at the r and alpha it ships."""

    tool: str
    strength: float
    setting: str


SHIPPED: tuple[Shipped, ...] = (
    Shipped(tool="PEFT with Trainer", strength=4.0e-4, setting="8/8 q,v at 5e-5"),
    Shipped(tool="TRL's CLI", strength=6.4e-4, setting="16/32 q,v at 2e-5"),
    Shipped(tool="LLaMA-Factory", strength=1.6e-3, setting="8/16 at 1e-4"),
    Shipped(tool="Unsloth", strength=3.2e-3, setting="16/16 at 2e-4"),
    Shipped(tool="Tinker at batch 128", strength=9.6e-3, setting="32/32 at 3e-4"),
    Shipped(tool="torchtune's largest", strength=0.128, setting="up to 0.128"),
)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One adapter setting trained at several learning rates on many models.

    best           learning rate → for how many models it was the best of those tried
    fixed          the rate whose loss against each model's own best is published
    median, worst  that loss: relative, 0.026 is 2.6 %
    diverging      rate at which `diverged` of `divergences` runs diverged
    """

    r: int
    alpha: float
    batch: int
    best: Mapping[float, int]
    fixed: float
    median: float
    worst: float
    diverging: float
    diverged: int
    divergences: int

    @property
    def models(self) -> int:
        return sum(self.best.values())


SWEEP = Sweep(
    r=32,
    alpha=32.0,
    batch=128,
    best={1e-4: 1, 3e-4: 22, 4e-4: 2, 1e-3: 10},
    fixed=3e-4,
    median=0.0,
    worst=0.026,
    diverging=3e-3,
    diverged=72,
    divergences=80,
)
