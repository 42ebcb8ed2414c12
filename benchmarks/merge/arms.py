"""One arm in its own process: `python -m benchmarks.merge.arms ARM BASE ADAPTER OUT`.

ours         lorawise.merge
peft         from_pretrained in bf16, merge_and_unload, save_pretrained in shards of the base's size
interpreter  what ours imports, and nothing done: the memory that is no merge's
"""

import json
import os
import sys
import time

from lorawise.base.peak import peak_memory


def main(arm: str, base: str, adapter: str, out: str, shard: str) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if arm == "peft":
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        imported = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out, max_shard_size=int(shard))
    else:
        from lorawise.merging.merge import merge

        imported = time.perf_counter()
        if arm == "ours":
            merge(base, adapter, out)
    done = time.perf_counter()
    report = {"seconds": done - imported, "cpu_seconds": time.process_time(), "peak_memory": peak_memory()}
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
