"""One arm in its own process: `python -m benchmarks.step.arm CASE ARM`, its report as JSON on the last line.

    lorawise MODE   our trainer's step: packed rows, loss in chunks, one flat optimizer, activations kept as MODE says
    peft            transformers and PEFT by hand: padded rows, full logits, torch's fused AdamW, every activation kept
    peft again      the same with every layer computed again

Same shapes, same seed of the weights, same tokens, all of them trained. Seconds are medians of whole steps.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.step.case import Case, cases
from lorawise.base.peak import peak_memory
from lorawise.lora.config import LoraConfig

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "nf4": torch.bfloat16}


def main() -> None:
    case, arm = cases()[sys.argv[1]], sys.argv[2]
    torch.manual_seed(0)
    step, weights = (peft_step if arm.startswith("peft") else our_step)(case, arm.partition(" ")[2])
    losses, norms, seconds = [], [], []
    for turn in range(case.warmup + case.steps):
        if turn == case.warmup and DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        loss, norm = step(turn)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        losses.append(loss)
        norms.append(norm)
    if not min(norms) > 0:
        raise SystemExit(f"{arm} did not train: gradient norms {norms}")
    each = statistics.median(seconds[case.warmup :])
    report = {
        "seconds": each,
        "tokens_per_second": case.tokens / each,
        "allocated": torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None,
        "reserved": torch.cuda.max_memory_reserved() if DEVICE.type == "cuda" else None,
        "resident": peak_memory(),
        "weights": weights,
        "losses": losses,
        "gradient_norms": norms,
    }
    print(json.dumps(report))


def base_model(case: Case) -> PreTrainedModel:
    settings = case.config
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with DEVICE:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=DTYPES[case.dtype])
    model.config.use_cache = False
    return model.requires_grad_(False)


def our_step(case: Case, mode: str) -> tuple[Callable[[int], tuple[float, float]], int]:
    from lorawise.lora.injection import inject
    from lorawise.models.packing import PACKED, packing_support
    from lorawise.planning.memory.model import Workload
    from lorawise.training.loop import Trainer, trained_parameters
    from lorawise.training.memory import keep_activations
    from lorawise.training.objective import objective_of
    from lorawise.training.optimizer import BankAdamW, SlotSettings
    from lorawise.training.schedule import Schedule
    from lorawise.training.trace.ours import plan_of

    model = base_model(case)
    if case.dtype == "nf4":
        pack(model)
    if packing_support(model) != PACKED:
        raise SystemExit(f"{case.model} does not pack")
    weights = held(model)
    adapters = inject(model, LoraConfig(r=case.r, alpha=case.alpha, target_modules=case.target_modules))
    keep_activations(model, mode)
    trainer = Trainer(
        model=model,
        adapters=adapters,
        plan=plan_of(Workload(tokens=case.tokens, length=max(case.lengths))),
        optimizer=BankAdamW(trained_parameters(adapters), [SlotSettings(learning_rate=2e-4)], scaled=False),
        schedules=[Schedule(name="constant", total=case.warmup + case.steps, warmup=0)],
        objective=objective_of("CAUSAL_LM"),
    )
    micro = _packed_row(case)

    def step(turn: int) -> tuple[float, float]:
        (loss,) = trainer.accumulate(turn, [micro])
        return loss, trainer.optimizer.step([1.0]).norms[0]

    return step, weights


def peft_step(case: Case, kept: str) -> tuple[Callable[[int], tuple[float, float]], int]:
    import peft

    if case.dtype == "nf4":
        raise SystemExit("PEFT over random NF4 weights is not built here")
    model = base_model(case)
    weights = held(model)
    targets = "all-linear" if case.target_modules == "all-linear" else case.target_modules
    wrapped: Any = peft.get_peft_model(
        model, peft.LoraConfig(r=case.r, lora_alpha=case.alpha, target_modules=targets, task_type="CAUSAL_LM")
    )
    if kept == "again":
        wrapped.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0, fused=True)
    ids, mask = _padded_rows(case)
    labels = torch.where(mask.bool(), ids, -100)

    def step(_: int) -> tuple[float, float]:
        wrapped.train()
        with torch.autocast(DEVICE.type, DTYPES[case.dtype]):
            loss = wrapped(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach()), float(norm)

    return step, weights


def pack(model: PreTrainedModel) -> None:
    """Every linear layer but the head in NF4, as a run's base is."""
    from bitsandbytes.functional import quantize_4bit

    from lorawise.lora.packed import Nf4Linear

    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer is not head:
            bits, state = quantize_4bit(layer.weight.data, quant_type="nf4", compress_statistics=True)
            place, _, key = name.rpartition(".")
            packed = Nf4Linear(
                layer.in_features,
                layer.out_features,
                bits=bits,
                bias=layer.bias,
                compute_dtype=layer.weight.dtype,
                scales=state.absmax,
                scales_code=state.state2.code,
                scales_scale=state.state2.absmax,
                scales_mean=state.offset,
            )
            setattr(model.get_submodule(place), key, packed)


def held(model: nn.Module) -> int:
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.state_dict().values()}
    return sum(tensors.values())


def _rows(case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, case.config["vocab_size"], (length,), generator=generator) for length in case.lengths]


def _packed_row(case: Case) -> Any:
    import numpy as np

    from lorawise.data.batches import MicroBatch

    rows = _rows(case)
    trained = [np.arange(len(row)) > 0 for row in rows]
    return MicroBatch(
        ids=torch.cat(rows)[None].numpy(),
        trained=np.concatenate(trained)[None],
        position_ids=np.concatenate([np.arange(len(row)) for row in rows])[None],
        lengths=tuple(case.lengths),
        layout="packed",
        rows=tuple(range(len(rows))),
    )


def _padded_rows(case: Case) -> tuple[Tensor, Tensor]:
    rows = _rows(case)
    longest = max(case.lengths)
    ids = torch.stack([F.pad(row, (0, longest - len(row))) for row in rows])
    mask = torch.stack([(torch.arange(longest) < len(row)).long() for row in rows])
    return ids.to(DEVICE), mask.to(DEVICE)


if __name__ == "__main__":
    main()
