"""What attention keeps and takes: flash, under a mask memory-efficient, and in plain steps where no kernel will do.

flash       q, k, v, out and logΣexp; backward fp32 sums of dq, and dk and dv for every query head
masked      keys and values repeated for every query head, and the mask, a 16-bit square a row and layer
in steps    scores (rows · heads · length²): fp32 with shared key heads (torch has no kernel), or under a softcap
"""

from dataclasses import dataclass

from lorawise.planning.memory.operations import Numbers
from lorawise.planning.memory.tape import Buffer, Gradients, Tape, Value


@dataclass(frozen=True, kw_only=True)
class Attention:
    heads: int
    key_heads: int
    head_dim: int
    masked: bool = False
    capped: int = 0  # a softcap on the scores, which flash attention lacks: bytes a score where each is made, else 0


def attention(tape: Tape, n: Numbers, q: Value, k: Value, v: Value, a: Attention) -> Value:
    """Flash attention; under a mask memory-efficient attention, whose mask is a 16-bit square a row, kept a layer."""
    edges = (q.edge, k.edge, v.edge)
    fp32 = q.buffer.size >= 4 * n.tokens * a.heads * a.head_dim
    if fp32 and n.autocast:
        q, k, v = (_narrowed(tape, x) for x in (q, k, v))
        edges = (q.edge, k.edge, v.edge)
    elif fp32 and a.heads != a.key_heads:
        return _plain_attention(tape, n, q, k, v, a)
    if a.capped:
        return _capped_attention(tape, n, q, k, v, a)
    wide, narrow = q.buffer.size, k.buffer.size
    kept: list[Buffer] = [q.buffer, k.buffer, v.buffer]
    if a.masked:
        if a.heads != a.key_heads:
            kept[1:] = [tape.buffer(wide), tape.buffer(wide)]
        kept.append(tape.buffer(n.rows * n.length * -(-n.length // 16) * 16 * n.compute, "attention masks"))
    kept.append(tape.buffer(4 * a.heads * n.tokens))
    out = Value(tape.buffer(wide), needs=q.needs or k.needs or v.needs)
    kept.append(out.buffer)

    def backward(_: Buffer, kept: list[Buffer] = kept) -> Gradients:
        made = [tape.buffer(wide), *(tape.buffer(wide if a.masked else narrow) for _ in range(2))]
        if not a.masked:
            padded = -(-a.head_dim // 32) * 32 if a.head_dim <= 128 else -(-a.head_dim // 64) * 64
            shared = 2 * wide if a.heads != a.key_heads else 0
            tape.brief(n.tokens * a.heads * (4 * padded + 4) + shared, cause="kernel workspace")
        elif a.heads != a.key_heads:
            made[1:] = [tape.buffer(narrow), tape.buffer(narrow)]
        return list(zip(edges, made, strict=True))

    tape.node(out.edge, backward)
    return out


def _capped_attention(tape: Tape, n: Numbers, q: Value, k: Value, v: Value, a: Attention) -> Value:
    """In plain steps: keys and values repeated, tanh of the scores, softmax in fp32 and in the products' type."""
    wide, narrow, edges = q.buffer.size, k.buffer.size, (q.edge, k.edge, v.edge)
    scores = n.rows * a.heads * n.length**2
    kept = [q.buffer, *([tape.buffer(wide), tape.buffer(wide)] if a.heads != a.key_heads else [k.buffer, v.buffer])]
    capped = tape.buffer(a.capped * scores)
    tape.brief(a.capped * scores, a.capped * scores)
    kept += [capped, tape.buffer(4 * scores)]
    if n.compute < 4:
        kept.append(tape.buffer(n.compute * scores))
    out = Value(tape.buffer(wide), needs=q.needs or k.needs or v.needs)
    del capped

    def backward(_: Buffer, kept: list[Buffer] = kept) -> Gradients:
        tape.brief(a.capped * scores, 4 * scores, 4 * scores)
        return [(edge, tape.buffer(size)) for edge, size in zip(edges, (wide, narrow, narrow), strict=True)]

    tape.node(out.edge, backward)
    return out


def _narrowed(tape: Tape, x: Value) -> Value:
    """fp32 to 16 bits, as autocast does before attention."""
    size, edge = x.buffer.size, x.edge
    y = Value(tape.buffer(size / 2), needs=x.needs)
    tape.node(y.edge, lambda _: [(edge, tape.buffer(size))])
    return y


def _plain_attention(tape: Tape, n: Numbers, q: Value, k: Value, v: Value, a: Attention) -> Value:
    """fp32 with shared key heads: torch has no kernel, and makes every score (rows · heads · length²)."""
    wide, narrow, edges = q.buffer.size, k.buffer.size, (q.edge, k.edge, v.edge)
    scores = 4 * n.rows * a.heads * n.length**2
    copies = [tape.buffer(wide) for _ in range(3)]
    tape.brief(scores, scores)
    weights = tape.buffer(scores)
    out = Value(tape.buffer(wide), needs=q.needs or k.needs or v.needs)

    kept = (copies, weights)
    del copies, weights

    def backward(_: Buffer, kept: object = kept) -> Gradients:
        tape.brief(scores, scores)
        return [(edge, tape.buffer(size)) for edge, size in zip(edges, (wide, narrow, narrow), strict=True)]

    tape.node(out.edge, backward)
    return out
