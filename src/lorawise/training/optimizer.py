"""AdamW over the parameters of a bank: every slot has its own rates, clip, step count and loss scale.

    m ← β₁·m + (1 − β₁)·g        v ← β₂·v + (1 − β₂)·g²        p ← p·(1 − η·λ) − η/(1 − β₁ᵗ) · m / (√(v/(1 − β₂ᵗ)) + ε)

as `torch.optim.AdamW` (Loshchilov & Hutter 2017, arXiv 1711.05101), elementwise, so slot i of n moves as it would
alone. B's rate is `lora_plus_ratio` times A's (LoRA+, arXiv 2402.12354) and its ε that much smaller, so that a ratio of
k does exactly what a scaling of k does (law 5). g is clipped by its slot's own norm.

Shapes: all parameters of one group (A, B, or trained in full) are columns of one flat buffer (n, P), so that a step is
about ten tensor operations however many layers are adapted. A parameter keeps its shape: its `data` and `grad` become
views of flat buffers.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from lorawise.base.errors import ConfigError, RunError

Kind = Literal["A", "B", "full", "undecayed"]

FIRST_SCALE = 2.0**16  # as torch.amp.GradScaler
SMALLEST_SCALE = 2.0**-4  # a gradient that overflows below this is not one that a smaller scale cures
GROWTH_INTERVAL = 2000


@dataclass(frozen=True, kw_only=True)
class SlotSettings:
    """How one slot is optimised. `clip` is the largest gradient norm, 0 for no clipping."""

    learning_rate: float
    lora_plus_ratio: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 1.0

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value!r} is not a finite number of at least {least:g}"
            for name, value, least in (
                ("learning_rate", self.learning_rate, 0.0),
                ("weight_decay", self.weight_decay, 0.0),
                ("eps", self.eps, 0.0),
                ("clip", self.clip, 0.0),
            )
            if not least <= value < math.inf
        ]
        if not 0 < self.lora_plus_ratio < math.inf:
            problems.append(f"lora_plus_ratio={self.lora_plus_ratio!r} is not a positive number")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas={self.betas!r} are not in [0, 1)")
        if problems:
            raise ConfigError("\n  ".join(problems))

    def learning_rate_of(self, kind: Kind) -> float:
        return self.learning_rate * (self.lora_plus_ratio if kind == "B" else 1.0)

    def eps_of(self, kind: Kind) -> float:
        return self.eps / (self.lora_plus_ratio if kind == "B" else 1.0)

    def weight_decay_of(self, kind: Kind) -> float:
        return 0.0 if kind == "undecayed" else self.weight_decay


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One parameter to optimise. A and B have a leading slot dimension; the other kinds belong to a single slot."""

    name: str
    kind: Kind
    parameter: Parameter


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What one step did, a value a slot: the gradient's norm before clipping, and whether the slot moved."""

    norms: tuple[float, ...]
    moved: tuple[bool, ...]


@dataclass(kw_only=True)
class _Group:
    kind: Kind
    members: list[Trained]
    values: Tensor  # (n, P)
    received: Tensor  # (n·P,) what backward adds to, parameter after parameter: autograd wants each `grad` contiguous
    views: list[Tensor]  # of `received`: each member's `grad`
    gradients: Tensor = field(init=False)  # (n, P) the same, slot after slot
    first: Tensor = field(init=False)
    second: Tensor = field(init=False)

    def __post_init__(self) -> None:
        n = self.values.shape[0]
        self.gradients = self.received.view(1, -1) if n == 1 else torch.zeros_like(self.values)
        self.first = torch.zeros_like(self.values)
        self.second = torch.zeros_like(self.values)

    def gather(self) -> None:
        """Put what backward added slot after slot. `RunError` when a parameter's `grad` is not ours any more."""
        for member, view in zip(self.members, self.views, strict=True):
            if member.parameter.grad is not view:
                raise RunError(
                    f"{member.name} was given another gradient since the optimizer was built",
                    expected="parameters that keep their shape, and gradients that are only added to",
                    cure="add and remove adapters before the optimizer; zero_grad() instead of grad = None",
                )
        n = self.values.shape[0]
        if n > 1:
            torch.cat([view.view(n, -1) for view in self.views], dim=1, out=self.gradients)


class BankAdamW:
    """`zero_grad()`, backward of Σᵢ scale(i)·lossᵢ, `step(factors)`; the gradients are used up by a step.

    settings   one a slot
    scaled     True for a fp16 base: losses are multiplied by `scales` before backward; a slot whose gradient
               overflows skips that step and halves its scale, the others move on
    A slot whose gradient is not finite and cannot be cured by a smaller scale is dead: it keeps its last good
    parameters and never moves again (`alive`).
    """

    def __init__(self, parameters: Iterable[Trained], settings: Sequence[SlotSettings], *, scaled: bool) -> None:
        self.settings = tuple(settings)
        self.n = len(self.settings)
        self.scaled = scaled
        self.counts = [0] * self.n
        self.alive = [True] * self.n
        self.scales = [FIRST_SCALE if scaled else 1.0] * self.n
        self._calm = [0] * self.n
        self._groups = [_flatten(kind, members, self.n) for kind, members in _grouped(parameters, self.n)]
        if not self._groups:
            raise ConfigError("no parameter to train", cure="choose target_modules that the model has")

    def zero_grad(self) -> None:
        for group in self._groups:
            group.received.zero_()

    def loss_scales(self, like: Tensor) -> Tensor:
        """(n,) in the type and place of `like`: what each slot's loss is multiplied by before backward."""
        return torch.tensor(self.scales, dtype=like.dtype, device=like.device)

    def norms(self) -> list[float]:
        """Each slot's gradient norm over all its parameters, the loss scale divided out; not finite on overflow."""
        for group in self._groups:
            group.gather()
        parts = [
            torch.linalg.vector_norm(group.gradients, dim=1, dtype=_wide(group.gradients)) for group in self._groups
        ]
        together = torch.stack([part.double().cpu() for part in parts]).square().sum(0).sqrt()
        return [norm / scale for norm, scale in zip(together.tolist(), self.scales, strict=True)]

    def step(self, factors: Sequence[float]) -> Applied:
        """One step at learning rate × factors[i] for slot i; then the gradients are zero again."""
        norms = self.norms()
        finite = [math.isfinite(norm) for norm in norms]
        moved = [ok and alive for ok, alive in zip(finite, self.alive, strict=True)]
        self.counts = [count + ok for count, ok in zip(self.counts, moved, strict=True)]
        for group in self._groups:
            self._move(group, norms, factors, moved)
        self._settle_scales(finite)
        self.zero_grad()
        return Applied(norms=tuple(norms), moved=tuple(moved))

    def _move(self, group: _Group, norms: list[float], factors: Sequence[float], moved: list[bool]) -> None:
        held = [slot for slot, ok in enumerate(moved) if not ok]
        kept = [buffer[held].clone() for buffer in (group.values, group.first, group.second)] if held else []
        self._update(group, norms, factors)
        for buffer, rows in zip((group.values, group.first, group.second), kept, strict=False):
            buffer[held] = rows  # the same kernels ran on the same shapes, so the other slots kept their bits

    def _update(self, group: _Group, norms: list[float], factors: Sequence[float]) -> None:
        def column(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.float64).to(group.values).unsqueeze(1)

        slots, counts = self.settings, [max(count, 1) for count in self.counts]
        rates = [s.learning_rate_of(group.kind) * factor for s, factor in zip(slots, factors, strict=True)]
        gradients = group.gradients.mul_(column(map(_shrink, slots, norms, self.scales)))
        group.values.mul_(
            column(1 - rate * s.weight_decay_of(group.kind) for s, rate in zip(slots, rates, strict=True))
        )
        group.first.lerp_(gradients, column(1 - s.betas[0] for s in slots))
        second_share = column(1 - s.betas[1] for s in slots)
        group.second.mul_(column(s.betas[1] for s in slots)).add_(gradients.square_().mul_(second_share))
        change = torch.sqrt(group.second, out=gradients)
        change.div_(column(math.sqrt(1 - s.betas[1] ** t) for s, t in zip(slots, counts, strict=True)))
        change.add_(column(s.eps_of(group.kind) for s in slots))
        torch.div(group.first, change, out=change)
        group.values.sub_(
            change.mul_(column(r / (1 - s.betas[0] ** t) for r, s, t in zip(rates, slots, counts, strict=True)))
        )

    def _settle_scales(self, finite: list[bool]) -> None:
        for slot, ok in enumerate(finite):
            if not self.scaled:
                self.alive[slot] &= ok
            elif ok:
                self._calm[slot] += 1
                if self._calm[slot] >= GROWTH_INTERVAL:
                    self.scales[slot], self._calm[slot] = self.scales[slot] * 2, 0
            else:
                self.scales[slot], self._calm[slot] = self.scales[slot] / 2, 0
                self.alive[slot] &= self.scales[slot] >= SMALLEST_SCALE

    def received(self) -> list[Tensor]:
        """What backward has added so far, every parameter of a kind in one flat buffer."""
        return [group.received for group in self._groups]

    def state(self) -> list[Tensor]:
        """Values and moments, every parameter of a kind in one flat buffer; the live ones."""
        return [buffer for group in self._groups for buffer in (group.values, group.first, group.second)]

    def gradients(self) -> Iterator[tuple[Trained, Tensor]]:
        """Every parameter with its gradient view (zero where nothing arrived)."""
        for group in self._groups:
            yield from zip(group.members, group.views, strict=True)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and moments by name, to save; the tensors are the live ones."""
        named: dict[str, Tensor] = {}
        for group in self._groups:
            named |= {f"parameter.{member.name}": member.parameter.data for member in group.members}
            for word, buffer in (("exp_avg", group.first), ("exp_avg_sq", group.second)):
                views = _views(buffer, group.members, self.n)
                named |= {f"{word}.{m.name}": view for m, view in zip(group.members, views, strict=True)}
        return named

    def load_tensors(self, saved: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`, to the bit. Raises `RunError` when names or shapes differ."""
        mine = self.tensors()
        problems = [f"{name} is missing" for name in mine if name not in saved]
        problems += [f"{name} is not of this run" for name in saved if name not in mine]
        problems += [
            f"{name} is {tuple(saved[name].shape)} {saved[name].dtype}, not {tuple(own.shape)} {own.dtype}"
            for name, own in mine.items()
            if name in saved and (saved[name].shape != own.shape or saved[name].dtype != own.dtype)
        ]
        if problems:
            raise RunError("the saved state is of another run:\n  " + "\n  ".join(problems[:8]))
        for name, own in mine.items():
            own.copy_(saved[name])

    def counters(self) -> dict[str, list[float] | list[int] | list[bool]]:
        """The rest of the state, for JSON."""
        return {
            "counts": list(self.counts),
            "alive": list(self.alive),
            "scales": list(self.scales),
            "calm": list(self._calm),
        }

    def load_counters(self, saved: Mapping[str, Sequence[float]]) -> None:
        self.counts = [int(value) for value in saved["counts"]]
        self.alive = [bool(value) for value in saved["alive"]]
        self.scales = [float(value) for value in saved["scales"]]
        self._calm = [int(value) for value in saved["calm"]]


def _wide(like: Tensor) -> torch.dtype:
    """What norms are summed in: fp64 where the device has it."""
    return like.dtype if like.device.type == "mps" else torch.float64


def _shrink(settings: SlotSettings, norm: float, scale: float) -> float:
    """What a slot's gradient is multiplied by: the loss scale undone, and the clip as torch's clip_grad_norm_ does."""
    clipped = settings.clip > 0 and math.isfinite(norm)
    return (min(1.0, settings.clip / (norm + 1e-6)) if clipped else 1.0) / scale


def _grouped(parameters: Iterable[Trained], n: int) -> Iterator[tuple[Kind, list[Trained]]]:
    def key(member: Trained) -> tuple[str, str, str]:
        return member.kind, str(member.parameter.device), str(member.parameter.dtype)

    for _, members in groupby(sorted(parameters, key=key), key=key):
        group = list(members)
        for member in group:
            _refuse_strays(member, n)
        yield group[0].kind, group


def _refuse_strays(member: Trained, n: int) -> None:
    if member.parameter.dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"{member.name} is {member.parameter.dtype}", expected="fp32 or fp64 masters")
    if member.kind in ("full", "undecayed") and n > 1:
        raise ConfigError(f"{member.name} is trained in full beside {n} slots", expected="a single slot")
    if member.kind in ("A", "B") and member.parameter.shape[0] != n:
        raise ConfigError(f"{member.name} holds {member.parameter.shape[0]} slots", expected=f"{n}, one a setting")


def _flatten(kind: Kind, members: list[Trained], n: int) -> _Group:
    first = members[0].parameter
    width = sum(member.parameter.numel() for member in members) // n
    values = torch.zeros(n, width, dtype=first.dtype, device=first.device)
    received = torch.zeros(n * width, dtype=first.dtype, device=first.device)
    parts = torch.split(received, [member.parameter.numel() for member in members])
    views = [part.view(member.parameter.shape) for part, member in zip(parts, members, strict=True)]
    for member, value, view in zip(members, _views(values, members, n), views, strict=True):
        value.copy_(member.parameter.data)
        member.parameter.data, member.parameter.grad = value, view
    return _Group(kind=kind, members=members, values=values, received=received, views=views)


def _views(buffer: Tensor, members: list[Trained], n: int) -> list[Tensor]:
    """The buffer's columns as each member's shape: (n, r, in) of (n, P), strided, sharing memory."""
    widths = [member.parameter.numel() // n for member in members]
    parts = torch.split(buffer, widths, dim=1)
    return [
        part.view(n, *m.parameter.shape[1:]) if m.kind in ("A", "B") else part.view(m.parameter.shape)
        for part, m in zip(parts, members, strict=True)
    ]
