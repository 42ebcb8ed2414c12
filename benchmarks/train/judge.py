"""The loss of an adapter on held rows, by PEFT and transformers alone: `python -m benchmarks.train.judge JOB.json`.

Every arm's adapter is judged by the same code, which is none of the arms'. Row by row, no padding, fp32 logits.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
    rows = [json.loads(line) for line in Path(job["tokenised"]).read_text().splitlines()]
    losses = {"base": mean_loss(model, rows)}
    for name, folder in job["adapters"].items():
        adapted = PeftModel.from_pretrained(model, folder)
        losses[name] = mean_loss(adapted, rows)
        model = adapted.unload()
    Path(job["report"]).write_text(json.dumps(losses))


@torch.no_grad()
def mean_loss(model: torch.nn.Module, rows: list[dict]) -> float:
    total, count = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].float()
        labels = torch.tensor(row["labels"][1:])
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
    return total / count


if __name__ == "__main__":
    main(*sys.argv[1:])
