"""The job of the benchmark: SmolLM2 cut to its first layers, real rows, sixteen settings of scaling × learning rate."""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from lorawise.models.embedded import embedded_model
from lorawise.models.quiet import quiet_transformers
from lorawise.runfile import RunFile

OVER = ("lora.scaling=0.5,1,2,4", "train.learning_rate=3e-4,1e-3,3e-3,1e-2")


@dataclass(frozen=True, kw_only=True)
class Job:
    """`steps` of a whole run, `tokens` a step at most, on `layers` of SmolLM2-135M's 30."""

    layers: int
    steps: int
    tokens: int
    validation_rows: int

    def run(self, model: Path, folder: Path, seed: int) -> RunFile:
        return RunFile.model_validate(
            {
                "model": str(model),
                "data": {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl")},
                "base": {"dtype": "bfloat16"},
                "lora": {"r": 8, "scaling": 2.0, "target_modules": "all-linear", "seed": seed},
                "train": {
                    "steps": self.steps,
                    "batch_tokens": self.tokens,
                    "max_length": self.tokens,
                    "learning_rate": 1e-3,
                    "seed": seed,
                },
            }
        )


def write_job(job: Job, folder: Path) -> Path:
    """The rows into `folder`, and the cut model beside them; returns the model's folder."""
    for part, most in (("train", None), ("validation", job.validation_rows)):
        lines = (files("lorawise.cli") / "support" / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        (folder / f"{part}.jsonl").write_text("\n".join(lines[:most]) + "\n", encoding="utf-8")
    whole, cut = embedded_model(), folder / f"smollm2-{job.layers}-layers"
    with quiet_transformers():  # it warns of the layers that are left out
        AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=job.layers).save_pretrained(cut)
    AutoTokenizer.from_pretrained(whole).save_pretrained(cut)
    config = json.loads((cut / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == job.layers, "the cut model is as deep as was asked"
    return cut
