"""Numbers as people read them: bytes, durations, rates, losses. One place, so that console and page agree."""

import math


def count(value: float) -> str:
    """13631488 → 13,631,488."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes → 1.2 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds → 42 s, 3:07 or 1:02:07."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def loss(value: float | None) -> str:
    return "diverged" if value is None or not math.isfinite(value) else f"{value:.4f}"


def rate(value: float) -> str:
    """A learning rate: 2e-4."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def visible(text: str) -> str:
    """Text from data with control characters shown, never obeyed (a terminal would act on an escape)."""
    return "".join(c if c in "\n\t" or c.isprintable() else repr(c)[1:-1] for c in text)


def short(text: str, longest: int = 400) -> str:
    """Text of a file that may be of any length, cut where nobody would read on."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
