"""A step's memory by the rules of autograd, with sizes for tensors and no numbers: what is alive, when, and for what.

    forward    an operation makes a buffer, and keeps what its backward will read
    backward   operations in reverse: each makes its input's gradient, then lets go of what it kept
    peak       the most that was alive at once, with its causes; sizes are rounded to the allocator's 512 bytes

Operations (`operations.py`) say what they keep and what they make on the way; Python's own reference counts say when a
buffer is gone, as they do for torch's tensors. So no term is a guess at a maximum: the peak is met, not put together.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

ROUNDING = 512


class Buffer:
    """Bytes that are alive as long as this object is."""

    __slots__ = ("cause", "number", "size", "tape")

    def __init__(self, tape: "Tape", size: int, cause: str, number: int = 0) -> None:
        self.tape, self.size, self.cause, self.number = tape, size, cause, number

    def __del__(self) -> None:
        self.tape.live -= self.size
        self.tape.causes[self.cause] -= self.size
        del self.tape.held[self.number]
        self.tape.events.append((self.number, -self.size))


class Part(Buffer):
    """A view of another buffer: it keeps that one alive and takes nothing itself."""

    __slots__ = ("whole",)

    def __init__(self, whole: Buffer, size: int) -> None:
        self.whole = whole
        super().__init__(whole.tape, size, whole.cause)

    def __del__(self) -> None:
        pass


class Edge:
    """Where a gradient goes: a tensor's place in the graph, which keeps no tensor alive."""

    __slots__ = ("needs",)

    def __init__(self, *, needs: bool) -> None:
        self.needs = needs


class Value:
    """A tensor of a forward pass: its bytes, which several values may share, and its place in the graph."""

    __slots__ = ("buffer", "edge")

    def __init__(self, buffer: Buffer, *, needs: bool) -> None:
        self.buffer, self.edge = buffer, Edge(needs=needs)

    @property
    def needs(self) -> bool:
        return self.edge.needs


Gradients = Sequence[tuple[Edge, Buffer]]
Backward = Callable[[Buffer], Gradients]


class Tape:
    """`cause` is what new buffers are for; `events` (buffer, ± bytes) in order, for the allocator's replay.

    With `recording` off nothing is kept, as in a checkpointed forward.
    """

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self.causes: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self.instant = self.phase = ""
        self.cause = ""
        self.recording = True
        self.held: dict[int, tuple[int, str]] = {}  # size and cause of every live buffer, by number
        self.events: list[tuple[int, int]] = []
        self._made = 0
        self._nodes: list[tuple[Edge, Backward]] = []

    def buffer(self, size: float, cause: str | None = None) -> Buffer:
        rounded = -(-int(size) // ROUNDING) * ROUNDING
        self._made += 1
        made = Buffer(self, rounded, self.cause if cause is None else cause, self._made)
        self.live += rounded
        self.held[self._made] = rounded, made.cause
        self.events.append((self._made, rounded))
        self.causes[made.cause] += rounded
        if self.live > self.peak:
            self.peak, self.instant = self.live, self.phase
            self.at_peak = dict(self.causes)
        return made

    def brief(self, *sizes: float, cause: str | None = None) -> None:
        """Buffers that are alive together and gone before the next operation."""
        held = [self.buffer(size, cause) for size in sizes]
        held.clear()

    @contextmanager
    def during(self, *, cause: str | None = None, phase: str | None = None) -> Iterator[None]:
        before = self.cause, self.phase
        self.cause, self.phase = cause or self.cause, phase or self.phase
        try:
            yield
        finally:
            self.cause, self.phase = before

    def node(self, out: Edge, backward: Backward) -> None:
        """`backward` gets the gradient of `out` and gives its inputs'; what it closes over is kept until it has run."""
        if out.needs and self.recording:
            self._nodes.append((out, backward))

    def backward(self, out: Edge, gradient: list[Buffer]) -> None:
        """Run every node in reverse, from the gradient of `out`, which is taken out of the list."""
        nodes, self._nodes = self._nodes, []
        self._run(nodes, out, gradient)

    def _run(self, nodes: list[tuple[Edge, Backward]], out: Edge, gradient: list[Buffer]) -> dict[Edge, Buffer]:
        waiting = {out: gradient.pop()}
        while nodes:
            edge, backward = nodes.pop()
            if edge not in waiting:
                continue
            given = list(backward(waiting.pop(edge)))
            del backward
            while given:
                to, made = given.pop(0)
                if to.needs:
                    before = waiting.get(to)
                    waiting[to] = made if before is None else self.buffer(before.size)
                    del before
                del made
        return waiting

    def checkpointed(self, run: Callable[[Value], Value], x: Value) -> Value:
        """`run` without keeping anything but its input; in backward it is run again, then backward through it."""
        self.recording = False
        y = Value(run(x).buffer, needs=True)
        self.recording = True
        kept, edge = x.buffer, x.edge

        def backward(gradient: Buffer) -> Gradients:
            outer, self._nodes = self._nodes, []
            with self.during(phase=f"{self.phase}, a layer computed again"):
                again = Value(kept, needs=edge.needs)
                out = run(again).edge
                nodes, self._nodes = self._nodes, outer
                start = again.edge
                del again
                waiting = [gradient]
                del gradient
                reached = self._run(nodes, out, waiting)
            return [(edge, reached[start])] if start in reached else []

        self.node(y.edge, backward)
        return y
