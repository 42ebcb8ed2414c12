"""A device by its name, by an amount of memory, or the one in this machine.

rtx-4090, h100, m3-max-64     a row of devices.toml, by name or alias, spelt as loosely as people do
24GiB, 24GB, 24000MiB         an amount and nothing else (GiB is 2^30 bytes, GB 10^9)
None                          the first accelerator of this machine (`facts/machine.py`), else its memory
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any, Literal

from lorawise.base.errors import ConfigError
from lorawise.facts import machine

Kind = Literal["cuda", "cpu", "mps"]

MIB, GIB = machine.MIB, machine.GIB
LEAST, MOST = 256 * MIB, 2**44  # bytes: an amount outside is a slip of the pen
AN_AMOUNT = "the amount given"  # the source of a device of which nothing but its memory is known
APPLE_SHARE = 0.75  # of Apple's one memory the GPU may use (Metal's recommended working set)

_UNITS = {"kib": 2**10, "mib": MIB, "gib": GIB, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_GEFORCE = frozenset(f"{generation}0{tier}0" for generation in "345" for tier in "56789")
_PLAIN = frozenset({"float32", "bfloat16", "float16"})


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """memory, usable   bytes: on the board, and what of them a process can have (a CUDA context still to be paid)
    bandwidth         bytes a second; None when unknown
    formats           types that the hardware multiplies
    matmul            type → dense operations a second, as the vendor publishes them
    """

    name: str
    memory: int
    usable: int
    kind: Kind
    bandwidth: float | None = None
    formats: frozenset[str] = _PLAIN
    matmul: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.usable <= self.memory:
            raise ConfigError(f"{self.name}: {self.usable:,} of {self.memory:,} bytes usable")


def find_device(text: str | None = None) -> DeviceFacts:
    """`ConfigError` names the nearest device for a name not known, and refuses amounts that nobody has."""
    if text is None:
        return _accelerator() or this_machine()
    wanted = text.strip()
    if wanted.lower() in ("cpu", "this", "auto"):
        return this_machine() if wanted.lower() == "cpu" else find_device(None)
    if (amount := _amount(wanted)) is not None:
        return DeviceFacts(name=wanted, memory=amount, usable=amount, kind="cuda", source=AN_AMOUNT)
    row = devices().get(_key(wanted))
    if row is None:
        raise ConfigError(
            f"no device is called '{text}'",
            expected="a name such as rtx-4090, a100-80, m3-max-64, or an amount such as 24GiB",
            cure=_nearest(_key(wanted)),
        )
    return row


def _nearest(key: str) -> str:
    """The cure: up to three names that look alike, or how to do without a name."""
    near = get_close_matches(key, list(devices()), n=3, cutoff=0.6)
    names = list(dict.fromkeys(f"'{devices()[name].name}'" for name in near))
    if names:
        return f"did you mean {' or '.join(names)}?"
    return f"give its memory, such as 24GiB; {len(device_names())} are known by name, from rtx-3060 to b200"


def device_names() -> list[str]:
    """Every name of the table, without aliases, in its order."""
    return list(dict.fromkeys(device.name for device in devices().values()))


@cache
def devices() -> Mapping[str, DeviceFacts]:
    """The table: name or alias, normalised, → device."""
    table = tomllib.loads((resources.files("lorawise.facts") / "devices.toml").read_text(encoding="utf-8"))
    found: dict[str, DeviceFacts] = {}
    for row in table["devices"]:
        device = _board(row, table["formats"])
        for name in (row["name"], *row["aliases"]):
            found[_key(name)] = device
    for chip in table["chips"]:
        for gib in chip["sizes"]:
            found[f"{chip['name']}-{gib}"] = _chip(chip, gib, table["formats"])
    return found


def _board(row: Mapping[str, Any], formats: Mapping[str, list[str]]) -> DeviceFacts:
    return DeviceFacts(
        name=row["name"],
        memory=row["memory"] * MIB,
        usable=row["usable"] * MIB,
        kind="cuda",
        bandwidth=row["bandwidth"] * 1e9,
        formats=frozenset(formats[row["arch"]]),
        matmul={dtype: tflops * 1e12 for dtype, tflops in row["tflops"].items()},
        source=row["source"],
    )


def _chip(row: Mapping[str, Any], gib: int, formats: Mapping[str, list[str]]) -> DeviceFacts:
    return DeviceFacts(
        name=f"{row['name']}-{gib}",
        memory=gib * GIB,
        usable=int(gib * GIB * APPLE_SHARE),
        kind="mps",
        bandwidth=row["bandwidth"] * 1e9,
        formats=frozenset(formats["apple"]),
        matmul={dtype: tflops * 1e12 for dtype, tflops in row["tflops"].items()},
        source=row["source"],
    )


def _key(name: str) -> str:
    """As the table spells names: 'NVIDIA GeForce RTX 4090' and 'RTX4090' and '4090' → rtx-4090."""
    key = re.sub(r"[\s_/-]+", "-", name.strip().lower())
    key = re.sub(r"^(nvidia|amd|apple|tesla)-", "", key).removeprefix("geforce-")
    key = re.sub(r"^(rtx|gtx)(?=[\da])", r"\1-", key)
    key = re.sub(r"(?<=\d)-?gb?$", "", key) if re.search(r"-\d+-?gb?$", key) else key
    return f"rtx-{key}" if key.partition("-")[0] in _GEFORCE else key


def _amount(text: str) -> int | None:
    """Bytes of an amount; None when the text is no amount."""
    found = re.fullmatch(r"([+-]?[\d.,]+)\s*([a-z]*)", text.lower())
    if found is None or found[1] in _GEFORCE:
        return None
    number, unit = found[1], found[2]
    good = f"from {LEAST // MIB}MiB to {MOST // 2**40}TiB, such as 24GiB (2^30 bytes each) or 24GB (10^9)"
    if unit not in _UNITS:
        raise ConfigError(
            f"'{text}' is no amount of memory", expected=good, cure=f"write {number.lstrip('+-')}GiB if you mean that"
        )
    try:
        amount = float(number) * _UNITS[unit]
    except ValueError:
        raise ConfigError(f"'{text}' is no amount of memory: {number} is no number", expected=good) from None
    if not LEAST <= amount <= MOST:
        raise ConfigError(f"'{text}' is not the memory of a device", expected=good)
    return int(amount)


def this_machine() -> DeviceFacts:
    """The processor: its memory, and what of it is free now."""
    held = machine.memory()
    return DeviceFacts(
        name=held.name,
        memory=held.memory,
        usable=max(1, held.free),
        kind="cpu",
        formats=frozenset({"float32", "bfloat16"}),
        source=held.source,
    )


def _accelerator() -> DeviceFacts | None:
    """This machine's accelerator: its own memory, and the rest from the table where that knows it."""
    found = machine.accelerator()
    if found is None:
        return None
    known = devices().get(_key(found.name))
    apple = found.source == "macOS"
    usable = min(found.free, int(found.memory * APPLE_SHARE)) if apple else found.free
    return DeviceFacts(
        name=known.name if known else found.name,
        memory=found.memory,
        usable=max(1, usable),
        kind="mps" if apple else "cuda",
        bandwidth=known.bandwidth if known else None,
        formats=known.formats if known else _PLAIN,
        matmul=known.matmul if known else {},
        source=found.source,
    )
