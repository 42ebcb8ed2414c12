"""Where one CPU training step goes: `python -m benchmarks.train.profile_step [--lengths 1024,391,…] [--threads 1] …`.

A Llama of SmolLM2-135M's shape with random weights trains one packed row in bf16. Printed: processor seconds and real
tokens a processor second, the share of each kind of work, and the floor, which is the time of the matrix products alone
(forward, and the gradient of the input) in this process. Processor time with one thread hardly depends on what else the
machine is doing; wall time with two does.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from lorawise import LoraConfig
from lorawise.data.batches import MicroBatch
from lorawise.lora import inject
from lorawise.models.batch import ModelBatch, to_model_batch
from lorawise.models.forward import causal_loss
from lorawise.models.packing import packing_support

UNEVEN = "1024,391,220,150,97,75,60,40"
KINDS = {
    "_CausalAttention": "attention",
    "_CausalAttentionBackward": "attention",
    "_ChunkedLoss": "head and loss",
    "_ChunkedLossBackward": "head and loss",
    "_LinearPlusLowRank": "adapted linear layers",
    "_LinearPlusLowRankBackward": "adapted linear layers",
    "aten::linear": "other linear layers",
    "MmBackward0": "other linear layers",
    "LinearBackward0": "other linear layers",
}


def smollm2_135m(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        use_cache=False,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)


def random_row(lengths: tuple[int, ...], labelled: float) -> ModelBatch:
    draw, tokens = np.random.default_rng(0), sum(lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    return to_model_batch(
        MicroBatch(
            ids=draw.integers(3, 49000, (1, tokens)),
            trained=(draw.random((1, tokens)) < labelled) & (positions > 0),
            position_ids=positions,
            lengths=lengths,
            layout="packed",
            rows=tuple(range(len(lengths))),
        )
    )


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Processor seconds of the quickest of `repeats`, after one that warms up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def floor(model: LlamaForCausalLM, tokens: int, targets: int) -> float:
    """Processor seconds of the frozen matrix products of a step."""
    total = 0.0
    with torch.no_grad():
        for weight, rows in [(w, tokens) for w in _matrices(model)] + [(model.lm_head.weight, targets)]:
            x, dy = torch.randn(rows, weight.shape[1]).bfloat16(), torch.randn(rows, weight.shape[0]).bfloat16()
            total += seconds(lambda x=x, w=weight: F.linear(x, w), 3) + seconds(lambda dy=dy, w=weight: dy @ w, 3)
    return total


def _matrices(model: LlamaForCausalLM) -> list[torch.Tensor]:
    return [p for name, p in model.model.layers.named_parameters() if p.dim() == 2 and "lora_" not in name]


def shares(step: Callable[[], object]) -> Counter[str]:
    """Microseconds by kind of work; what is inside a kind counts there, the rest by operation."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    found: Counter[str] = Counter()
    for event in record.events():
        inside, kind = event.cpu_parent, KINDS.get(event.name)
        while inside is not None and kind is None and inside.name not in KINDS:
            inside = inside.cpu_parent
        if kind is not None and not _within_a_kind(event):
            found[kind] += event.cpu_time_total
        elif kind is None and inside is None:
            found[f"elementwise {event.name.removeprefix('aten::')}"] += event.self_cpu_time_total
    return found


def _within_a_kind(event: object) -> bool:
    outer = event.cpu_parent
    while outer is not None:
        if outer.name in KINDS:
            return True
        outer = outer.cpu_parent
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default=UNEVEN, help="documents of the row; 48x43 is 43 of 48 tokens")
    parser.add_argument("--labelled", type=float, default=0.5, help="share of tokens that are trained")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--targets", default="attention")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    length, _, times = args.lengths.partition("x")
    lengths = (int(length),) * int(times) if times else tuple(map(int, args.lengths.split(",")))
    model, batch = smollm2_135m(args.layers), random_row(lengths, args.labelled)
    least = floor(model, sum(lengths), len(batch.targets))
    assert packing_support(model) == "packed"
    parameters = [p for _, p in inject(model, LoraConfig(r=16, target_modules=args.targets)).trainable()]

    def step() -> None:
        causal_loss(model, batch).sums.sum().backward()
        for parameter in parameters:
            parameter.grad = None

    took = seconds(step, args.repeats)
    print(f"torch {torch.__version__}, {args.threads} threads, {sum(lengths)} tokens, {len(batch.targets)} trained")
    print(f"step  {took:.2f} processor seconds, {sum(lengths) / took:.0f} tokens a processor second")
    print(f"floor {least:.2f} processor seconds of matrix products alone ({least / took:.0%} of the step)")
    found = shares(step)
    for kind, spent in found.most_common(14):
        print(f"  {spent / found.total():6.1%}  {kind}")


if __name__ == "__main__":
    main()
