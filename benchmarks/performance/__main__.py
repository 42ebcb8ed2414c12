"""`python -m benchmarks.performance`: writes docs/performance.md from the files under benchmarks/results.

No number is written by hand, and a case that nobody measured stands there as unmeasured.
"""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.keeping import RESULTS
from benchmarks.step.case import cases

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "performance.md"
OPENING = """# Performance

Made by `python -m benchmarks.performance` from the files under `benchmarks/results/`; every number has its file, its
device and its versions there. Ratios are taken within each round of a comparison, so that a machine that drifts moves
both sides.
"""
NOT_ON_AN_ACCELERATOR = """Nothing here was measured on an accelerator: not the packed kernels of CUDA
(`varlen_attn`), not NF4's, not offloading to pinned memory, not several GPUs on NCCL. They are composed from parts
whose CPU forms are held against fp64 in the tests; on CUDA neither their speed nor their memory is known. There are no
arms for Unsloth and Liger yet, nor for TRL in `benchmarks.step`.
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def page() -> str:
    return "\n".join([OPENING, *_training(), *_steps(), *_unmeasured()])


def kept(pattern: str) -> list[tuple[str, dict[str, Any]]]:
    """The newest result of each name: (file, content)."""
    newest = {path.name[: -len("-2026-01-01.json")]: path for path in sorted(RESULTS.glob(pattern))}
    return [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in newest.values()]


def _training() -> Iterator[str]:
    """Whole training calls: ours, the guide's script and TRL on the same rows."""
    yield "## Training, side by side\n"
    for name, result in kept("train-*.json"):
        machine, rounds = result["machine"], result["rounds"]
        yield (
            f"SmolLM2-135M in bf16, r {result['case']['r']} on {result['case']['target_modules']}, "
            f"{result['rows']} rows ({result['case']['name']}), {result['real_tokens']:,} real tokens, {len(rounds)} "
            f"rounds; {machine['threads']} threads of {machine['processor']}; {_versions(result)}; `{name}`\n"
        )
        yield "| arm | tokens/s | ours is | memory at the peak | ours is | validation loss |"
        yield "|---|---|---|---|---|---|"
        for arm in rounds[0]:
            speed, memory = (_median(done[arm][key] for done in rounds) for key in ("tokens_per_second", "peak_memory"))
            faster = _median(d["lorawise"]["tokens_per_second"] / d[arm]["tokens_per_second"] for d in rounds)
            leaner = _median(d["lorawise"]["peak_memory"] / d[arm]["peak_memory"] for d in rounds)
            ours = arm == "lorawise"
            yield (
                f"| {arm} | {speed:,.0f} | {'' if ours else f'{faster:.2f}×'} | {memory / 1e9:.2f} GB | "
                f"{'' if ours else f'{leaner:.2f}×'} | {result['validation_loss'][arm]:.4f} |"
            )
        yield f"\nThe base's validation loss is {result['validation_loss']['base']:.4f}.\n"


def _steps() -> Iterator[str]:
    """One step of a real shape, beside the limit that its device sets."""
    found = [each for each in kept("step-*.json") if each[1]["case"]["name"] in cases()]
    if not found:
        return
    yield "## One step, beside its limit\n"
    yield "The limit is the step's operations over the matrix rate that the device was measured to have just before.\n"
    for name, result in found:
        yield (
            f"{result['case']['title']}; {result['device']}, {result['threads']} threads, "
            f"{result['matrix_rate'] / 1e12:.2f} TFLOP/s measured; {_versions(result)}; `{name}`\n"
        )
        yield "| arm | tokens/s | of the limit | memory at the peak | of that weights | last loss |"
        yield "|---|---|---|---|---|---|"
        for arm, each in result["arms"].items():
            memory = each["allocated"] or each["resident"]
            yield (
                f"| {arm} | {each['tokens_per_second']:,.0f} | {each['share_of_limit']:.1%} | {memory / 1e9:.2f} GB | "
                f"{each['weights'] / 1e9:.2f} GB | {each['losses'][-1]:.4f} |"
            )
        yield f"| the limit | {result['limit_tokens_per_second']:,.0f} | 100% | | | |\n"


def _unmeasured() -> Iterator[str]:
    """What has a case and no result, and what has no case yet."""
    yield "## Not measured\n"
    done = {result["case"]["name"] for _, result in kept("step-*.json")}
    waiting = [case for case in cases().values() if case.name not in done and case.name != "smoke"]
    if waiting:
        yield "Cases that wait for a device or a quiet hour. `python -m benchmarks.step NAME --keep` measures one,"
        yield "without network or weights.\n"
        yield "| case | what it is | needs |"
        yield "|---|---|---|"
        yield from (f"| {case.name} | {case.title} | {case.needs} |" for case in waiting)
        yield ""
    yield NOT_ON_AN_ACCELERATOR


def _versions(result: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in result["versions"].items())


def _median(values: Iterator[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
