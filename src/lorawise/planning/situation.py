"""What a plan is made from: the task, the model, the data, the device, and what the user already fixed.

The run file is asked what was written in it (or said with `--set`): such a field is the user's and stays as it is, and
everything that follows from it follows from the user's value.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lorawise.base.errors import nearest
from lorawise.facts.device import DeviceFacts
from lorawise.facts.model import CLASSIFIER, ModelFacts
from lorawise.lora.config import LoraConfig
from lorawise.planning.dataset import DataFacts
from lorawise.planning.decision import Decision
from lorawise.planning.tasks import Task
from lorawise.runfile import RunFile

Method = Literal["lora", "qlora", "full"]
METHODS: tuple[Method, ...] = ("lora", "qlora", "full")
Trainer = Literal["lorawise", "hf"]
TRAINERS: tuple[Trainer, ...] = ("lorawise", "hf")


@dataclass(frozen=True, kw_only=True, eq=False)
class Situation:
    """`run` is the run file as the user gave it; `device` None means that none was named or found."""

    task: Task
    run: RunFile
    model: ModelFacts
    device: DeviceFacts
    method: Method = "lora"
    data: DataFacts | None = None

    def asked(self, name: str) -> object:
        """The user's own value of a dotted key; None where the plan is free to choose (`auto` is)."""
        section, _, field = name.partition(".")
        settings = getattr(self.run, section)
        written = getattr(settings, field) if field in settings.model_fields_set else None
        return None if written == "auto" else written

    def config(self, **changes: object) -> LoraConfig:
        """The adapter's setting with some of it decided; what the run file says of the rest stays. A classifier's head
        is trained in full beside it."""
        config = self.run.lora_config()
        if self.data is not None and self.data.labels and CLASSIFIER not in config.modules_to_save:
            config = config.replace(modules_to_save=(*config.modules_to_save, CLASSIFIER))
        return config.replace(**changes)


class Settled(Mapping[str, Decision]):
    """Decisions in the order they were made; values by kind, so that a later decider can count on an earlier one."""

    def __init__(self) -> None:
        self._made: dict[str, Decision] = {}

    def add(self, decision: Decision) -> None:
        self._made[decision.name] = decision

    def __getitem__(self, name: str) -> Decision:
        if name not in self._made:
            raise KeyError(f"{name} is not decided; {nearest(name, list(self._made))}")
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def whole(self, name: str) -> int:
        return int(self.real(name))

    def real(self, name: str) -> float:
        value = self[name].value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is {value!r}, no number")
        return float(value)

    def text(self, name: str) -> str:
        return str(self[name].value)
