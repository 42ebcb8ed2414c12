"""A layer of fused experts: S = T · k rows, each token's once for every expert that its router sends it to.

    frozen      rows are gathered, and multiplied in groups
    adapted     one product of our own: keeps x, gate and up (S, 2·inner), A·x and A·h (S, r), A and s·B of every expert
                in 16 bits; h is computed again on the way back

Either holds all S rows at once, so what is taken does not depend on how routers spread tokens over experts.
"""

from dataclasses import dataclass, replace

from lorawise.planning.memory.operations import Numbers, gated, gated_between_limits, parted, resized
from lorawise.planning.memory.products import Product, product
from lorawise.planning.memory.tape import Buffer, Gradients, Tape, Value


@dataclass(frozen=True, kw_only=True)
class ExpertPair:
    """gate and up together, down; `chosen` experts a token; `limited`: gpt-oss's gate, which clamps both."""

    first: Product
    second: Product
    chosen: int
    limited: bool = False

    @property
    def adapted(self) -> bool:
        return bool(self.first.rank or self.second.rank)


def experts(tape: Tape, n: Numbers, x: Value, p: ExpertPair, *, gradients: list[Buffer] | None = None) -> Value:
    return _adapted(tape, n, x, p) if p.adapted else _frozen(tape, n, x, p, gradients)


def _frozen(tape: Tape, n: Numbers, x: Value, p: ExpertPair, gradients: list[Buffer] | None) -> Value:
    chosen = max(p.chosen, 1)
    many = replace(n, tokens=n.tokens * chosen)
    sent = resized(tape, x, chosen)
    whole = product(tape, many, sent, p.first, gradients=gradients)
    if p.limited:
        inner = gated_between_limits(tape, whole)
    else:
        gate, up = parted(tape, whole, (1, 1))
        inner = gated(tape, gate, up)
        del gate, up
    del whole
    out = product(tape, many, inner, p.second, gradients=gradients)
    del inner
    y = resized(tape, out, 1 / chosen, keep=True)
    del sent  # a local of transformers' function, there until it returns
    return y


def _adapted(tape: Tape, n: Numbers, x: Value, p: ExpertPair) -> Value:
    rows, e = n.tokens * max(p.chosen, 1), n.compute
    wide, inner = e * rows * p.first.inner, e * rows * p.second.inner
    each = [q.count * n.slots * q.rank * (q.inner + q.outer) for q in (p.first, p.second)]
    edge, width = x.edge, x.buffer.size
    kept = [x.buffer, *(tape.buffer(e * size, "adapters in 16 bits") for size in each if size and e < 4)]
    kept += [tape.buffer(e * rows * size) for size in (p.first.outer, p.first.rank, p.second.rank) if size]
    tape.brief(inner, inner, wide)  # the gate's step, h, and what the experts gave
    out = Value(tape.buffer(width), needs=True)
    tape.brief(wide, wide)  # again in the tokens' order

    def backward(_: Buffer, kept: list[Buffer] = kept) -> Gradients:
        factors = [tape.buffer(4 * size, "gradients") for size in each if size]
        tape.brief(wide, *[inner] * 5)  # y's gradient by row, h, its gradient
        tape.brief(*[inner] * 4, 2 * inner)  # gate's and up's
        tape.brief(2 * inner, wide, wide)  # the rows' own, and x by row
        given = [(edge, tape.buffer(width))] if edge.needs else []
        del factors
        return given

    del kept
    tape.node(out.edge, backward)
    return out
