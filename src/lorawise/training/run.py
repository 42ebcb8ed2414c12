"""`train`: a run file becomes an adapter in a folder.

    run file ─ resolve base ─ read rows ─ encode ─ open base, settle `auto`, inject ─ preflight ─ steps ─ adapter
                                                                                          │
                                                            folder, metrics, facts, trackers, report

The folder appears once preflight has passed: a run that could not start leaves nothing behind.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lorawise.base.errors import LorawiseError
from lorawise.base.findings import Finding
from lorawise.lora.count import trainable_parameters
from lorawise.models.files import resolve_model
from lorawise.report.events import (
    Event,
    Noted,
    PreflightDone,
    Reader,
    RunEnded,
    RunStarted,
)
from lorawise.report.facts import FACTS_NAME, FactsFile
from lorawise.report.metrics import METRICS_NAME, MetricsFile
from lorawise.report.page import REPORT_NAME, write_report
from lorawise.report.trackers import open_trackers, require_trackers
from lorawise.runfile import RunFile, load_run_file, require_built
from lorawise.training.checkpoint import Checkpoint, newest_checkpoint, restore
from lorawise.training.exhausted import explained
from lorawise.training.folder import RunFolder, identity_of, require_same
from lorawise.training.following import lead, lead_steps
from lorawise.training.inputs import dated, read_inputs
from lorawise.training.peers import ALONE, Peers, ending
from lorawise.training.preflight import Seen, preflight, require_passed
from lorawise.training.result import RunResult
from lorawise.training.session import Session
from lorawise.training.setup import Prepared, prepare
from lorawise.training.signals import stop_on_signal
from lorawise.training.state import Progress

THREADS = "threads"  # kept with a checkpoint; exactness to the bit needs the same number


def train(
    run_file: RunFile | Path | str,
    *,
    out: Path | str,
    resume: bool = False,
    dry_run: bool = False,
    findings: Sequence[Finding] = (),
    readers: Sequence[Reader] = (),
    peers: Peers = ALONE,
) -> RunResult:
    """Train the adapter that `run_file` describes into the folder `out`, telling every event to `readers`.

    resume   go on from the newest whole checkpoint in `out`; of a finished run, return what is there
    dry_run  stop after preflight; nothing is written
    findings what loading the run file found, told with the run's own
    peers    the processes this one leads (`joined`); the others `follow`
    `UsageError` for what cannot be meant, `RunError` for what went wrong on the way, `Interrupted` after a signal.
    Readers are closed in any case.
    """
    with ending(peers), contextlib.ExitStack() as stack:
        for reader in readers:
            stack.callback(reader.close)
        run, found = (run_file, []) if isinstance(run_file, RunFile) else load_run_file(run_file)
        require_built(run)
        require_trackers(run.train.trackers)
        folder = RunFolder(path=Path(out))
        if not dry_run:
            folder.require_usable(resume=resume)
        return _train(
            run,
            folder,
            resume=resume and folder.started,
            dry_run=dry_run,
            notes=[*findings, *found],
            readers=readers,
            stack=stack,
            peers=peers,
        )


def _train(
    run: RunFile,
    folder: RunFolder,
    *,
    resume: bool,
    dry_run: bool,
    notes: Sequence[Finding],
    readers: Sequence[Reader],
    stack: contextlib.ExitStack,
    peers: Peers,
) -> RunResult:
    stop = stack.enter_context(stop_on_signal(patient=False))
    if resume:
        stack.enter_context(folder.held())
        folder.sweep()
        run = folder.settled(run)
    checkpoint, torn = newest_checkpoint(folder.checkpoints) if resume else (None, [])
    notes = [*notes, *torn]
    if checkpoint is not None and checkpoint.progress.ended is not None:
        return _what_is_there(folder, checkpoint, notes, readers)
    run = dated(run)
    files = resolve_model(run.model)
    inputs = read_inputs(run, files)
    if resume and checkpoint is None:
        notes.append(_from_the_start(folder))
    prepared = prepare(run, files, inputs, peers)
    lead(prepared, peers)
    identity = identity_of(prepared.run, data=inputs.digest, base=files.digest)
    held = identity | {THREADS: str(torch.get_num_threads())}
    if checkpoint is not None:
        require_same(checkpoint.identity, identity, checkpoint.folder)
        restore(checkpoint, prepared.trainer.optimizer)
        notes += list(_other_threads(checkpoint))
    progress = checkpoint.progress if checkpoint is not None else Progress()
    stack.enter_context(explained(prepared.trainer, prepared.load))
    early: list[Event] = []
    findings = (*notes, *prepared.findings)
    for event in _opening(prepared, folder, progress, findings):
        early.append(event)
        _tell(readers, event)
    report = next(event.report for event in early if isinstance(event, PreflightDone))
    require_passed(report)
    if dry_run:
        return RunResult.of_dry_run(folder.path, findings, report)
    if not resume:
        stack.enter_context(folder.held())
        folder.require_usable(resume=False)  # another process may have begun, and ended, since it was asked first
        folder.sweep()
    folder.write_run_file(prepared.run)
    resume_at = progress.step if checkpoint is not None else None
    everyone = [*readers, *_own_readers(folder, prepared.run, resume_at, stack)]
    for event in early:
        _tell(everyone[len(readers) :], event)
    lead_steps(prepared.trainer.optimizer, peers)
    stop.patient = True
    result = _go(Session(prepared, folder, held, progress, stop), everyone)
    return replace(result, findings=findings, preflight=report)


def _other_threads(checkpoint: Checkpoint) -> Iterator[Finding]:
    saved, now = checkpoint.identity.get(THREADS), str(torch.get_num_threads())
    if saved not in (None, now):
        yield Finding(
            code="other-threads",
            level="note",
            message=f"saved with {saved} threads, going on with {now}: equal to rounding, not to the bit",
            cure=f"OMP_NUM_THREADS={saved} makes it exact",
        )


def _from_the_start(folder: RunFolder) -> Finding:
    return Finding(
        code="resumed-from-start",
        level="warning",
        message=f"{folder.path} holds no whole checkpoint: the run starts from its first step",
        cure="lower train.save_every to lose less next time",
    )


def _opening(prepared: Prepared, folder: RunFolder, progress: Progress, findings: Sequence[Finding]) -> Iterator[Event]:
    count = trainable_parameters(prepared.model)
    train, config = prepared.run.train, prepared.adapters.configs[0]
    yield RunStarted(
        run=folder.path,
        setting={
            "r": config.r,
            "alpha": config.alpha,
            "scaling": config.scaling,
            "target_modules": config.target_modules,
            "learning_rate": train.learning_rate,
            "schedule": train.schedule,
            "batch_tokens": train.batch_tokens,
            "batch_size": train.batch_size,
            "micro_batch_tokens": train.micro_batch_tokens,
            "memory": train.memory,
            "model": prepared.run.model,
            "task": prepared.run.task,
        },
        steps_total=prepared.total,
        first_step=progress.step + 1,
        epochs=prepared.trainer.plan.epoch_at(prepared.total),
        trainable_parameters=count.trainable,
        total_parameters=count.total,
        tokens_per_epoch=prepared.inputs.train.tokens_per_epoch,
        trained_tokens_per_epoch=prepared.inputs.train.trained_tokens_per_epoch,
        device=str(prepared.model.device),
        dtype=prepared.run.base.dtype,
    )
    for finding in findings:
        yield Noted(finding=finding, step=progress.step)
    yield PreflightDone(
        report=preflight(
            Seen(
                trainer=prepared.trainer,
                train=prepared.inputs.train,
                validation=prepared.inputs.validation,
                evaluation=() if prepared.evaluator is None else prepared.evaluator.batches,
                tokenizer=prepared.inputs.tokenizer,
                first_step=progress.step,
                epochs=prepared.trainer.plan.epoch_at(prepared.total),
                skipped_rows=prepared.inputs.skipped_rows,
                files=prepared.files,
            )
        )
    )


def _own_readers(
    folder: RunFolder, run: RunFile, resume_at: int | None, stack: contextlib.ExitStack
) -> Iterator[Reader]:
    own: list[Reader] = [
        MetricsFile(folder.path / METRICS_NAME, resume_at=resume_at),
        FactsFile(folder.path / FACTS_NAME, resume_at=resume_at),
        *open_trackers(run.train.trackers, folder.path),
    ]
    for reader in own:
        stack.callback(reader.close)
        yield reader


def _go(session: Session, readers: Sequence[Reader]) -> RunResult:
    folder, ended = session.folder, None
    try:
        for event in session.events():
            _tell(readers, event)
            ended = event if isinstance(event, RunEnded) else ended
    except BaseException:
        if ended is None:
            _leave_true_report(folder, readers, session.ended("failed"))
        raise
    finally:
        if ended is not None:
            write_report(folder.path)
    assert ended is not None, "a session that did not raise has ended"
    return RunResult.of(folder.path, ended)


def _leave_true_report(folder: RunFolder, readers: Sequence[Reader], event: RunEnded) -> None:
    """Tell that the run failed, and how far it came; where even that cannot be written, rather no report than one of
    an earlier state."""
    for reader in readers:
        with contextlib.suppress(LorawiseError):
            reader(event)
    if not folder.started:
        return
    try:
        write_report(folder.path)
    except LorawiseError:
        with contextlib.suppress(OSError):
            (folder.path / REPORT_NAME).unlink(missing_ok=True)


def _what_is_there(
    folder: RunFolder, checkpoint: Checkpoint, notes: Sequence[Finding], readers: Sequence[Reader]
) -> RunResult:
    """A finished run resumed: nothing is done, and a finding says so."""
    done = checkpoint.progress
    assert done.ended is not None
    loss = "" if done.best_loss is None else f", validation loss {done.best_loss:.4f} at step {done.best_step}"
    found = Finding(
        code="already-finished",
        level="note",
        message=f"{folder.path} {done.ended} at step {done.step}{loss}; the adapter is in {folder.adapter}",
        cure="choose another folder with -o to train again",
    )
    findings = (*notes, found)
    for finding in findings:
        _tell(readers, Noted(finding=finding, step=done.step))
    return RunResult.of_finished(folder.path, done, findings)


def _tell(readers: Sequence[Reader], event: Event) -> None:
    for reader in readers:
        reader(event)
