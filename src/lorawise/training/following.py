"""What a follower does: opens what the leader opened, and takes its share of every step it is told of."""

from lorawise.base.errors import RunError
from lorawise.models.files import resolve_model
from lorawise.runfile import RunFile
from lorawise.training.inputs import read_inputs
from lorawise.training.optimizer import BankAdamW
from lorawise.training.peers import PeerLost, Peers, deaf_to_signals
from lorawise.training.setup import Prepared, prepare


def follow(peers: Peers) -> None:
    """Until the leader has ended or is gone; what went wrong is for the leader to say.

        leader tells: the settled run, the data's digest ─▶ the optimizer's state ─▶ step, step, … ─▶ None

    `RunError` when this process reads other data or another base than the leader does.
    """
    with deaf_to_signals():
        try:
            told = peers.hear()
            if told is None:
                return
            run, data, base = told
            prepared = _opened(run, data, base, peers)
            counters = peers.hear()
            if counters is None:
                return
            share_state(prepared.trainer.optimizer, peers)
            prepared.trainer.optimizer.load_counters(counters)
            while (step := peers.hear()) is not None:
                prepared.trainer.step(step)
        except PeerLost:
            return


def lead(prepared: Prepared, peers: Peers) -> None:
    """The leader's side of the opening: what `follow` hears first."""
    peers.tell((prepared.run, prepared.inputs.digest, prepared.files.digest))


def lead_steps(optimizer: BankAdamW, peers: Peers) -> None:
    """And second: the state from which the steps go on."""
    peers.tell(optimizer.counters())
    share_state(optimizer, peers)


def share_state(optimizer: BankAdamW, peers: Peers) -> None:
    peers.copy_(optimizer.state())


def _opened(run: RunFile, data: str, base: str, peers: Peers) -> Prepared:
    files = resolve_model(run.model)
    inputs = read_inputs(run, files)
    if (inputs.digest, files.digest) != (data, base):
        raise RunError(
            f"process {peers.rank} reads other rows or another base than the first one does",
            expected="the same files under the same names on every machine",
            cure="copy them, or put them where all machines see them",
        )
    return prepare(run, files, inputs, peers)
