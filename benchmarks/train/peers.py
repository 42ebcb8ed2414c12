"""The peers' arms, each run in its own process: `python -m benchmarks.train.peers ARM JOB.json`.

guide   the guide's script: transformers Trainer over a PEFT model, batch 4, accumulation 4, with the names it uses that
        have changed since put right and labels given (as written it has none, and Trainer refuses)
trl     TRL's SFTTrainer at CPU settings tried here: no checkpointing, batch × accumulation as the job says, rows
        grouped by length when more than one is in a batch

Both read rows already tokenised and labelled, so that the same tokens are trained. The dtype is bf16, dropout 0.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lorawise.base.peak import peak_memory

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


class Clock(TrainerCallback):
    """Seconds of every optimizer step but the first, which warms caches up, and the gradient norms logged."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.norms: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.norms += [float(logs["grad_norm"])] if logs and "grad_norm" in logs else []
        self.losses += [float(logs["loss"])] if logs and "loss" in logs else []


def main(arm: str, job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    torch.manual_seed(0)
    torch.set_num_threads(job["threads"])
    rows = [json.loads(line) for line in Path(job["tokenised"]).read_text().splitlines()]
    trainer, clock = {"guide": guide, "trl": trl}[arm](job, Dataset.from_list(rows))
    trainer.add_callback(clock)
    start = time.perf_counter()
    trainer.train()
    model = trainer.model
    model.save_pretrained(job["adapter"])
    report = {
        "seconds": clock.marks[-1] - clock.marks[0],
        "seconds_with_first_step": clock.marks[-1] - start,
        "steps": len(clock.marks),
        "gradient_norms": clock.norms,
        "losses": clock.losses,
        "peak_memory": peak_memory(),
    }
    Path(job["report"]).write_text(json.dumps(report))


def adapter_config(job: dict[str, Any]) -> LoraConfig:
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=job["r"],
        lora_alpha=job["alpha"],
        lora_dropout=0.0,
        target_modules=ATTENTION,
        bias="none",
    )


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    return {
        "output_dir": job["output"],
        "num_train_epochs": 1,
        "per_device_train_batch_size": job["batch"],
        "gradient_accumulation_steps": job["accumulation"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }


def guide(job: dict[str, Any], rows: Dataset) -> tuple[Trainer, Clock]:
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
    model = get_peft_model(model, adapter_config(job))
    args = TrainingArguments(**arguments(job))
    return Trainer(
        model=model, args=args, train_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True)
    ), Clock()


def trl(job: dict[str, Any], rows: Dataset) -> tuple[Trainer, Clock]:
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
    args = SFTConfig(
        **arguments(job),
        bf16=False,  # the weights are bf16 already; this flag is autocast, which only adds casts here
        gradient_checkpointing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="group_by_length" if job["batch"] > 1 else "random",
    )
    return SFTTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=adapter_config(job),
    ), Clock()


if __name__ == "__main__":
    main(*sys.argv[1:])
