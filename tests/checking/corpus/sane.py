# ruff: noqa: E501 - one case a line, however long
"""Settings nobody should be stopped for, in the manner of the tools' own published examples."""

from tests.checking.corpus.case import Case, adapter, changed, metrics, notebook, pairs, rows, trainer_state

TRL = """\
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

model_name = "Qwen/Qwen2.5-7B-Instruct"
dataset = load_dataset("json", data_files="rows.jsonl", split="train").train_test_split(test_size=0.05)
tokenizer = AutoTokenizer.from_pretrained(model_name)
model = AutoModelForCausalLM.from_pretrained(
    model_name,
    dtype=torch.bfloat16,
    attn_implementation="flash_attention_2",
)
peft_config = LoraConfig(
    r=16,
    lora_alpha=32,
    lora_dropout=0.05,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    task_type="CAUSAL_LM",
)
args = SFTConfig(
    output_dir="out",
    learning_rate=2e-4,
    num_train_epochs=2,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    lr_scheduler_type="cosine",
    warmup_steps=20,
    max_length=2048,
    packing=True,
    bf16=True,
    eval_strategy="steps",
    eval_steps=50,
    save_strategy="steps",
    save_steps=100,
    load_best_model_at_end=True,
    gradient_checkpointing=True,
    gradient_checkpointing_kwargs={"use_reentrant": False},
)
trainer = SFTTrainer(
    model=model,
    args=args,
    train_dataset=dataset["train"],
    eval_dataset=dataset["test"],
    processing_class=tokenizer,
    peft_config=peft_config,
)
trainer.train()
"""

TRAINER = """\
from datasets import load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

model_name = "meta-llama/Llama-3.1-8B-Instruct"
tokenizer = AutoTokenizer.from_pretrained(model_name)
tokenizer.pad_token = "<|finetune_right_pad_id|>"
model = AutoModelForCausalLM.from_pretrained(model_name, dtype="auto", device_map="auto")
config = LoraConfig(
    task_type=TaskType.CAUSAL_LM,
    r=16,
    lora_alpha=32,
    lora_dropout=0.05,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    bias="none",
)
model = get_peft_model(model, config)
data = load_dataset("json", data_files="rows.jsonl")["train"].train_test_split(test_size=0.05)


def tokenize(example):
    text = tokenizer.apply_chat_template(example["messages"], tokenize=False)
    return tokenizer(text, truncation=True, max_length=2048, add_special_tokens=False)


tokenized = data.map(tokenize, remove_columns=["messages"])
args = TrainingArguments(
    output_dir="out",
    num_train_epochs=3,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    learning_rate=2e-4,
    warmup_steps=100,
    save_strategy="epoch",
    eval_strategy="epoch",
    bf16=True,
)
trainer = Trainer(
    model=model,
    args=args,
    train_dataset=tokenized["train"],
    eval_dataset=tokenized["test"],
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
"""

QLORA = """\
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainingArguments
from trl import SFTTrainer

bnb = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype=torch.bfloat16,
    bnb_4bit_use_double_quant=True,
)
model = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.3", quantization_config=bnb, device_map="auto")
model = prepare_model_for_kbit_training(model)
config = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, config)
args = TrainingArguments(
    output_dir="out", learning_rate=2e-4, max_steps=500, warmup_steps=15, per_device_train_batch_size=4, bf16=True
)
SFTTrainer(model=model, args=args, train_dataset=train, eval_dataset=held_out).train()
"""

UNSLOTH = """\
from unsloth import FastLanguageModel
from trl import SFTConfig, SFTTrainer

model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="unsloth/Meta-Llama-3.1-8B-bnb-4bit", max_seq_length=2048, load_in_4bit=True
)
model = FastLanguageModel.get_peft_model(
    model,
    r=16,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    lora_alpha=16,
    lora_dropout=0,
    bias="none",
    use_gradient_checkpointing="unsloth",
    use_rslora=False,
)
trainer = SFTTrainer(
    model=model,
    tokenizer=tokenizer,
    train_dataset=dataset,
    dataset_text_field="text",
    max_seq_length=2048,
    args=SFTConfig(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        warmup_steps=5,
        max_steps=60,
        learning_rate=2e-4,
        optim="adamw_8bit",
        lr_scheduler_type="linear",
    ),
)
trainer.train()
"""

DPO = """\
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

config = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
args = DPOConfig(output_dir="out", learning_rate=5e-6, per_device_train_batch_size=2, beta=0.1, bf16=True)
DPOTrainer(model="Qwen/Qwen2.5-1.5B-Instruct", args=args, train_dataset=pairs, peft_config=config).train()
"""

GPT2 = """\
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("openai-community/gpt2")
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True))
"""

CLASSIFIER = """\
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

model = AutoModelForSequenceClassification.from_pretrained("FacebookAI/roberta-base", num_labels=3)
model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"]))
rows = rows.map(lambda row: tokenizer(row["text"], truncation=True))
args = TrainingArguments(output_dir="out", learning_rate=3e-4, per_device_train_batch_size=16, num_train_epochs=5)
Trainer(model=model, args=args, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)).train()
"""

ARGUMENTS = """\
import argparse

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainingArguments

parser = argparse.ArgumentParser()
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--alpha", type=int)
parser.add_argument("--model")
options = parser.parse_args()
kwargs = vars(options)
model = AutoModelForCausalLM.from_pretrained(options.model)
config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=options.targets)
model = get_peft_model(model, config)
training = TrainingArguments(output_dir="out", **kwargs)
"""

WITHOUT_REGRET = """\
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

RANK = 32
SETTINGS = dict(learning_rate=5e-4, per_device_train_batch_size=32, gradient_accumulation_steps=4)
config = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear")
args = SFTConfig(output_dir="out", num_train_epochs=1, **SETTINGS)
SFTTrainer(model="meta-llama/Llama-3.1-8B", args=args, train_dataset=train, eval_dataset=test, peft_config=config).train()
"""

RUN = """\
model: HuggingFaceTB/SmolLM2-135M-Instruct
data:
  train: train.jsonl
  validation: 0.2
task: chat
lora:
  r: 16
  scaling: 2.0
  target_modules: all-linear
train:
  epochs: 3
  learning_rate: 2.0e-4
  batch_tokens: 4096
"""

AXOLOTL = """\
base_model: NousResearch/Meta-Llama-3.1-8B
load_in_8bit: true
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
val_set_size: 0.05
output_dir: ./outputs/lora-out
adapter: lora
sequence_len: 4096
sample_packing: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
gradient_checkpointing: true
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
"""

LLAMA_FACTORY = """\
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
### dataset
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
### output
output_dir: saves/llama3-8b/lora/sft
save_steps: 500
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
val_size: 0.1
eval_strategy: steps
eval_steps: 500
"""

TORCHTUNE = """\
output_dir: /tmp/torchtune/llama3_1_8B/lora_single_device
model:
  _component_: torchtune.models.llama3_1.lora_llama3_1_8b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  apply_lora_to_output: False
  lora_rank: 8
  lora_alpha: 16
  lora_dropout: 0.0
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  max_seq_len: null
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  packed: False
seed: null
batch_size: 2
optimizer:
  _component_: torch.optim.AdamW
  weight_decay: 0.01
  lr: 3e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
epochs: 1
max_steps_per_epoch: null
gradient_accumulation_steps: 8
dtype: bf16
"""

LITGPT = """\
checkpoint_dir: checkpoints/TinyLlama/TinyLlama-1.1B-Chat-v1.0
out_dir: out/finetune/lora-tiny-llama
precision: bf16-true
devices: 1
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_query: true
lora_key: true
lora_value: true
lora_projection: true
lora_mlp: true
lora_head: true
data:
  class_path: litgpt.data.Alpaca2k
  init_args:
    mask_prompt: false
    val_split_fraction: 0.05
train:
  save_interval: 800
  global_batch_size: 8
  micro_batch_size: 8
  lr_warmup_steps: 10
  epochs: 3
  max_seq_length: 512
optimizer:
  class_path: torch.optim.AdamW
  init_args:
    lr: 0.0002
"""

SWIFT = """\
model: Qwen/Qwen2.5-7B-Instruct
train_type: lora
dataset: AI-ModelScope/alpaca-gpt4-data-en#500
torch_dtype: bfloat16
num_train_epochs: 1
per_device_train_batch_size: 1
learning_rate: 1e-4
lora_rank: 8
lora_alpha: 32
target_modules: all-linear
gradient_accumulation_steps: 16
split_dataset_ratio: 0.01
eval_steps: 50
save_steps: 50
max_length: 2048
warmup_ratio: 0.05
"""

MLX = """\
model: mlx-community/Llama-3.2-3B-Instruct-4bit
train: true
fine_tune_type: lora
data: data
seed: 0
num_layers: 16
batch_size: 4
iters: 1000
learning_rate: 1e-5
steps_per_eval: 200
adapter_path: adapters
max_seq_length: 2048
grad_checkpoint: false
lora_parameters:
  rank: 8
  dropout: 0.0
  scale: 20.0
"""


def script(name: str, text: str) -> Case:
    return Case(name=name, files={"train.py": text})


def config(name: str, text: str, file: str = "config.yaml") -> Case:
    return Case(name=name, files={file: text})


SANE = (
    script("TRL, SFT with packing", TRL),
    script("transformers Trainer", TRAINER),
    script("QLoRA in the paper's manner", QLORA),
    script("Unsloth notebook as a script", UNSLOTH),
    script("TRL, DPO", DPO),
    script("GPT-2", GPT2),
    script("classifier", CLASSIFIER),
    script("values from the command line", ARGUMENTS),
    script("LoRA Without Regret", WITHOUT_REGRET),
    Case(name="TRL in a notebook", files={"train.ipynb": notebook("!pip install trl\n%env A=b", TRL)}),
    Case(name="run file with rows", files={"run.yaml": RUN, "train.jsonl": rows(200, words=400)}),
    config("run file alone", RUN, "run.yaml"),
    config(
        "run file, style",
        changed(RUN, ("task: chat", "task: style"), ("2.0\n", "1.0\n"), ("r: 16", "r: 8")),
        "run.yaml",
    ),
    config("Axolotl, LoRA 8B", AXOLOTL),
    config(
        "Axolotl, 32/16 as its examples",
        changed(AXOLOTL, ("lora_r: 16", "lora_r: 32"), ("lora_alpha: 32", "lora_alpha: 16")),
    ),
    config("Axolotl, QLoRA", changed(AXOLOTL, ("load_in_8bit", "load_in_4bit"), ("adapter: lora", "adapter: qlora"))),
    config("LLaMA-Factory, SFT", LLAMA_FACTORY),
    config("LLaMA-Factory, QLoRA", LLAMA_FACTORY + "quantization_bit: 4\n"),
    config("LLaMA-Factory, DPO", changed(LLAMA_FACTORY, ("stage: sft", "stage: dpo"), ("1.0e-4", "5.0e-6"))),
    config("torchtune, 8B", TORCHTUNE),
    config("torchtune, 64/128", changed(TORCHTUNE, ("rank: 8", "rank: 32"), ("alpha: 16", "alpha: 64"))),
    config("LitGPT, TinyLlama", LITGPT),
    config("LitGPT, QLoRA", LITGPT + "quantize: bnb.nf4\n"),
    config("ms-swift, SFT", SWIFT),
    config("mlx-lm, defaults", MLX),
    config("mlx-lm, all layers", changed(MLX, ("num_layers: 16", "num_layers: -1"), ("20.0", "2.0"), ("1e-5", "1e-4"))),
    Case(name="run folder", files={"run/metrics.jsonl": metrics(), "run/run.yaml": RUN}),
    Case(name="Trainer's state", files={"checkpoint-60/trainer_state.json": trainer_state()}),
    Case(name="adapter as PEFT writes it", files=adapter()),
    Case(name="adapter with rsLoRA", files=adapter(pairs(8), r=8, lora_alpha=8, use_rslora=True)),
    Case(name="chat rows", files={"rows.jsonl": rows(100)}),
    Case(
        name="alpaca rows",
        files={
            "rows.jsonl": "".join(f'{{"instruction": "Say {i}.", "input": "", "output": "{i}"}}\n' for i in range(60))
        },
    ),
)
