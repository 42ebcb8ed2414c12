"""What each operation of a decoder keeps for backward and takes on the way, in bytes. T tokens (of all slots), n slots.

    operation            keeps                                  on the way back, beside what it keeps
    RMS norm             x in fp32, 1/rms                       five fp32 copies of x
    rotary embedding     nothing                                four copies of q
    attention            q, k, v, out, logΣexp in fp32          dq, dk, dv, and flash attention's fp32 sums
    gated product        both factors                           both gradients

Each is the size of what torch's own forward and backward make, in the order they make it. Linear layers and their
adapters are in `products.py`, attention in `attention.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorawise.planning.memory.tape import Buffer, Gradients, Part, Tape, Value

Norm = Literal["rms", "centred", "layer"]


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """compute: bytes a value of the matrices' products; slots: adapters side by side; unpacking: bytes a weight
    that making a packed matrix whole takes beside it, for that time."""

    tokens: int
    rows: int
    length: int
    compute: int = 2
    slots: int = 1
    autocast: bool = False
    dropout: bool = False
    unpacking: float = 1 / 16


def norm(tape: Tape, x: Value, cells: int, groups: int, kind: Norm, *, trained: bool = False) -> Value:
    """Of `cells` values in `groups` that are normed each by itself (tokens, or tokens × heads)."""
    size, edge = x.buffer.size, x.edge
    if kind == "layer":
        kept: tuple[Buffer | None, ...] = (x.buffer, tape.buffer(8 * groups))
        out = Value(tape.buffer(size), needs=x.needs or trained)
        tape.node(out.edge, lambda _, kept=kept: [(edge, tape.buffer(size))])  # type: ignore[misc]
        return out
    wide = x.buffer if size >= 4 * cells else tape.buffer(4 * cells)
    scale = (tape.buffer(4 * groups), tape.buffer(4 * cells) if kind == "centred" else None)
    tape.brief(4 * cells, 4 * cells)
    normed = tape.buffer(size) if trained else None
    out = Value(tape.buffer(size), needs=x.needs or trained)

    saved = (wide, scale, normed)
    del wide, scale, normed

    def backward(_: Buffer, saved: object = saved) -> Gradients:
        tape.brief(*[4 * cells] * 5)
        return [(edge, tape.buffer(size))]

    tape.node(out.edge, backward)
    return out


def rotary(tape: Tape, x: Value) -> Value:
    """q or k turned by its position."""
    size, edge = x.buffer.size, x.edge
    tape.brief(size, size, size)
    out = Value(tape.buffer(size), needs=x.needs)

    def backward(_: Buffer) -> Gradients:
        first = tape.buffer(size)
        tape.brief(size, size, size / 2)
        del first
        return [(edge, tape.buffer(size))]

    tape.node(out.edge, backward)
    return out


def copied(tape: Tape, x: Value) -> Value:
    """The same values laid out anew: both are kept where both are read."""
    size, edge = x.buffer.size, x.edge
    y = Value(tape.buffer(size), needs=x.needs)
    tape.node(y.edge, lambda _: [(edge, tape.buffer(size))])
    return y


def gated(tape: Tape, gate: Value, up: Value) -> Value:
    """act(gate) · up."""
    size = up.buffer.size
    acted = activation(tape, gate)
    out = Value(tape.buffer(size), needs=gate.needs or up.needs)
    edges = (acted.edge, up.edge)

    kept = (acted.buffer, up.buffer)

    def backward(_: Buffer, kept: object = kept) -> Gradients:
        return [(edge, tape.buffer(size)) for edge in edges]

    tape.node(out.edge, backward)
    return out


def gated_between_limits(tape: Tape, whole: Value) -> Value:
    """gpt-oss: (up + 1) · gate · σ(α·gate), both clamped first. Kept: gate and up as they came, the clamped gate, its
    sigmoid, their product and up + 1; gate and up are every other column, so each gives a gradient of the whole."""
    both, edge = whole.buffer.size, whole.edge
    half = both / 2
    kept = (whole.buffer, *(tape.buffer(half) for _ in range(4)))
    tape.brief(half)  # up, clamped
    out = Value(tape.buffer(half), needs=whole.needs)

    def backward(_: Buffer, kept: object = kept) -> Gradients:
        return [(edge, tape.buffer(both))]

    del kept
    tape.node(out.edge, backward)
    return out


def resized(tape: Tape, x: Value, times: float, *, keep: bool = False) -> Value:
    """Rows gathered, or weighted and summed (`keep`: the weights' gradient wants what they weighed)."""
    size, edge = x.buffer.size, x.edge
    kept = x.buffer if keep else None
    if keep:
        tape.brief(size, size)
    out = Value(tape.buffer(size * times), needs=x.needs)

    def backward(_: Buffer, kept: object = kept) -> Gradients:
        if kept is not None:
            tape.brief(size, size, size)
        return [(edge, tape.buffer(size))]

    tape.node(out.edge, backward)
    return out


def parted(tape: Tape, whole: Value, shares: Sequence[int]) -> list[Value]:
    """q, k and v, or gate and up, of one fused product: views, whose gradients are put together again in one buffer of
    its size."""
    size, edge = whole.buffer.size, whole.edge
    parts = []
    for count in shares:
        part = Value(Part(whole.buffer, size * count // sum(shares)), needs=whole.needs)
        tape.node(part.edge, lambda _: [(edge, tape.buffer(size))])
        parts.append(part)
    return parts


def relu(tape: Tape, x: Value) -> Value:
    """Keeps what it gave, not what it got."""
    size, edge = x.buffer.size, x.edge
    out = Value(tape.buffer(size), needs=x.needs)
    tape.node(out.edge, lambda _, kept=out.buffer: [(edge, tape.buffer(size))])  # type: ignore[misc]
    return out


def gelu_in_steps(tape: Tape, x: Value) -> Value:
    """GPT-2's GELU, written out: x, its half, the tanh and one more than it are kept."""
    size, edge = x.buffer.size, x.edge
    kept = [x.buffer, *(tape.buffer(size) for _ in range(3))]
    out = Value(tape.buffer(size), needs=x.needs)

    def backward(_: Buffer, kept: list[Buffer] = kept) -> Gradients:
        tape.brief(size, size)
        return [(edge, tape.buffer(size))]

    tape.node(out.edge, backward)
    return out


def activation(tape: Tape, x: Value) -> Value:
    size, edge = x.buffer.size, x.edge
    out = Value(tape.buffer(size), needs=x.needs)
    tape.node(out.edge, lambda _, kept=x.buffer: [(edge, tape.buffer(size))])  # type: ignore[misc]
    return out


def added(tape: Tape, x: Value, y: Value) -> Value:
    """The residual sum; both sides take the same gradient."""
    out = Value(tape.buffer(x.buffer.size), needs=x.needs or y.needs)
    edges = (x.edge, y.edge)
    tape.node(out.edge, lambda dy: [(edge, dy) for edge in edges])
    return out
