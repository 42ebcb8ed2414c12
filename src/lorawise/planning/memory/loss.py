"""Logits and loss: the moment that most estimates forget, and that stock training peaks at.

stock     logits (e), their fp32 copy (4), log-softmax (4); backward log-softmax, its gradient and the loss's: 3 · 4
          bytes for each of T · V; e more while the caller holds the outputs, 4 more where the loss shifts the logits
chunked   c positions at a time: logits and their gradient (2e), fp32 copy and softmax (8), for each of n · c · V
capped    where the model caps its logits (cap · tanh(logits / cap)), what tanh gave is kept beside (e)
"""

from dataclasses import dataclass

from lorawise.planning.memory.model import Stack
from lorawise.planning.memory.tape import Buffer, Gradients, Tape, Value

CHUNK_BYTES = 48 * 2**20  # models/loss.py, held equal by a test
CHUNK_ROWS = 64
LOGITS = "logits and loss"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """tokens of all slots; trained positions of one; e bytes a value of the hidden states and logits; capped: logits
    go through a softcap; trained: elements of a head that is trained in full."""

    tokens: int
    positions: int
    hidden: int
    vocabulary: int
    slots: int
    e: int
    capped: bool = False
    trained: int = 0


def chunk_of(vocabulary: int, n: int, itemsize: int) -> int:
    """Positions of one chunk, as `models.loss.chunk_of` has it."""
    return max(-(-CHUNK_ROWS // n), CHUNK_BYTES // (n * vocabulary * 2 * itemsize))


def chunked(tape: Tape, s: Sizes) -> tuple[Buffer, Buffer | None]:
    """Forward of the chunked loss; keeps the hidden states' gradient at the trained positions, and a trained head's."""
    kept = s.slots * s.positions * s.hidden * s.e
    with tape.during(cause=LOGITS, phase="the loss, chunk by chunk"):
        d_hidden = tape.buffer(kept)
        d_head = tape.buffer(4 * s.trained, "gradients") if s.trained else None
        c = min(chunk_of(s.vocabulary, s.slots, s.e), s.positions)
        logits = s.slots * c * s.vocabulary
        picked = s.slots * c * s.hidden * s.e
        # The gradients of the chunk before are there until this one has its own.
        before = [picked, *([4 * s.trained] if s.trained else [])] if 2 * c <= s.positions else []
        cast = [s.e * s.trained] if s.trained and s.e < 4 else []
        tanh = [s.e * logits] if s.capped else []
        common = (*before, picked, *tanh, s.e * logits, s.e * logits)
        tape.brief(*common, *cast, *([4 * logits] if s.e < 4 else []), 4 * logits)
        if s.trained:  # its gradient in 16 bits, then in fp32; what the product kept is gone then
            tape.brief(*common, picked, *cast, 4 * s.trained)
    return d_hidden, d_head


def chunked_backward(tape: Tape, s: Sizes, d_hidden: Buffer, d_head: Buffer | None) -> Buffer:
    with tape.during(cause="gradients of activations"):
        gradient = tape.buffer(s.tokens * s.hidden * s.e)
        tape.brief(d_hidden.size, *([] if d_head is None else [d_head.size]))
        return gradient


def capped(tape: Tape, logits: Value) -> Value:
    """cap · tanh(logits / cap), a step at a time, what tanh gave kept for backward."""
    size, edge = logits.buffer.size, logits.edge
    del logits
    tanh = tape.buffer(size)
    out = Value(tape.buffer(size), needs=edge.needs)

    def backward(_: Buffer, kept: object = tanh) -> Gradients:
        tape.brief(size, size)
        return [(edge, tape.buffer(size))]

    del tanh
    tape.node(out.edge, backward)
    return out


def stock(tape: Tape, logits: Value, s: Sizes, stack: Stack) -> Buffer:
    """Forward of the stock loss over logits; keeps their log-softmax."""
    V = s.tokens * s.vocabulary
    with tape.during(cause=LOGITS):
        wide = logits.buffer if logits.buffer.size >= 4 * V else tape.buffer(4 * V)
        shifted = tape.buffer(4 * V) if stack.shifted_loss else None
        log_softmax = tape.buffer(4 * V)
        del wide, shifted
    return log_softmax


def stock_backward(tape: Tape, size: int, s: Sizes, log_softmax: list[Buffer], stack: Stack) -> Buffer:
    """The gradient of the logits (`size` bytes), from the kept log-softmax, which is gone then."""
    V = 4 * s.tokens * s.vocabulary
    with tape.during(cause=LOGITS):
        d_loss = tape.buffer(V)
        gradient = tape.buffer(V)
        log_softmax.clear()
        del d_loss
        if stack.shifted_loss:
            gradient = tape.buffer(V)
        return gradient if size >= V else tape.buffer(size)
