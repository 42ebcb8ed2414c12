"""Named choices in place of `elif` ladders; an unknown name says the nearest known one."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from lorawise.base.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """`Registry("init")`: register by decorator, look up by name."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        def add(entry: T) -> T:
            if name in self._entries:
                raise ConfigError(f"{self.noun} '{name}' is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise ConfigError(f"unknown {self.noun} '{name}'", cure=nearest(name, list(self._entries)))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
