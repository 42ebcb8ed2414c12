"""Packs on the machines of a Ray cluster: a worker holds a base and trains one leg after the other.

    driver   legs ─▶ waiting ─▶ idle worker ─▶ steps stream back ─▶ Arrived
                        ▲                          │
                        └──── the worker died ◀────┘      steps that were told are not told again

The study, its folder and every decision stay in the driver. One actor is one pack on one GPU (a share of the CPUs where
there is none); a fraction of a GPU an actor would hold the base that many times. A leg holds all it needs, so what a
dead worker had in hand starts again elsewhere, from the state of the last rung.

Workers read the run file's base and data by the same paths, and refuse when they find others there.
"""

import contextlib
import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lorawise.base.errors import ConfigError, LorawiseError, RunError, UsageError
from lorawise.models.files import resolve_model
from lorawise.runfile import RunFile
from lorawise.training.inputs import read_inputs
from lorawise.training.setup import prepare
from lorawise.tuning.engine import Arrived, Leg, Told, travel
from lorawise.tuning.events import PackStepped, TrialFailed, WorkerChanged
from lorawise.tuning.pack import Pack

MOST_DEATHS = 3  # of workers on one leg, or while opening the base: then the work is what kills them
LOOPBACK = "127.0.0.1"
PATIENCE = 5.0  # seconds


class Worker:
    """What runs in the actor's process."""

    def open(self, run: RunFile, *, base: str, data: str, threads: int) -> tuple[str, int]:
        """Hold the base of `run`; (host, process id). `UsageError` where base or data are not the driver's."""
        torch.set_num_threads(threads)
        files = resolve_model(run.model)
        inputs = read_inputs(run, files)
        other = [
            name
            for name, ours, theirs in (("base", files.digest, base), ("data", inputs.digest, data))
            if ours != theirs
        ]
        if other:
            raise UsageError(
                f"the worker on {socket.gethostname()} reads another {' and '.join(other)} than the driver",
                expected="the same files under the same paths on every machine",
                cure="share the folder, or copy it there",
            )
        self._pack = Pack(prepare(run, files, inputs))
        return socket.gethostname(), os.getpid()

    def train(self, leg: Leg) -> Iterator[Told]:
        yield from travel(self._pack, leg)


@dataclass(eq=False)
class _Way:
    """A leg, where it is, and how far it was told: `step` and the failed."""

    leg: Leg
    step: int = 0
    failed: set[int] = field(default_factory=set)
    deaths: int = 0

    def is_news(self, told: Told) -> bool:
        match told:
            case PackStepped():
                news, self.step = told.step > self.step, max(told.step, self.step)
                return news
            case TrialFailed():
                news = told.trial not in self.failed
                self.failed.add(told.trial)
                return news
        return True


@dataclass(eq=False)
class _Hand:
    """One worker in the driver's eyes: its actor, and where it runs once it is open."""

    actor: Any
    host: str = ""
    pid: int = 0


class RayCluster:
    """An engine of `workers` workers; one a GPU, or one a node without GPUs, where none are asked for.

    `RAY_ADDRESS` names a cluster; without it one is started on this machine for the study, on the loopback address.
    """

    def __init__(self, pack: Pack, workers: int | None) -> None:
        self._ray = ray = _ray()
        self._prepared = pack.prepared
        self._started_here = not ray.is_initialized()
        if self._started_here:
            _start(ray)
        resources = ray.cluster_resources()
        self._gpus = int(resources.get("GPU", 0))
        self._cpus = int(resources.get("CPU", 1))
        self.width = workers or self._gpus or len(ray.nodes())
        most = self._gpus or self._cpus
        if self.width > most:
            self.close()
            raise ConfigError(
                f"--workers {self.width}",
                expected=f"at most {most}, the {'GPUs' if self._gpus else 'CPUs'} of the cluster",
                cure="fewer, or a larger cluster: RAY_ADDRESS names it",
            )
        self._idle: list[_Hand] = []
        self._opening: dict[Any, _Hand] = {}
        self._busy: dict[Any, tuple[_Hand, _Way]] = {}
        self._lost_openings = 0

    def train(self, legs: Sequence[Leg]) -> Iterator[Told]:
        waiting = deque(_Way(leg) for leg in legs)
        with self._base_moved_away():
            for _ in range(self.width - len(self._idle) - len(self._opening)):
                self._open_one()
            while waiting or self._busy:
                while waiting and self._idle:
                    self._send(waiting.popleft())
                [ready], _ = self._ray.wait([*self._busy, *self._opening], num_returns=1, fetch_local=False)
                yield from self._opened(ready) if ready in self._opening else self._heard(ready, waiting)

    def close(self) -> None:
        if self._started_here:
            self._ray.shutdown()
            return
        for hand in [*self._idle, *self._opening.values(), *(hand for hand, _ in self._busy.values())]:
            self._ray.kill(hand.actor)

    def _open_one(self) -> None:
        prepared = self._prepared
        cpus = max(1, self._cpus // self.width)
        kind = self._ray.remote(Worker)
        actor = kind.options(num_gpus=1).remote() if self._gpus else kind.options(num_cpus=cpus).remote()
        threads = torch.get_num_threads() if self._gpus else min(cpus, torch.get_num_threads())
        ref = actor.open.remote(prepared.run, base=prepared.files.digest, data=prepared.inputs.digest, threads=threads)
        self._opening[ref] = _Hand(actor=actor)

    def _opened(self, ref: Any) -> Iterator[Told]:
        hand = self._opening.pop(ref)
        try:
            hand.host, hand.pid = self._got(ref)
        except _LostError as lost:
            self._lost_openings += 1
            if self._lost_openings >= MOST_DEATHS:
                raise RunError(
                    f"{self._lost_openings} workers died while they opened the base: {lost}",
                    cure="fewer --workers, or a base in fewer bits: its memory may not do",
                ) from lost
            self._open_one()
            return
        self._idle.append(hand)
        yield WorkerChanged(host=hand.host, pid=hand.pid, state="joined", trials=())

    def _send(self, way: _Way) -> None:
        hand = self._idle.pop(0)
        stream = hand.actor.train.options(num_returns="streaming").remote(way.leg)
        self._busy[stream] = hand, way

    def _heard(self, stream: Any, waiting: deque[_Way]) -> Iterator[Told]:
        """The next thing of one leg; its end frees the worker, a death puts the leg in front of those that wait."""
        hand, way = self._busy[stream]
        try:
            told: Told = self._got(next(stream))
        except _LostError as lost:
            del self._busy[stream]
            way.deaths += 1
            if way.deaths >= MOST_DEATHS:
                raise RunError(
                    f"{way.deaths} workers died on the same {len(way.leg.members)} settings: {lost}",
                    cure="more --workers, so that fewer settings stand side by side: memory may not do",
                ) from lost
            waiting.appendleft(way)
            self._open_one()
            yield WorkerChanged(host=hand.host, pid=hand.pid, state="lost", trials=way.leg.trials)
            return
        if isinstance(told, Arrived):
            del self._busy[stream]
            self._idle.append(hand)
        if way.is_news(told):
            yield told

    def _got(self, ref: Any) -> Any:
        """The value of `ref`; `_LostError` when its worker died, and the worker's own error as it was raised there."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as problem:
            if isinstance(problem.cause, LorawiseError):
                raise problem.cause from None
            raise
        except (errors.RayActorError, errors.ObjectLostError, errors.NodeDiedError, errors.WorkerCrashedError) as died:
            raise _LostError(str(died).splitlines()[0]) from died

    @contextlib.contextmanager
    def _base_moved_away(self) -> Iterator[None]:
        """The driver's own base leaves its GPU to the worker there, and comes back for what the driver does itself."""
        model = self._prepared.model
        device = model.device
        if device.type == "cpu":
            yield
            return
        model.to("cpu")  # type: ignore[arg-type]
        torch.cuda.empty_cache()
        try:
            yield
        finally:
            model.to(device)  # type: ignore[arg-type]


class _LostError(Exception):
    """A worker is gone, and with it what it had in hand."""


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray", cure="pip install 'lorawise[ray]'") from None
    return ray


def _start(ray: Any) -> None:
    """The cluster that `RAY_ADDRESS` names, or one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        ray.init(address=address, _node_ip_address=LOOPBACK, include_dashboard=False, **quiet)
        return
    try:
        _knock(address)
        ray.init(**quiet)
    except OSError as problem:
        raise UsageError(
            f"RAY_ADDRESS={address} does not answer: {problem}",
            expected="host:port of a Ray cluster's head",
            cure="start it with `ray start --head`, or unset RAY_ADDRESS: a cluster is then started here",
        ) from problem


def _knock(address: str) -> None:
    """`OSError` where nobody listens; Ray itself would try for minutes. Words such as `auto` are left to Ray."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
