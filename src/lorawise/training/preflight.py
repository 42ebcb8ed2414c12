"""Before the first step: everything that fails late, or silently, tried once and early.

One real forward and backward on the training micro-batch that needs most memory, and a forward on evaluation's. The
gradients are looked at and cleared again; parameters, moments, counters and random state are as they were.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lorawise.base.errors import PreflightError
from lorawise.data.batches import MicroBatch
from lorawise.data.encode import preview
from lorawise.data.encoded import Encoded, EncodedSet
from lorawise.data.tokenizer import ChatTokenizer
from lorawise.models.files import ModelFiles
from lorawise.models.originals import Originals
from lorawise.models.quantised import packed_layers
from lorawise.report.events import Check, Coverage, ExpertTokens, Piece, Preflight
from lorawise.training.coverage import RoutingTally, coverage_of
from lorawise.training.evaluate import score
from lorawise.training.loop import Trainer
from lorawise.training.memory import peak_memory, total_memory
from lorawise.training.objective import Label

LISTED = 5
COMPARED = 8192  # validation tokens on which a quantised base is compared; each batch reads the model's files once


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What preflight looks at. `files` of the base: a quantised one is compared with them."""

    trainer: Trainer
    train: EncodedSet
    validation: EncodedSet | None
    evaluation: Sequence[MicroBatch]
    tokenizer: ChatTokenizer
    first_step: int
    epochs: float
    skipped_rows: int = 0
    files: ModelFiles | None = None


def preflight(seen: Seen) -> Preflight:
    """Every check, passed or not; `require_passed` turns the failures into an error."""
    started = time.perf_counter()
    longest = seen.trainer.plan.longest(seen.epochs)
    coverage, gradient_checks = _gradient_checks(seen, longest)
    checks = [*_row_checks(seen), *gradient_checks, *_evaluation_checks(seen), *_packing_checks(seen)]
    peak = peak_memory(seen.trainer.model.device)
    checks.append(_memory_check(peak, seen))
    return Preflight(
        checks=tuple(checks),
        row=tuple(Piece(text=text, trained=trained) for text, trained in preview(_shown(seen.train), seen.tokenizer)),
        rows=len(seen.train),
        validation_rows=len(seen.validation) if seen.validation is not None else 0,
        skipped_rows=seen.skipped_rows,
        cut_rows=seen.train.cut_rows,
        cut_tokens=seen.train.cut_tokens,
        tokens=seen.train.tokens,
        trained_tokens=seen.train.trained_tokens,
        longest=int(seen.train.lengths.max()),
        peak_memory=peak,
        seconds=time.perf_counter() - started,
        coverage=coverage,
    )


CURES: dict[str, str] = {
    "every row has a trained token": "raise train.max_length so that answers are not cut, or leave these rows out",
    "the end of an answer is trained": "raise train.max_length so that some answer keeps its end; a model that never "
    "sees one never stops",
    "one BOS a row": "take the BOS out of the texts or of the chat template",
    "the loss is finite": "use base.dtype: bfloat16 or float32, or look at the base model's weights",
    "every adapted layer gets a gradient": "take these modules out with lora.exclude_modules, or report the model",
    "nothing frozen gets one": "open the base through lorawise, and leave requires_grad alone",
    "the evaluation's loss is finite": "look at the validation rows",
    "the quantised base still answers": "use base.dtype: bfloat16, or int8",
    "memory is met": "lower train.micro_batch_tokens, or set train.memory: frugal",
}


def require_passed(report: Preflight) -> None:
    """`PreflightError` with every failed check and its cure."""
    failed = [check for check in report.checks if not check.passed]
    if failed:
        raise PreflightError(
            "\n  ".join(f"not so: {check.name} ({check.detail})" for check in failed),
            expected="all checks before the first step to pass",
            cure="; ".join(dict.fromkeys(CURES[check.name] for check in failed)),
        )


def _row_checks(seen: Seen) -> Iterator[Check]:
    if isinstance(seen.trainer.objective, Label):
        missing = [row.row for row in seen.train if row.label is None]
        yield Check(name="every row has a trained token", passed=not missing, detail="the label trains the head")
    else:
        mute = [row.row for row in seen.train if not row.trained.any()]
        share = seen.train.trained_tokens / seen.train.tokens
        detail = _listed("rows without one", mute) or f"{seen.train.trained_tokens:,} tokens, {share:.0%} of all"
        yield Check(name="every row has a trained token", passed=not mute, detail=detail)
        yield _terminator_check(seen)
    bos = seen.tokenizer.bos_id
    doubled = [row.row for row in seen.train if len(row) > 1 and row.ids[0] == row.ids[1] == bos]
    detail = _listed("rows that begin with two", doubled) or ("no row has two" if bos is not None else "it has none")
    yield Check(name="one BOS a row", passed=not doubled, detail=detail)


def _terminator_check(seen: Seen) -> Check:
    stops = seen.train.stop_ids
    ended = sum(bool(set(row.ids[row.trained].tolist()) & set(stops)) for row in seen.train)
    detail = f"in {ended:,} of {len(seen.train):,} rows" if stops else "the tokenizer has no end token"
    return Check(name="the end of an answer is trained", passed=ended > 0 or not stops, detail=detail)


def _gradient_checks(seen: Seen, batch: MicroBatch) -> tuple[Coverage, list[Check]]:
    """One forward and backward, looked at and cleared again."""
    trainer = seen.trainer
    tally = RoutingTally(trainer.adapters)
    trainer.optimizer.zero_grad()
    with tally.counting():
        losses = trainer.accumulate(seen.first_step, [batch])
    coverage = coverage_of(trainer.adapters, trainer.optimizer, tally)
    checks = list(_found_by_gradients(trainer, losses, coverage))
    trainer.optimizer.zero_grad()
    return coverage, checks


def _found_by_gradients(trainer: Trainer, losses: Sequence[float], coverage: Coverage) -> Iterator[Check]:
    finite = all(math.isfinite(loss) for loss in losses)
    yield Check(name="the loss is finite", passed=finite, detail=", ".join(f"{loss:.4g}" for loss in losses))
    still = still_layers(trainer)
    layers = len({p.module for p in trainer.adapters.bank_parameters()})
    reached = f"; {coverage.moved:,} of {coverage.meant:,} parameters" if coverage.experts else ""
    yield Check(
        name="every adapted layer gets a gradient",
        passed=not still,
        detail=_listed("layers without", still) or f"{layers} layers{reached}",
    )
    if coverage.experts:
        yield Check(name="experts are reached", passed=True, detail=_reach(coverage.experts))
    trained = {id(parameter) for _, parameter in trainer.adapters.trainable()}
    others = [(name, p) for name, p in trainer.model.named_parameters() if id(p) not in trained]
    moved = [name for name, p in others if p.requires_grad or p.grad is not None]
    yield Check(
        name="nothing frozen gets one",
        passed=not moved,
        detail=_listed("frozen parameters with one", moved) or f"{len(others):,} frozen tensors",
    )


def _reach(layers: Sequence[ExpertTokens]) -> str:
    """`15 of 16 by this batch, 3 to 41 tokens each; not 1 of 8 in model.layers.1.mlp.experts`."""
    counts = [count for layer in layers for count in layer.tokens if count]
    total = sum(len(layer.tokens) for layer in layers)
    idle = [f"{len(layer.idle)} in {layer.module}" for layer in layers if layer.idle]
    spread = f", {min(counts):,} to {max(counts):,} tokens each" if counts else ""
    missed = _listed("; no token for", idle)
    return f"{len(counts):,} of {total:,} by this batch{spread}{missed}"


def still_layers(trainer: Trainer) -> list[str]:
    """Adapted layers and fully trained parameters that the gradients now held would not move, in some slot.

    Of a fresh pair one factor is zero, so only the other's gradient is: B moves in a linear layer, A in an embedding.
    """
    layers = trainer.adapters.layers
    moving: dict[str, list[bool]] = {name: [rank == 0 for rank in layer.ranks] for name, layer in layers.items()}
    still = []
    for trained, gradient in trainer.optimizer.gradients():
        if trained.kind in ("A", "B"):
            module = trained.name.rpartition(".")[0]
            flat = gradient.flatten(1).ne(0).any(1).tolist()
            moving[module] = [before or now for before, now in zip(moving[module], flat, strict=True)]
        elif not gradient.any():
            still.append(trained.name)
    return [name for name, slots in moving.items() if not all(slots)] + still


def _evaluation_checks(seen: Seen) -> Iterator[Check]:
    if not seen.evaluation:
        return
    largest = max(seen.evaluation, key=lambda batch: (batch.cells, max(batch.lengths)))
    with torch.no_grad():
        scores = score(seen.trainer.model, [largest], seen.trainer.objective, n=seen.trainer.adapters.n)
    finite = all(math.isfinite(loss) for loss in scores.losses)
    yield Check(name="the evaluation's loss is finite", passed=finite, detail=f"{scores.losses[0]:.4g}")


def _packing_checks(seen: Seen) -> Iterator[Check]:
    """What quantising the base cost on validation rows, before a fresh run. It fails only where nothing is left."""
    trainer = seen.trainer
    if seen.files is None or not seen.evaluation or seen.first_step or not packed_layers(trainer.model):
        return
    name, batches = "the quantised base still answers", _first_tokens(seen.evaluation, COMPARED)
    originals = Originals(trainer.model, seen.files)
    if originals.unknown:
        yield Check(name=name, passed=True, detail=_listed("not measured; stored under other names", originals.unknown))
        return
    trainer.adapters.use(None)
    packed = score(trainer.model, batches, trainer.objective)
    with originals.in_place():
        whole = score(trainer.model, batches, trainer.objective)
    trainer.adapters.bank()
    loss, was = packed.losses[0], whole.losses[0]
    told = f"loss {loss:.4f}, {was:.4f} in full ({loss - was:+.4f})"
    yield Check(name=name, passed=math.isfinite(loss) or not math.isfinite(was), detail=told)


def _first_tokens(batches: Sequence[MicroBatch], tokens: int) -> list[MicroBatch]:
    """The first batches that hold that many, one at least."""
    taken: list[MicroBatch] = []
    for batch in batches:
        if taken and sum(each.tokens for each in taken) + batch.tokens > tokens:
            break
        taken.append(batch)
    return taken


def _memory_check(peak: int, seen: Seen) -> Check:
    total = total_memory(seen.trainer.model.device)
    detail = f"{peak / 2**30:.2f} of {total / 2**30:.1f} GiB at the peak"
    return Check(name="memory is met", passed=peak <= total, detail=detail)


def _shown(encoded: EncodedSet) -> Encoded:
    """A row of about the mean length."""
    return min(encoded, key=lambda row: abs(len(row) - float(encoded.lengths.mean())))


def _listed(noun: str, found: Sequence[object]) -> str:
    if not found:
        return ""
    more = f" and {len(found) - LISTED:,} more" if len(found) > LISTED else ""
    return f"{noun}: {', '.join(str(each) for each in found[:LISTED])}{more}"
