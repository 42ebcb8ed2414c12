"""A plan: every decision with its reason, the memory, the time, what is wrong with it, and the run file that follows.

`planner.py` makes one; `document.py` gives it as plain data, `explain.py` one decision at length, `report/plan.py` the
screen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lorawise.base.errors import ConfigError
from lorawise.base.findings import Finding
from lorawise.facts.device import DeviceFacts, devices
from lorawise.facts.model import Matrix, ModelFacts
from lorawise.facts.targets import selected
from lorawise.lora.config import LoraConfig
from lorawise.planning.concessions import Concession
from lorawise.planning.dataset import DataFacts
from lorawise.planning.decision import Decision
from lorawise.planning.largest import Largest, largest, smallest_device
from lorawise.planning.load import Load
from lorawise.planning.memory import Memory
from lorawise.planning.memory.static import adapter_sizes
from lorawise.planning.pace import Forecast, Pace, Work
from lorawise.planning.rate import strength, strength_in_words
from lorawise.planning.situation import Method, Settled, Situation
from lorawise.planning.tasks import Task
from lorawise.runfile import RunFile

ADAPTER_BYTES = 4  # a parameter of an adapter on disk and in training: float32 masters


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Everything `lorawise plan` says. `memory` is of the settled run; `methods` what each method would need."""

    situation: Situation
    settled: Settled
    load: Load
    memory: Memory
    trainable: int
    concessions: tuple[Concession, ...]
    methods: Mapping[str, int]
    pace: Pace | None
    price: float | None
    forecast: Forecast | None
    findings: tuple[Finding, ...]

    @property
    def model(self) -> ModelFacts:
        return self.situation.model

    @property
    def device(self) -> DeviceFacts:
        return self.situation.device

    @property
    def task(self) -> Task:
        return self.situation.task

    @property
    def method(self) -> Method:
        return self.situation.method

    @property
    def data(self) -> DataFacts | None:
        return self.situation.data

    @property
    def config(self) -> LoraConfig:
        return self.load.config

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(self.settled.values())

    @property
    def needed(self) -> int:
        return self.memory.total

    @property
    def fits(self) -> bool:
        return self.needed <= self.device.usable

    @property
    def total(self) -> int:
        """Parameters of model and adapter together, as PEFT counts them."""
        return self.model.parameters + (0 if self.method == "full" else self.trainable)

    @property
    def strength(self) -> float:
        """alpha · lr, how fast the function moves at first."""
        return strength(alpha=self.config.alpha, rate=self.settled.real("train.learning_rate"))

    @property
    def strength_in_words(self) -> str:
        return strength_in_words(self.strength)

    @property
    def adapter_bytes(self) -> int:
        """On disk; without the header, which takes a few kilobytes."""
        return ADAPTER_BYTES * self.trainable

    @property
    def serving_cost(self) -> float:
        """Work a token that an unmerged adapter adds to the base's; merged it adds none. Of experts a token meets those
        that it is routed to."""
        model, idle = self.model, 0.0
        if self.method != "full" and model.num_experts:
            away = 1 - model.experts_per_token / model.num_experts
            idle = away * sum(sum(adapter_sizes(model, self.config)[m.name]) for m in self._adapted_experts)
        return (self.trainable - idle) / Work(model=model, trainable=self.trainable, length=1).met

    @property
    def _adapted_experts(self) -> tuple[Matrix, ...]:
        return tuple(m for m in selected(self.model, self.config) if m.kind == "experts")

    @cached_property
    def largest(self) -> Largest:
        return largest(self.load)

    @cached_property
    def smallest_device(self) -> DeviceFacts | None:
        return smallest_device(self.load, tuple({device.name: device for device in devices().values()}.values()))

    def explain(self, name: str, width: int = 100) -> str:
        from lorawise.planning.explain import explain

        return explain(self, name, width)

    @cached_property
    def run(self) -> RunFile:
        """The run file with every decision in it. `ConfigError` where there is nothing to train with it."""
        if self.method == "full":
            raise ConfigError(
                "full fine-tuning is planned and compared, not trained: lorawise trains adapters",
                cure=f"--method lora; r {max(128, self.config.r)} on all-linear comes nearest to it",
            )
        if self.data is None:
            raise ConfigError("a run file needs data", cure="name it after the model: lorawise plan MODEL DATA -o …")
        chosen = {d.name: d.value for d in self.decisions if not d.asked or d.name == "lora.scaling"}
        run = self.situation.run.with_values(chosen)
        return run.with_values({"task": self.task.name})
