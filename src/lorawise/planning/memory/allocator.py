"""What CUDA's caching allocator makes of a run's requests, by replaying them: what it reserves, and what it counts.

    request ≤ 1 MiB      small pool, segments of 2 MiB
    1 MiB … 10 MiB       large pool, segments of 20 MiB
    more                 large pool, a segment of its own, rounded up to 2 MiB
    a free block is taken by best fit, and split when what is left is ≥ 512 bytes (small) or > 1 MiB (large);
    freed neighbours of one segment merge. Segments are never given back while there is memory.

torch's own counter (`max_memory_allocated`) adds up blocks, not what was asked of them: a rest too small to be split
off is counted with its tensor. In a step that keeps many tensors of a few MiB this comes to 1 % of the whole.

(c10/cuda/CUDACachingAllocator.cpp, torch 2.13, without expandable segments.)
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20
SMALL, SMALL_SEGMENT = MIB, 2 * MIB
LARGE, LARGE_SEGMENT = 10 * MIB, 20 * MIB


@dataclass(frozen=True, kw_only=True)
class Replay:
    """reserved: bytes of all segments; counted: the most that blocks in use held, as `max_memory_allocated` tells."""

    reserved: int
    counted: int


class _Block:
    __slots__ = ("after", "before", "free", "segment", "size", "small", "start")

    def __init__(self, segment: int, start: int, size: int, small: bool) -> None:
        self.segment, self.start, self.size, self.small = segment, start, size, small
        self.free = True
        self.before: _Block | None = None
        self.after: _Block | None = None

    @property
    def key(self) -> tuple[int, int, int]:
        return self.size, self.segment, self.start


class CachingAllocator:
    """`request` and `release` by name; `reserved` is the sum of the segments, `counted` that of the blocks in use."""

    def __init__(self) -> None:
        self.reserved = self.counted = 0
        self._segments = 0
        self._free: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}
        self._at: dict[tuple[int, int, int], _Block] = {}
        self._used: dict[int, _Block] = {}

    def request(self, name: int, size: int) -> None:
        small = size <= SMALL
        pool = self._free[small]
        place = bisect_left(pool, (size, 0, 0))
        if place < len(pool):
            block = self._at.pop(pool.pop(place))
        else:
            block = self._segment(size, small)
        left = block.size - size
        if left >= 512 if small else left > SMALL:
            rest = _Block(block.segment, block.start + size, left, small)
            rest.before, rest.after = block, block.after
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            self._offer(rest)
        block.free = False
        self._used[name] = block
        self.counted += block.size

    def release(self, name: int) -> None:
        block = self._used.pop(name)
        self.counted -= block.size
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._withdraw(other)
                block = _merged(*((other, block) if other is block.before else (block, other)))
        self._offer(block)

    def _segment(self, size: int, small: bool) -> _Block:
        if small:
            length = SMALL_SEGMENT
        elif size < LARGE:
            length = LARGE_SEGMENT
        else:
            length = -(-size // SMALL_SEGMENT) * SMALL_SEGMENT
        self.reserved += length
        self._segments += 1
        return _Block(self._segments, 0, length, small)

    def _offer(self, block: _Block) -> None:
        block.free = True
        insort(self._free[block.small], block.key)
        self._at[block.key] = block

    def _withdraw(self, block: _Block) -> None:
        pool = self._free[block.small]
        del pool[bisect_left(pool, block.key)]
        del self._at[block.key]


def replayed(events: Iterable[tuple[int, int]]) -> Replay:
    """A run's events: (storage, bytes), negative bytes where it is given back."""
    allocator, most = CachingAllocator(), 0
    for name, size in events:
        if size > 0:
            allocator.request(name, size)
            most = max(most, allocator.counted)
        elif size < 0:
            allocator.release(name)
    return Replay(reserved=allocator.reserved, counted=most)


def _merged(left: _Block, right: _Block) -> _Block:
    left.size += right.size
    left.after = right.after
    if right.after is not None:
        right.after.before = left
    return left
