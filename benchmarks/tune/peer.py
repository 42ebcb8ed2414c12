"""Optuna, PEFT and transformers' Trainer, one setting at a time: `python -m benchmarks.tune.peer JOB.json`.

As their documentations put it together: a study of a grid, a fresh base and adapter a trial, the validation loss as the
value. Rows are chats under the model's template, as many a batch as the job's tokens hold on average.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

SPACE = {"scaling": [0.5, 1.0, 2.0, 4.0], "learning_rate": [3e-4, 1e-3, 3e-3, 1e-2]}


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    train = [row for row in _rows(job["rows"], tokenizer) if len(row["input_ids"]) <= job["tokens"]]
    held = _rows(job["validation"], tokenizer)
    mean = sum(len(row["input_ids"]) for row in train) / len(train)
    batch = max(1, round(job["tokens"] / mean))
    trials: list[dict[str, float]] = []

    def objective(trial: optuna.Trial) -> float:
        began = time.perf_counter()
        scaling = trial.suggest_categorical("scaling", SPACE["scaling"])
        rate = trial.suggest_categorical("learning_rate", SPACE["learning_rate"])
        base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
        model = get_peft_model(
            base, LoraConfig(r=8, lora_alpha=8 * scaling, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(Path(job["report"]).parent / "peer"),
                per_device_train_batch_size=batch,
                per_device_eval_batch_size=batch,
                max_steps=job["steps"],
                learning_rate=rate,
                lr_scheduler_type="cosine",
                logging_steps=job["steps"],
                save_strategy="no",
                report_to=[],
                use_cpu=not torch.cuda.is_available(),
                disable_tqdm=True,
            ),
            train_dataset=train,
            eval_dataset=held,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        stepped = time.perf_counter()
        trainer.train()
        ended = time.perf_counter()
        loss = trainer.evaluate()["eval_loss"]
        trials.append(
            {"steps": ended - stepped, "beside": time.perf_counter() - began - (ended - stepped), "loss": loss}
        )
        return loss

    optuna.create_study(sampler=optuna.samplers.GridSampler(SPACE, seed=0)).optimize(objective, job["settings"])
    report: dict[str, Any] = {
        "settings": len(trials),
        "steps": job["steps"],
        "batch": batch,
        "tokens_a_row": mean,
        "seconds_a_step": sum(t["steps"] for t in trials) / len(trials) / job["steps"],
        "seconds_beside_steps": sum(t["beside"] for t in trials) / len(trials),
        "losses": [t["loss"] for t in trials],
    }
    Path(job["report"]).write_text(json.dumps(report), encoding="utf-8")


def _rows(path: str, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Whole chats; the answer alone is labelled, as ours."""
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        labels = [-100] * len(prompt) + whole[len(prompt) :]
        found.append({"input_ids": whole, "attention_mask": [1] * len(whole), "labels": labels})
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
