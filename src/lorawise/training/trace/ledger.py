"""A ledger of live storages: what a run allocates, when, for what, and what was alive at the peak.

Every tensor operation passes through (a dispatch mode), and each storage it makes is entered once, rounded up to the
512 bytes that CUDA's allocator rounds to, until its last tensor is gone. On fake tensors nothing lies behind a storage,
so a step of a model of any size is counted in seconds; on real tensors the same ledger counts what really lives.

    live(t) = Σ ⌈bytes / 512⌉ · 512 over storages alive at t        peak = max over t of live(t) + workspace(t)

`workspace` is what a kernel takes inside one operation and gives back before it ends (`workspaces`).
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROUNDING = 512
LITERAL = 4096  # elements of a written-out tensor whose values are remembered
_LITERALS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)

Workspace = Callable[..., int]


@dataclass(frozen=True, kw_only=True)
class Instant:
    """What was alive at a peak: bytes by label, and the phase in which it came."""

    phase: str
    bytes: int
    by_label: Mapping[str, int]


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`with ledger:` counts. Labels are what the caller is doing (`during`); events are (storage, bytes), bytes < 0 for
    a storage that is gone, in the order they happened, for a replay of the allocator.

    truth   what a boolean that code reads from a tensor without values is
    """

    def __init__(self, *, truth: bool = True, workspaces: Mapping[Any, Workspace] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[tuple[int, int]] = []
        self.peaks: dict[str, Instant] = {}
        self.label = self.phase = "other"
        self._truth = truth
        self._workspaces = dict(workspaces or {})
        self._written: dict[int, list[int]] = {}
        self._held: dict[int, tuple[int, int, str]] = {}
        self._by_label: Counter[str] = Counter()
        self._live = 0
        self._entered = 0

    @property
    def live(self) -> int:
        return self._live

    @property
    def by_label(self) -> dict[str, int]:
        return {label: held for label, held in self._by_label.items() if held}

    @property
    def peak(self) -> Instant:
        """The highest instant of all phases."""
        return max(self.peaks.values(), key=lambda instant: instant.bytes)

    @contextmanager
    def during(self, label: str, *, phase: str | None = None) -> Iterator[None]:
        """Enter what is made inside under `label`; with `phase`, keep the phase's own peak."""
        before = self.label, self.phase
        self.label, self.phase = label, phase or self.phase
        if phase:
            self._note(0)
        try:
            yield
        finally:
            self.label, self.phase = before

    def enter(self, tensor: Tensor, label: str) -> None:
        """Enter a tensor that was there before, or give its storage another label."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            number, size, old = self._held[key]
            self._by_label[old] -= size
            self._by_label[label] += size
            self._held[key] = number, size, label
        else:
            self._add(storage, label)

    def settle(self) -> None:
        """Forget how what is held now came about: a loader puts weights in place one by one."""
        self.peaks.clear()
        self.events = [(number, size) for number, size, _ in self._held.values()]
        self._note(0)

    def hold(self, size: int, label: str) -> None:
        """Enter bytes that no tensor of this process stands for, for good: a library's workspace."""
        if size:
            rounded = -(-size // ROUNDING) * ROUNDING
            self._entered += 1
            self._live += rounded
            self._by_label[label] += rounded
            self.events.append((self._entered, rounded))
            self._note(0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            value = self._scalar(args[0])
            if value is not None:
                return value
        out = func(*args, **(kwargs or {}))
        if func in _LITERALS:
            self._remember(args[0], out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                storage = leaf.untyped_storage()
                if storage._cdata not in self._held:
                    self._add(storage, self.label)
        taken = self._workspaces.get(func)
        if taken is not None:
            self._borrow(taken(*args, **(kwargs or {})))
        return out

    def _scalar(self, tensor: Tensor) -> Any:
        """A number that code reads from a tensor without values: as it was written, else 1 or the truth asked for."""
        if not isinstance(tensor, FakeTensor) or tensor.constant is not None:
            return None
        written = self._written.get(tensor.untyped_storage()._cdata)
        if written is not None:
            return written[tensor.storage_offset()]
        if tensor.dtype == torch.bool:
            return self._truth
        return 1.0 if tensor.dtype.is_floating_point else 1

    def _remember(self, literal: Tensor, made: Tensor) -> None:
        """Whole numbers written out in code (`torch.tensor([…])`), which it may read again: offsets, lengths."""
        whole = not literal.dtype.is_floating_point and literal.numel() <= LITERAL
        if whole and isinstance(made, FakeTensor) and not isinstance(literal, FakeTensor):
            with unset_fake_temporarily():
                self._written[made.untyped_storage()._cdata] = literal.flatten().tolist()

    def _borrow(self, size: int) -> None:
        if size:
            rounded = -(-size // ROUNDING) * ROUNDING
            self._entered += 1
            self.events += [(self._entered, rounded), (self._entered, -rounded)]
            self._note(rounded)

    def _add(self, storage: torch.UntypedStorage, label: str) -> None:
        size = -(-storage.nbytes() // ROUNDING) * ROUNDING
        if not size:
            return
        key = storage._cdata
        self._entered += 1
        self._held[key] = self._entered, size, label
        weakref.finalize(storage, self._gone, key).atexit = False
        self._live += size
        self._by_label[label] += size
        self.events.append((self._entered, size))
        self._note(0)

    def _gone(self, key: int) -> None:
        number, size, label = self._held.pop(key)
        self._written.pop(key, None)
        self._live -= size
        self._by_label[label] -= size
        self.events.append((number, -size))

    def _note(self, extra: int) -> None:
        top = self.peaks.get(self.phase)
        now = self._live + extra
        if top is None or now > top.bytes:
            by_label = self.by_label
            if extra:
                by_label["kernel workspace"] = extra
            self.peaks[self.phase] = Instant(phase=self.phase, bytes=now, by_label=by_label)
