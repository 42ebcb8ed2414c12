"""Names of a package that are loaded when first used, so that importing the package costs nothing.

    __getattr__, __dir__ = loaded_when_used("lorawise.lora", {"LoraConfig": "config"})

A type checker reads the same names from an `if TYPE_CHECKING` block (PEP 562).
"""

from collections.abc import Callable, Mapping
from importlib import import_module


def loaded_when_used(
    package: str, homes: Mapping[str, str | None]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for `package`: each name from its module below it; None: the name is a module."""

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        home = homes[name]
        if home is None:
            return import_module(f"{package}.{name}")
        return getattr(import_module(f"{package}.{home}"), name)

    return load, lambda: sorted(homes)
