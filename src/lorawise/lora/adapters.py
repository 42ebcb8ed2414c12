"""The handle to every adapter of one model: train them, read them, switch, stack, rescale, merge.

A handle holds no state of its own: two handles to one model see the same adapters.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lorawise.base.errors import AdapterError, nearest
from lorawise.lora import merge as merging
from lorawise.lora.bank import BankLayer
from lorawise.lora.config import LoraConfig
from lorawise.lora.full_modules import FullLayer
from lorawise.lora.routing import BANK, BASE, Route, Routing, single
from lorawise.lora.slots import as_saved, held, hold, misfits, require_fit
from lorawise.lora.weights import AdapterWeights
from lorawise.lora.wrapping import layers_of


@dataclass(frozen=True, kw_only=True)
class BankParameter:
    """One parameter of a bank: A (n, r, in) or B (n, out, r) of the layer called `module`."""

    name: str
    module: str
    kind: Literal["A", "B"]
    parameter: nn.Parameter


class Adapters:
    """The adapters of `model`, which `inject` or `attach` put there; `adapters_of(model)` finds them again."""

    def __init__(self, model: nn.Module, routing: Routing) -> None:
        self.model = model
        self.routing = routing

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}: {config}" for name, config in zip(self.names, self.configs, strict=True))
        return f"Adapters({shown})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.routing.names)

    @property
    def configs(self) -> tuple[LoraConfig, ...]:
        return tuple(self.routing.configs)

    @property
    def n(self) -> int:
        """Slots of every bank."""
        return self.routing.n

    @property
    def layers(self) -> dict[str, BankLayer]:
        """Adapted layers by their names in the base model, in model order."""
        return layers_of(self.model, BankLayer)

    @property
    def full_layers(self) -> dict[str, FullLayer]:
        """Modules of which some adapter trains parameters in full, by their names in the base model."""
        return layers_of(self.model, FullLayer)

    def bank_parameters(self) -> Iterator[BankParameter]:
        for name, layer in self.layers.items():
            yield BankParameter(name=f"{name}.lora_A", module=name, kind="A", parameter=layer.lora_A)
            yield BankParameter(name=f"{name}.lora_B", module=name, kind="B", parameter=layer.lora_B)

    def full_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`modules_to_save` and trained biases by their names in the base model."""
        for name, layer in self.full_layers.items():
            for i in range(self.n):
                yield from ((f"{name}.{key}", parameter) for key, parameter in layer.slot(i).items())

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What an optimizer should hold."""
        yield from ((entry.name, entry.parameter) for entry in self.bank_parameters())
        yield from self.full_parameters()

    def draw(self, step: int, micro: int = 0) -> None:
        """Choose the dropout masks of the next forward and backward.

        They are a function of seed, setting, layer, `step` and `micro`, so a forward that activation checkpointing
        computes again, and a run that was resumed, see the same ones.
        """
        self.routing.draw = (step, micro)

    def bank(self) -> None:
        """Training: slot i takes the i-th share of the rows; a single slot takes them all."""
        self._require_unmerged()
        whole = self._with_full_parameters(self.names)
        if self.n > 1 and whole:
            raise AdapterError(
                f"{_quoted(whole)} trains whole modules or biases, which {self.n} slots cannot share in one pass",
                cure=f"use one at a time: adapters.use('{whole[0]}')",
            )
        self.routing.route = BANK

    def use(self, name: str | None) -> None:
        """Every row through one adapter; None: the base alone. Replaces one reference, whatever the model's size."""
        self._require_unmerged()
        self.routing.route = BASE if name is None else single(self._slot(name))

    def stack(self, weights: Mapping[str, float]) -> None:
        """Every row through Σ weight · delta: exactly the sum of the deltas. Negative weights take away.

        Whole modules cannot be added up: at most one adapter of a stack may have `modules_to_save` or biases, and its
        copies are used as they are. A weight of zero leaves an adapter out. A stack has no dropout.
        """
        self._require_unmerged()
        self.routing.route = Route(mode="mix", mix=self._mix(weights))

    def set_scale(self, name: str, factor: float) -> None:
        """Multiply an adapter's scaling until set again; 1.0 is what it was trained with. Whole modules stay as are."""
        self._require_unmerged()
        if not math.isfinite(factor):
            raise AdapterError(f"factor={factor!r} for adapter '{name}' is not a finite number")
        self.routing.factors[self._slot(name)] = float(factor)

    def weights(self, name: str) -> AdapterWeights:
        """A copy of one adapter: unpadded, on the CPU, in the masters' fp32 (fp64 over an fp64 base)."""
        self._slot(name)
        return as_saved(held(self.model, self.routing)[name])

    def load(self, name: str, weights: AdapterWeights) -> None:
        """Put an adapter's values into an existing slot, to go on training it. The slot keeps its own config.

        Raises `AdapterError` with the list of what differs: modules, ranks, scaling, whole modules.
        """
        self._require_unmerged()
        config = self.configs[self._slot(name)]
        everything = held(self.model, self.routing)
        problems = [*_differences(everything[name], weights), *misfits(self.model, weights)]
        if problems:
            raise AdapterError(
                f"these weights are not of adapter '{name}':\n  " + "\n  ".join(problems),
                cure="inject with the weights' own config, or add them beside it: adapters.add(name, weights)",
            )
        everything[name] = AdapterWeights(config=config, layers=weights.layers, full=weights.full, task=weights.task)
        hold(self.model, self.routing, everything)

    def add(self, name: str, weights: AdapterWeights) -> None:
        """One more resident adapter, not yet used; the base is not copied, and layers it alone adapts are wrapped.

        The banks grow by a slot, so add before an optimizer is built. Raises `AdapterError` with the list of what does
        not fit this model; nothing has changed then.
        """
        self._require_unmerged()
        check_names([*self.names, name])
        require_fit(self.model, name, weights)
        if self.n == 1 and self.routing.route is BANK:
            self.routing.route = single(0)
        hold(self.model, self.routing, {**held(self.model, self.routing), name: weights})

    def remove(self, name: str) -> None:
        """Forget one adapter. When the route used it, the base alone answers from now on."""
        self._require_unmerged()
        gone = self._slot(name)
        everything = held(self.model, self.routing)
        del everything[name]
        mix = self.routing.route.mix
        if any(i == gone for i, _ in mix):
            self.routing.route = BASE
        elif mix:
            self.routing.route = Route(mode="mix", mix=tuple((i - (i > gone), weight) for i, weight in mix))
        hold(self.model, self.routing, everything)

    def merge(self, weights: Mapping[str, float] | None = None) -> None:
        """Add Σ weight · s · B·A to the base weights in memory; None: what the route uses now. See `unmerge`.

        fp32 arithmetic, one rounding. Costs a second copy of the adapted weights until `unmerge`. A tied weight is
        untied. Raises `AdapterError` over a quantised base; nothing has changed then.
        """
        self._require_unmerged()
        if weights is None and self.routing.route.mode == "bank" and self.n != 1:
            raise AdapterError(
                f"the route is the bank of {self.n} slots: which one is to be merged?",
                cure="merge({name: 1.0}), or choose first: adapters.use(name)",
            )
        mix = self.routing.mix() if weights is None else self._mix(weights)
        merging.merge(self.model, self.routing, mix)

    def unmerge(self) -> None:
        """Put the base's own parameters back: the same objects, to the bit."""
        if self.routing.merged is None:
            raise AdapterError("nothing is merged", cure="call merge() first")
        merging.unmerge(self.model, self.routing)

    @property
    def merged(self) -> Mapping[str, float] | None:
        """What is merged into the base weights, or None."""
        return self.routing.merged

    def _slot(self, name: str) -> int:
        if name not in self.routing.names:
            known = self.routing.names
            raise AdapterError(
                f"no adapter is called '{name}'", cure=nearest(name, known) if known else "add one: adapters.add(…)"
            )
        return self.routing.names.index(name)

    def _mix(self, weights: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
        for name, weight in weights.items():
            self._slot(name)
            if not math.isfinite(weight):
                raise AdapterError(f"weight={weight!r} of adapter '{name}' is not a finite number")
        used = [name for name, weight in weights.items() if weight != 0]
        whole = self._with_full_parameters(used)
        if len(whole) > 1:
            raise AdapterError(
                f"{_quoted(whole)} each train whole modules or biases, which cannot be added up",
                expected="at most one such adapter in a stack",
                cure="stack adapters without modules_to_save, or use one at a time",
            )
        return tuple((self._slot(name), float(weights[name])) for name in used)

    def _with_full_parameters(self, names: Sequence[str]) -> list[str]:
        configs = dict(zip(self.names, self.configs, strict=True))
        return [name for name in names if configs[name].modules_to_save or configs[name].bias != "none"]

    def _require_unmerged(self) -> None:
        if self.routing.merged is not None:
            raise AdapterError(
                f"the base weights hold {_quoted(list(self.routing.merged))} merged into them",
                cure="call adapters.unmerge() first",
            )


def check_names(names: Sequence[str]) -> None:
    """Refuse names that are empty or used twice."""
    for i, name in enumerate(names):
        if not name:
            raise AdapterError("an adapter's name is empty", expected="a name such as 'default' or 'medical'")
        if name in names[:i]:
            raise AdapterError(f"two adapters are called '{name}'", cure="choose another name, or remove the first")


def _differences(own: AdapterWeights, other: AdapterWeights) -> Iterator[str]:
    """What stands between a slot and the values of another adapter."""
    for field, here, there in (("adapted", own.layers, other.layers), ("trained in full", own.full, other.full)):
        yield from (f"{name}: {field} by the slot, not in the weights" for name in here if name not in there)
        yield from (f"{name}: {field} by the weights, not by the slot" for name in there if name not in here)
    for name in own.layers:
        if name in other.layers:
            for noun, mine, theirs in (
                ("rank", own.config.rank_of(name), other.config.rank_of(name)),
                ("scaling", own.config.scaling_of(name), other.config.scaling_of(name)),
            ):
                if mine != theirs:
                    yield f"{name}: {noun} {theirs:g} in the weights, {mine:g} in the slot"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
