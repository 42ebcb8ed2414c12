"""`predict`: a training step's memory from shapes alone, by cause, in milliseconds and without torch.

    allocated = max over the step's instants of Σ what is alive      (tape.py; never a sum of maxima)
    reserved  = what CUDA's caching allocator takes for that         (allocator.py, replaying the step's requests)
    counted   = allocated, and the rests of blocks too small to split off       (the same replay)

Layers that are alike are walked at both ends and counted in between: memory is linear in the layer's number there, so
the peak lies at an end.
"""

from lorawise.base.errors import ConfigError
from lorawise.facts.device import DeviceFacts
from lorawise.facts.model import ModelFacts
from lorawise.facts.targets import selected
from lorawise.lora.config import LoraConfig
from lorawise.planning.memory.allocator import replayed
from lorawise.planning.memory.causes import because
from lorawise.planning.memory.device import context_bytes, cublas_workspace
from lorawise.planning.memory.model import Line, Memory, Method, Mode, Stack, TrainerName, Workload
from lorawise.planning.memory.step import Step


def adapts_experts(facts: ModelFacts, config: LoraConfig) -> bool:
    """Whether some adapter is on a layer's fused experts."""
    return bool(facts.experts) and any(matrix.kind == "experts" for matrix in selected(facts, config))


def predict(
    facts: ModelFacts,
    config: LoraConfig | None,
    *,
    method: Method = "lora",
    workload: Workload,
    mode: Mode = "speed",
    trainer: TrainerName = "lorawise",
    stack: Stack | None = None,
    slots: int = 1,
    device: DeviceFacts | None = None,
) -> Memory:
    """What one optimizer step holds at its worst instant, and for what.

    config   None for full fine-tuning alone
    slots    adapters trained side by side, each on all rows (our trainer)
    device   for cuBLAS's workspace and the context; None: an NVIDIA card before Hopper
    Raises `ConfigError` for what cannot be meant. A base that is quantised on disk is taken as opened in 16 bits.
    """
    if method not in ("lora", "qlora", "full") or mode not in ("speed", "balanced", "frugal"):
        raise ConfigError(
            f"method={method!r}, mode={mode!r}", expected="lora, qlora or full; speed, balanced or frugal"
        )
    if method != "full" and config is None:
        raise ConfigError(f"method {method} without a LoraConfig", cure="pass one")
    if slots < 1:
        raise ConfigError(f"slots={slots}", expected="a whole number from 1")
    if trainer == "hf" and config is not None and method != "full" and adapts_experts(facts, config):
        raise ConfigError(
            "adapted experts of the stock stack (PEFT's target_parameters) are not predicted",
            cure="lora.target_modules: attention, or our own trainer",
        )
    name = "cuda" if device is None else device.name if device.kind == "cuda" else device.kind
    step = Step(
        facts=facts,
        config=None if method == "full" else config,
        method=method,
        workload=workload,
        mode=mode,
        trainer="hf" if method == "full" else trainer,
        stack=stack or Stack(),
        slots=slots,
        workspace=cublas_workspace(name),
    )
    tape = step.run()
    words, replay = because(step), replayed(tape.events)
    lines = [Line(cause=c, bytes=size, because=words.get(c, c)) for c, size in tape.at_peak.items() if size]
    return Memory(
        allocated=tape.peak,
        reserved=replay.reserved,
        context=context_bytes(name),
        by_cause=tuple(sorted(lines, key=lambda line: -line.bytes)),
        unsplit=replay.counted - tape.peak,
        instant=tape.instant,
        versions=VERSIONS,
    )


VERSIONS = "as torch 2.13, transformers 5.24, PEFT 0.21 and bitsandbytes 0.50 allocate"
