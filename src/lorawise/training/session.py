"""One run in progress: the loop's steps, with evaluations, checkpoints, the best adapter and the signals between them.

    (StepDone | Evaluated | Saved | Noted)* → RunEnded

After step k: evaluate if due, keep the adapter if it is the best, save if due, stop if asked. A checkpoint therefore
holds what its step's evaluation found, and a resumed run neither repeats nor skips one; one that could not be made,
as memory ran out in it, is made first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from shlex import quote

from lorawise.base.errors import DivergedError, Interrupted, MemoryExhausted
from lorawise.base.findings import Finding
from lorawise.report.events import EndReason, Evaluated, EvaluationName, Event, Noted, RunEnded, Saved, StepDone
from lorawise.training.checkpoint import save_checkpoint
from lorawise.training.folder import RunFolder
from lorawise.training.keeping import keep_adapter
from lorawise.training.loop import steps
from lorawise.training.peers import PeerLost
from lorawise.training.setup import Prepared
from lorawise.training.signals import StopRequest
from lorawise.training.state import Progress


class Session:
    """`progress` is current after every event."""

    def __init__(
        self, prepared: Prepared, folder: RunFolder, identity: Mapping[str, str], progress: Progress, stop: StopRequest
    ) -> None:
        self.prepared = prepared
        self.folder = folder
        self.identity = identity
        self.progress = progress
        self.stop = stop

    def events(self) -> Iterator[Event]:
        """Until the run is over; `Interrupted` after a signal, `DivergedError` when the loss is not finite.

        A step that runs out of memory, or loses a process, changes nothing: what the steps before it reached is saved.
        """
        progress, train = self.progress, self.prepared.run.train
        if not progress.holds("base", 0):
            yield from self._evaluate("base")
        try:
            if self._owes_evaluation():
                yield from self._evaluate("validation")
            for done in () if self._waited_out() else self._steps():
                self.progress = self.progress.after(done)
                yield done
                self.folder.require_there()
                if self._due(done.step, train.eval_every):
                    yield from self._evaluate("validation")
                if self._waited_out():
                    break
                if self.stop and done.step < self.prepared.total:
                    yield from self._interrupt()
                if self._due(done.step, train.save_every) and done.step < self.prepared.total:
                    yield self._save()
        except DivergedError:
            yield from self._give_up("diverged")
            raise
        except (MemoryExhausted, PeerLost):
            self.prepared.trainer.optimizer.zero_grad()
            yield from self._give_up("failed")
            raise
        early = self.progress.step < self.prepared.total
        yield from self._finish("stopped early" if early else "finished")

    def _steps(self) -> Iterator[StepDone]:
        return steps(self.prepared.trainer, first=self.progress.step, total=self.prepared.total)

    def _due(self, step: int, every: int | str) -> bool:
        if step == self.prepared.total:
            return True
        if every == "epoch":
            plan = self.prepared.trainer.plan
            return int(plan.epoch_at(step)) > int(plan.epoch_at(step - 1))
        return step % int(every) == 0

    def _owes_evaluation(self) -> bool:
        step = self.progress.step
        due = step > 0 and self._due(step, self.prepared.run.train.eval_every)
        return due and not self.progress.holds("validation", step)

    def _waited_out(self) -> bool:
        patience = self.prepared.run.train.early_stopping
        return patience is not None and self.progress.waited >= patience

    def _evaluate(self, name: EvaluationName) -> Iterator[Evaluated]:
        if self.prepared.evaluator is None:
            return
        event = self.prepared.evaluator(self.progress.step, name)
        event = replace(event, best=name == "validation" and self.progress.improves(event.loss))
        self.progress = self.progress.evaluated(event)
        if event.best:
            self._keep_adapter()
        yield event

    def _interrupt(self) -> Iterator[Event]:
        yield self._save()
        yield self.ended("interrupted")
        raise Interrupted(
            f"{self.stop.name} after step {self.progress.step} of {self.prepared.total}; everything is saved",
            cure=f"go on with: lorawise train --resume -o {quote(str(self.folder.path))}",
        )

    def _give_up(self, reason: EndReason) -> Iterator[Event]:
        """Keep the last good state: a checkpoint, and an adapter if no evaluation chose one."""
        if self.progress.best_step is None and self.progress.step:
            self._keep_adapter()
        if self.progress.step:
            yield self._save()
        yield self.ended(reason)

    def _finish(self, reason: EndReason) -> Iterator[Event]:
        if self.progress.best_step is not None and not self.folder.adapter.is_dir():
            yield Noted(finding=self._adapter_gone(), step=self.progress.step)
            self._keep_adapter()
        elif self.progress.best_step is None:
            self._keep_adapter()
        self.progress = replace(self.progress, ended=reason)
        yield self._save()
        yield self.ended(reason)

    def _adapter_gone(self) -> Finding:
        return Finding(
            code="adapter-gone",
            level="warning",
            message=f"the adapter of step {self.progress.best_step} was deleted while the run went on; that of the "
            "last step is kept in its place",
            cure="leave the run's folder alone until it is over",
        )

    def _save(self) -> Saved:
        path = save_checkpoint(
            self.folder.checkpoints,
            self.progress,
            self.prepared.trainer.optimizer,
            self.identity,
            keep=self.prepared.run.train.keep_checkpoints,
        )
        return Saved(step=self.progress.step, path=path)

    def _keep_adapter(self) -> None:
        adapters = self.prepared.adapters
        keep_adapter(
            self.folder.adapter,
            adapters.weights(adapters.names[0]),
            self.prepared,
            run=self.prepared.run,
            step=self.progress.step,
            validation_loss=self.progress.loss_of("validation", self.progress.step),
        )

    def ended(self, reason: EndReason) -> RunEnded:
        """The last event: how far the run came."""
        p = self.progress
        return RunEnded(
            reason=reason,
            step=p.step,
            tokens=p.tokens,
            trained_tokens=p.trained_tokens,
            seconds=p.seconds,
            tokens_per_second=p.tokens_per_second,
            peak_memory=p.peak_memory,
            validation_loss=p.best_loss,
            base_validation_loss=p.loss_of("base"),
            best_step=p.best_step,
            adapter=self.folder.adapter if self.folder.adapter.is_dir() else None,
        )
