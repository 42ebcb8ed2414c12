"""What each operation of a decoder keeps for backward and takes on the way, in bytes. T tokens (of all slots), n slots.

    operation            keeps                                  on the way back, beside what it keeps
    frozen product       nothing                                dx; NF4: the whole matrix in 16 bits, twice
    with our adapter     x, u = A·x, A and s·B in 16 bits       dx in place, du, dA, dB
    with PEFT's          x in fp32, u in fp32                   dy, B's output and dx in fp32
    trained in full      x; ours: W in 16 bits            dx, dW in 16 bits; ours: dW in fp32
    RMS norm             x in fp32, 1/rms                       five fp32 copies of x
    rotary embedding     nothing                                four copies of q
    attention            q, k, v, out, logΣexp in fp32          dq, dk, dv, and flash attention's fp32 sums
    gated product        both factors                           both gradients

Each is the size of what torch's own forward and backward make, in the order they make it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lorawise.planning.memory.tape import ROUNDING, Buffer, Edge, Gradients, Part, Tape, Value

Adapter = Literal["none", "fused", "peft", "full", "copy"]
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


@dataclass(frozen=True, kw_only=True)
class Product:
    """One linear layer. rank 0: frozen alone; count: of experts in one; packed4: in NF4, made whole for a product;
    adapter `full`: trained in its own type, `copy`: through an fp32 copy, as our trainer trains whole modules."""

    inner: int
    outer: int
    rank: int = 0
    adapter: Adapter = "none"
    packed4: bool = False
    count: int = 1


def product(tape: Tape, n: Numbers, x: Value, p: Product, *, gradients: list[Buffer] | None = None) -> Value:
    """y = W·x with its adapter. `gradients` collects what stays: parameters' gradients of the stock trainer."""
    read = _as_computed(tape, n, x, p)
    if p.packed4:
        _unpacked(tape, n, p)
    y = Value(tape.buffer(n.tokens * p.outer * n.compute), needs=x.needs or p.adapter != "none")
    if p.adapter == "fused":
        return _ours(tape, n, x, read, y, p)
    if p.adapter == "copy":
        return _copy(tape, n, x, read, y, p)
    base = Value(y.buffer, needs=x.needs or p.adapter == "full")
    kept = read.buffer if p.adapter == "full" else None
    tape.node(base.edge, partial(_frozen_backward, tape, n, x.edge, x.buffer.size, p, kept, gradients))
    if p.packed4 and x.buffer.size > read.buffer.size:
        base = _widened(tape, base)
    return _peft(tape, n, x, read, base, p, gradients) if p.adapter == "peft" else base


def _as_computed(tape: Tape, n: Numbers, x: Value, p: Product) -> Value:
    """x in the products' type: a copy where the hidden states are wider."""
    size = n.tokens * p.inner * n.compute
    return x if x.buffer.size <= size + ROUNDING else Value(tape.buffer(size), needs=x.needs)


def _widened(tape: Tape, y: Value) -> Value:
    """Back to fp32, as a 4-bit layer gives what it was given."""
    narrow, edge = y.buffer.size, y.edge
    wide = Value(tape.buffer(2 * narrow), needs=y.needs)
    tape.node(wide.edge, lambda _: [(edge, tape.buffer(narrow))])
    return wide


def _unpacked(tape: Tape, n: Numbers, p: Product) -> Buffer:
    """The whole matrix; what it was made with is gone again."""
    size = p.inner * p.outer
    with tape.during(cause="dequantised weights"):
        beside = tape.buffer(n.unpacking * size)
        whole = tape.buffer(n.compute * size)
        del beside
    return whole


def _input_gradient(tape: Tape, n: Numbers, x: Edge, size: int, p: Product) -> Gradients:
    """dx in the products' type, then in x's own (`size` bytes)."""
    if not x.needs:
        return []
    weight = _unpacked(tape, n, p) if p.packed4 else None
    dx = tape.buffer(n.tokens * p.inner * n.compute)
    del weight
    return [(x, dx if size <= dx.size else tape.buffer(size))]


def _frozen_backward(
    tape: Tape,
    n: Numbers,
    x: Edge,
    size: int,
    p: Product,
    kept: Buffer | None,
    gradients: list[Buffer] | None,
    _: Buffer,
) -> Gradients:
    given = _input_gradient(tape, n, x, size, p)
    if kept is not None and gradients is not None:
        gradients.append(tape.buffer(n.compute * p.count * p.inner * p.outer, "gradients"))
    return given


def _ours(tape: Tape, n: Numbers, x: Value, read: Value, y: Value, p: Product) -> Value:
    """Added into the product's own output, one gradient for both; a 4-bit weight is unpacked again for it."""
    own = n.slots * p.rank
    copies = tape.buffer(n.compute * own * (p.inner + p.outer), "adapters in 16 bits") if n.compute < 4 else None
    u = tape.buffer(n.tokens * p.rank * n.compute)
    kept = (read.buffer, copies, u)
    out = Value(y.buffer, needs=True)
    edge, size = x.edge, x.buffer.size

    def own_gradients() -> None:
        du = tape.buffer(n.tokens * p.rank * n.compute)
        tape.brief(n.compute * own * p.inner, 4 * own * p.inner)
        tape.brief(n.compute * own * p.outer, 4 * own * p.outer)
        del du

    def fused(_: Buffer, kept: object = kept) -> Gradients:
        given = _input_gradient(tape, n, edge, size, p)
        own_gradients()
        return given

    tape.node(out.edge, fused)
    return out


def _copy(tape: Tape, n: Numbers, x: Value, read: Value, y: Value, p: Product) -> Value:
    """The fp32 copy is cast for the product, and its gradient cast back."""
    size = p.count * p.inner * p.outer
    cast = tape.buffer(n.compute * size, "adapters in 16 bits") if n.compute < 4 else None
    edge, width, kept = x.edge, x.buffer.size, (read.buffer, cast)
    out = Value(y.buffer, needs=True)

    def backward(_: Buffer, kept: object = kept) -> Gradients:
        given = _input_gradient(tape, n, edge, width, p)
        tape.brief(n.compute * size, *([4 * size] if n.compute < 4 else []), cause="gradients")
        return given

    del cast, kept
    tape.node(out.edge, backward)
    return out


def _peft(tape: Tape, n: Numbers, x: Value, read: Value, y: Value, p: Product, gradients: list[Buffer] | None) -> Value:
    """PEFT's layer computes in the adapter's fp32, under autocast in 16 bits."""
    T, low = n.tokens, n.compute if n.autocast else 4
    wide = x.buffer if x.buffer.size >= 4 * T * p.inner else tape.buffer(4 * T * p.inner)
    mask = tape.buffer(T * p.inner) if n.dropout and x.needs else None
    if n.dropout:
        wide = tape.buffer(4 * T * p.inner)
    if n.autocast:
        wide = tape.buffer(low * T * p.inner)
    copies = tape.buffer(low * p.rank * (p.inner + p.outer), "adapters in 16 bits") if n.autocast else None
    u = tape.buffer(low * T * p.rank)
    tape.brief(low * T * p.outer, low * T * p.outer, low * T * p.outer)
    out = Value(tape.buffer(y.buffer.size), needs=True)
    edge, size, base, given_by_base = x.edge, x.buffer.size, y.edge, y.buffer.size
    kept = (wide, mask, copies, u)
    del wide, mask, copies, u

    def backward(_: Buffer, kept: object = kept) -> Gradients:
        up = tape.buffer(low * T * p.outer)
        scaled = tape.buffer(low * T * p.outer)
        below = tape.buffer(given_by_base)
        del up
        if gradients is not None:
            gradients.append(tape.buffer(4 * p.rank * (p.inner + p.outer), "gradients"))
        du = tape.buffer(low * T * p.rank)
        del scaled
        given: list[tuple[Edge, Buffer]] = [(base, below)]
        if edge.needs:
            dx = tape.buffer(low * T * p.inner)
            del du
            given.append((edge, dx if dx.size == size else tape.buffer(size)))
        return given

    tape.node(out.edge, backward)
    return out


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
