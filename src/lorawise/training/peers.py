"""Several processes train one adapter: `torchrun --nproc-per-node 2 -m lorawise train run.yaml`.

    leader    decides, evaluates, prints and saves, as a process alone does; before each step it says which
    follower  holds the same base and adapter, and does nothing but the steps it is told

In a step each process takes every world-th micro-batch; gradients and losses are summed, and every process makes the
same update. A step's micro-batches, and the dropout masks of each, do not depend on how many processes there are, so a
run equals one of a single process up to the order of a sum, and is resumed by any number of processes.
"""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lorawise.base.errors import LorawiseError, MemoryExhausted, RunError

_CPU = torch.device("cpu")
PATIENCE = timedelta(days=1)  # of a follower while the leader evaluates; one that dies is noticed at once


class PeerLost(RunError):  # noqa: N818 - named for what happened
    code = "peer-lost"


@dataclass(frozen=True, kw_only=True)
class Peers:
    """This process among those of its run. A process alone is `ALONE`, for which every method is free."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Which of a step's micro-batches this process takes."""
        return range(self.rank, count, self.world)

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Every process's values added up, in place. `PeerLost` when one of them is gone."""
        if self.world > 1:
            for tensor in tensors:
                with _noticing():
                    dist.all_reduce(tensor)

    def tell(self, message: Any) -> None:
        """From the leader to every follower."""
        if self.world > 1:
            with _noticing():
                dist.broadcast_object_list([message], src=0, device=_CPU)

    def hear(self) -> Any:
        """What the leader tells next."""
        held: list[Any] = [None]
        with _noticing():
            dist.broadcast_object_list(held, src=0, device=_CPU)
        return held[0]

    def copy_(self, tensors: Iterable[Tensor]) -> None:
        """The leader's values into every follower's."""
        if self.world > 1:
            for tensor in tensors:
                with _noticing():
                    dist.broadcast(tensor, src=0)


ALONE = Peers()


@contextmanager
def joined() -> Iterator[Peers]:
    """The processes that torchrun started, or this one alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Messages to followers are small and on the CPU; only gradients lie on an accelerator.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield Peers(rank=dist.get_rank(), world=world)
    finally:
        dist.destroy_process_group()


@contextmanager
def ending(peers: Peers) -> Iterator[None]:
    """Followers are told when the leader ends between two steps; when it ends inside one they find it gone."""
    try:
        yield
    except (MemoryExhausted, PeerLost):
        raise
    except LorawiseError:
        peers.tell(None)
        raise
    peers.tell(None)


@contextmanager
def deaf_to_signals() -> Iterator[None]:
    """A follower ends when its leader says so, or is gone: the leader still needs it for the step it is in."""
    heard = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _noticing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as problem:
        raise PeerLost(
            f"another process of this run is gone ({str(problem).splitlines()[0][:120]})",
            expected="all processes that torchrun started, to the end",
            cure="look at its own message; then go on, with any number of processes: --resume",
        ) from problem
