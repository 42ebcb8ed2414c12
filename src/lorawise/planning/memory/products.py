"""What a linear layer keeps for backward and takes on the way, in bytes, by what is trained beside it.

layer                keeps                                  on the way back, beside what it keeps
frozen               nothing                                dx; NF4: the whole matrix in 16 bits, twice
with our adapter     x, u = A·x, A and s·B in 16 bits       dx in place, du, dA, dB
with PEFT's          x in fp32, u in fp32                   dy, B's output and dx in fp32
trained in full      x; ours: W in 16 bits                  dx, dW in 16 bits; ours: dW in fp32
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from lorawise.planning.memory.operations import Numbers
from lorawise.planning.memory.tape import ROUNDING, Buffer, Edge, Gradients, Tape, Value

Adapter = Literal["none", "fused", "peft", "full", "copy"]


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
