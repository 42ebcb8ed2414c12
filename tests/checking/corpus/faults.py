"""Seeded faults: a sane setting with one thing wrong, and the rule that must tell it."""

import numpy as np
from numpy.typing import NDArray
from tests.checking.corpus.case import (
    Bend,
    Case,
    adapter,
    base,
    changed,
    metrics,
    notebook,
    pairs,
    rows,
    safetensors,
    trainer_state,
)
from tests.checking.corpus.sane import (
    AXOLOTL,
    CLASSIFIER,
    GPT2,
    LITGPT,
    LLAMA_FACTORY,
    MLX,
    QLORA,
    RUN,
    SWIFT,
    TORCHTUNE,
    TRAINER,
    TRL,
    UNSLOTH,
)

Array = NDArray[np.float32]
NAN = float("nan")


def script(expects: str, name: str, text: str, *changes: tuple[str, str]) -> Case:
    return Case(name=name, expects=expects, files={"train.py": changed(text, *changes)})


def config(expects: str, name: str, text: str, *changes: tuple[str, str]) -> Case:
    return Case(name=name, expects=expects, files={"config.yaml": changed(text, *changes)})


def run_file(expects: str, name: str, *changes: tuple[str, str], data: str = "", **more: str | bytes) -> Case:
    files = {"run.yaml": changed(RUN, *changes)} | ({"train.jsonl": data} if data else {}) | more
    return Case(name=name, expects=expects, files=files, look_at=("run.yaml",))


def run_folder(expects: str, name: str, text: str) -> Case:
    return Case(name=name, expects=expects, files={"run/metrics.jsonl": text, "run/run.yaml": RUN})


def stored(expects: str, name: str, tensors: dict[str, Array] | None = None, **fields: object) -> Case:
    return Case(name=name, expects=expects, files=adapter(tensors, **fields))


def at(step: int, **values: object) -> Bend:
    """Change a metrics line from one step on."""
    return lambda now, line: line | values if now >= step else line


def _zero_b(key: str, tensor: Array) -> Array:
    return np.zeros_like(tensor) if "lora_B" in key else tensor


def _nan(key: str, tensor: Array) -> Array:
    return np.full_like(tensor, np.nan) if "layers.1.self_attn.q_proj.lora_B" in key else tensor


def _loud(key: str, tensor: Array) -> Array:
    return tensor * 100 if "layers.2.self_attn.v_proj.lora_B" in key else tensor


def _thin(key: str, tensor: Array) -> Array:
    thin = tensor.copy()
    if "lora_B" in key:
        thin[:, 2:] = 0
    return thin


def _small(key: str, tensor: Array) -> Array:
    return tensor * 1e-3


SCALING = (
    config(
        "LW101", "rank raised, alpha left", AXOLOTL, ("lora_r: 16", "lora_r: 64"), ("lora_alpha: 32", "lora_alpha: 16")
    ),
    run_file(
        "LW101", "rank_pattern without alpha_pattern", ("  r: 16\n", "  r: 16\n  rank_pattern: {down_proj: 64}\n")
    ),
    script("LW102", "alpha left at PEFT's default", TRL, ("    lora_alpha=32,\n", ""), ("r=16", "r=32")),
    script("LW102", "alpha left at Unsloth's default", UNSLOTH, ("    lora_alpha=16,\n", ""), ("r=16", "r=64")),
    script("LW103", "a zero too many", TRL, ("lora_alpha=32", "lora_alpha=3200"), ("2e-4", "1e-6")),
    config("LW103", "alpha 1 at r 64", LLAMA_FACTORY, ("lora_rank: 8", "lora_rank: 64\nlora_alpha: 1")),
    run_file("LW103", "scaling 64", ("scaling: 2.0", "scaling: 64.0"), ("2.0e-4", "2.0e-6")),
    script(
        "LW104",
        "rsLoRA switched on",
        TRL,
        ("r=16,", "r=64,"),
        ("lora_alpha=32,", "lora_alpha=128,\n    use_rslora=True,"),
        ("2e-4", "2e-5"),
    ),
    script(
        "LW105", "4.0 with 5e-4", TRL, ("lora_alpha=32", "lora_alpha=64"), ("learning_rate=2e-4", "learning_rate=5e-4")
    ),
    run_file("LW105", "4.0 with 1e-3", ("scaling: 2.0", "scaling: 4.0"), ("2.0e-4", "1.0e-3")),
    config("LW106", "3e-3", AXOLOTL, ("learning_rate: 0.0002", "learning_rate: 0.003")),
    config(
        "LW106",
        "alpha 256 at 3e-4",
        TORCHTUNE,
        ("lora_rank: 8", "lora_rank: 128"),
        ("lora_alpha: 16", "lora_alpha: 256"),
    ),
    config("LW107", "alpha 1", SWIFT, ("lora_alpha: 32", "lora_alpha: 2")),
    config("LW108", "mlx, scale 20 at 2e-4", MLX, ("1e-5", "2e-4")),
    config("LW108", "mlx, alpha", MLX, ("scale: 20.0", "alpha: 16")),
    config(
        "LW109",
        "LoRA+ on scaling 4",
        AXOLOTL,
        ("lora_alpha: 32", "lora_alpha: 64\nloraplus_lr_ratio: 16"),
        ("0.0002", "0.00001"),
    ),
)

RANKS = (
    script("LW201", "r 64", TRL, ("r=16", "r=64"), ("lora_alpha=32", "lora_alpha=64")),
    script(
        "LW203",
        "r 32 on two",
        TRAINER,
        ('["q_proj", "k_proj", "v_proj", "o_proj"]', '["q_proj", "v_proj"]'),
        ("r=16", "r=32"),
    ),
    script("LW211", "q_porj", TRL, ('"q_proj"', '"q_porj"')),
    script(
        "LW204", "q_porj on a model of one's own", TRL, ('"q_proj"', '"q_porj"'), ("Qwen/Qwen2.5-7B", "acme/own-7b")
    ),
    config("LW204", "gateproj", AXOLOTL, ("lora_target_linear: true", "lora_target_modules: [q_proj, gate_porj]")),
    script("LW205", "Llama's names on GPT-2", GPT2, ('["c_attn", "c_proj"]', '["q_proj", "v_proj"]')),
    script(
        "LW211", "q_proj on Phi-3", TRAINER, ("meta-llama/Llama-3.1-8B-Instruct", "microsoft/Phi-3-mini-4k-instruct")
    ),
    config(
        "LW206",
        "two layers",
        AXOLOTL,
        ("lora_target_linear: true", "lora_target_linear: true\npeft_layers_to_transform: [0, 1]"),
    ),
    config("LW207", "gpt-oss's experts", LLAMA_FACTORY, ("meta-llama/Meta-Llama-3-8B-Instruct", "openai/gpt-oss-20b")),
    config(
        "LW208",
        "head of a tied model",
        AXOLOTL,
        ("NousResearch/Meta-Llama-3.1-8B", "google/gemma-2-2b"),
        ("adapter: lora", "adapter: lora\nlora_modules_to_save: [lm_head, embed_tokens]"),
    ),
    script("LW209", "q and v only", TRAINER, ('["q_proj", "k_proj", "v_proj", "o_proj"]', '["q_proj", "v_proj"]')),
    script(
        "LW210",
        "a regex without end",
        TRL,
        (
            '["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]',
            '"(?:.|..|...)+(?:.|..|...)+(?:.|..|...)+(?<!j)$"',
        ),
    ),
    script(
        "LW210",
        "a broken regex",
        TRL,
        ('["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]', 'r".*(q_proj"'),
    ),
    run_file(
        "LW211",
        "no such module in this base",
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "base"),
        ("all-linear", "[q_proj, gate_proj]"),
        **base({"model.layers.0.self_attn.q_proj.weight": np.zeros((64, 64), np.float32)}),
    ),
    run_file(
        "LW212",
        "r beyond this base's width",
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "base"),
        ("r: 16", "r: 32"),
        **base({"model.layers.0.self_attn.k_proj.weight": np.zeros((16, 64), np.float32)}),
    ),
    stored("LW202", "r beyond the width", pairs(80), r=80, lora_alpha=80),
)

TEMPLATE = (
    script(
        "LW301",
        "pad is eos, and masked",
        TRAINER,
        ('tokenizer.pad_token = "<|finetune_right_pad_id|>"', "tokenizer.pad_token = tokenizer.eos_token"),
    ),
    script(
        "LW301",
        "pad is eos",
        TRL,
        (
            "tokenizer = AutoTokenizer.from_pretrained(model_name)\n",
            "tokenizer = AutoTokenizer.from_pretrained(model_name)\ntokenizer.pad_token_id = tokenizer.eos_token_id\n",
        ),
    ),
    script("LW304", "two BOS", TRAINER, (", add_special_tokens=False", "")),
    script(
        "LW305",
        "no generation marks",
        TRL,
        ("    max_length=2048,", "    assistant_only_loss=True,"),
        (
            "peft_config = Lora",
            'tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"\npeft_config = Lora',
        ),
    ),
    script("LW306", "packing with SDPA", TRL, ("flash_attention_2", "sdpa")),
    config("LW306", "packing without flash", AXOLOTL, ("flash_attention: true\n", "")),
    config("LW306", "packing, not neat", LLAMA_FACTORY, ("cutoff_len: 2048", "cutoff_len: 2048\npacking: true")),
    config("LW308", "nothing held out", AXOLOTL, ("val_set_size: 0.05", "val_set_size: 0.0")),
    script(
        "LW314",
        "no labels",
        TRAINER,
        (
            "    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),\n",
            "    processing_class=tokenizer,\n",
        ),
    ),
    script(
        "LW315",
        "no padding",
        TRAINER,
        ("    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),\n", ""),
        ("    return tokenizer(text", "    # labels are made elsewhere\n    return tokenizer(text"),
    ),
    script(
        "LW316",
        "no validation split",
        TRAINER,
        ('["train"].train_test_split(test_size=0.05)', ""),
        ('tokenized["test"]', 'tokenized.get("validation")'),
    ),
    config("LW317", "held out, never looked at", LLAMA_FACTORY, ("eval_strategy: steps", 'eval_strategy: "no"')),
)

NUMBERS = (
    config("LW110", "alpha beyond any number", AXOLOTL, ("lora_alpha: 32", "lora_alpha: 1e400")),
    script("LW110", "a rank below 1", TRL, ("r=16", "r=-16")),
    config("LW110", "a rate of nan", LLAMA_FACTORY, ("learning_rate: 1.0e-4", "learning_rate: .nan")),
)

ROWS = (
    run_file("LW307", "rows are cut", ("learning_rate", "max_length: 64\n  learning_rate"), data=rows(60, words=400)),
    run_file("LW309", "validation is tiny", data=rows(60)),
    run_file(
        "LW310",
        "validation leaks",
        ("validation: 0.2", "validation: held_out.jsonl"),
        data=rows(120),
        **{"held_out.jsonl": rows(40, first=100)},
    ),
    Case(name="rows repeat", expects="LW311", files={"rows.jsonl": rows(40) + rows(20)}),
    run_file(
        "LW312",
        "fewer tokens than parameters",
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "base"),
        data=rows(200),
        **base({f"model.layers.{i}.self_attn.q_proj.weight": np.zeros((256, 256), np.float32) for i in range(8)}),
    ),
    Case(name="broken rows", expects="LW313", files={"rows.jsonl": rows(30) + '{"messages": [\n' + rows(3, first=50)}),
    Case(
        name="a row without an answer",
        expects="LW313",
        files={"rows.jsonl": rows(30) + '{"messages": [{"role": "user", "content": "hm"}]}\n'},
    ),
    Case(
        name="BOS as text",
        expects="LW318",
        files={"rows.jsonl": "".join(f'{{"text": "<|begin_of_text|>One {i}"}}\n' for i in range(40))},
    ),
    Case(name="two formats", expects="LW319", files={"rows.jsonl": rows(30) + '{"text": "plain"}\n'}),
)

TRAINING = (
    script("LW401", "evaluation_strategy", TRL, ("eval_strategy", "evaluation_strategy")),
    script("LW401", "max_seq_length", TRL, ("max_length=2048", "max_seq_length=2048")),
    script("LW401", "warmup_ratio", TRL, ("warmup_steps=20", "warmup_ratio=0.1")),
    script("LW402", "torch_dtype", TRL, ("dtype=torch.bfloat16", "torch_dtype=torch.bfloat16")),
    script("LW403", "fp16 with a bf16 model", TRL, ("    bf16=True", "    fp16=True")),
    script("LW403", "fp16 with Llama 3.1", TRAINER, ("    bf16=True", "    fp16=True")),
    script("LW407", "TRL's default rate", TRL, ("    learning_rate=2e-4,\n", "")),
    config("LW407", "1e-5", SWIFT, ("learning_rate: 1e-4", "learning_rate: 1e-5")),
    script("LW408", "warm-up longer than the run", QLORA, ("warmup_steps=15", "warmup_steps=1000")),
    config("LW408", "warm-up for 60 %", LLAMA_FACTORY, ("warmup_ratio: 0.1", "warmup_ratio: 0.6")),
    script("LW409", "save out of step", TRL, ("save_steps=100", "save_steps=70")),
    config(
        "LW409",
        "save by epoch",
        LLAMA_FACTORY,
        ("save_steps: 500", "save_strategy: epoch\nload_best_model_at_end: true"),
    ),
    config(
        "LW409",
        "saved by steps, by default",
        LLAMA_FACTORY,
        ("save_steps: 500\n", "load_best_model_at_end: true\n"),
        ("eval_strategy: steps\neval_steps: 500", "eval_strategy: epoch"),
    ),
    config(
        "LW409",
        "best of no evaluation",
        LLAMA_FACTORY,
        ("eval_strategy: steps\neval_steps: 500", "load_best_model_at_end: true"),
    ),
    config("LW410", "batch 512", LLAMA_FACTORY, ("gradient_accumulation_steps: 8", "gradient_accumulation_steps: 512")),
    script("LW411", "frozen inputs", TRL, ('"use_reentrant": False', '"use_reentrant": True')),
    script(
        "LW412",
        "float16 compute",
        QLORA,
        ("bnb_4bit_compute_dtype=torch.bfloat16", "bnb_4bit_compute_dtype=torch.float16"),
    ),
    script("LW413", "tokenizer=", TRL, ("processing_class=tokenizer", "tokenizer=tokenizer")),
    script(
        "LW413",
        "max_seq_length of SFTTrainer",
        TRL,
        ("    peft_config=peft_config,", "    peft_config=peft_config,\n    max_seq_length=2048,"),
    ),
    script("LW414", "fp4", QLORA, ('    bnb_4bit_quant_type="nf4",\n', "")),
    script(
        "LW415",
        "a quantised base without adapter",
        QLORA,
        ("from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training\n", ""),
        ("model = prepare_model_for_kbit_training(model)\n", ""),
        ('config = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")\n', ""),
        ("model = get_peft_model(model, config)\n", ""),
    ),
    script("LW416", "peft_config forgotten", TRL, ("    peft_config=peft_config,\n", "")),
    Case(
        name="evaluation_strategy in a notebook",
        expects="LW401",
        files={"train.ipynb": notebook("!pip install trl", changed(TRL, ("eval_strategy", "evaluation_strategy")))},
    ),
    run_file("LW006", "unknown key", ("learning_rate", "learning_rat")),
    script("LW002", "not Python", CLASSIFIER, ("import LoraConfig, get_peft_model", "import LoraConfig, (")),
    config("LW204", "torchtune, v_porj", TORCHTUNE, ("'v_proj'", "'v_porj'")),
    config("LW410", "LitGPT, batch 1024", LITGPT, ("global_batch_size: 8", "global_batch_size: 1024")),
)

RUNS = (
    run_folder("LW501", "NaN", metrics(bend=at(30, loss=None))),
    Case(
        name="it diverged, and stopped before a line was written",
        expects="LW501",
        files={
            "run/metrics.jsonl": metrics(total=8, scores=(1.6,)),
            "run/run.yaml": RUN,
            "run/facts.json": '{"ended": {"reason": "diverged", "step": 8}}',
        },
    ),
    run_folder("LW502", "a spike", metrics(bend=lambda step, line: line | ({"loss": 9.0} if step == 33 else {}))),
    run_folder(
        "LW503",
        "flat",
        metrics(bend=lambda step, line: line | {"loss": 2.0 + 0.005 * (step % 3)}, scores=(2.0, 2.0, 2.0)),
    ),
    run_folder("LW504", "plateau", metrics(scores=(2.0, 1.5, 1.2, 1.1, 1.1, 1.0998, 1.0996, 1.0995, 1.0995, 1.0995))),
    run_folder("LW505", "overfit", metrics(scores=(1.5, 1.2, 1.3, 1.6))),
    run_folder("LW506", "no gradient", metrics(bend=at(0, gradient_norm=0.0))),
    run_folder("LW507", "warm-up never ends", metrics(bend=lambda step, line: line | {"learning_rate": 1e-6 * step})),
    run_folder("LW508", "throughput collapses", metrics(bend=at(40, tokens_per_second=200.0))),
    run_folder(
        "LW509",
        "the rate jumps",
        metrics(
            bend=lambda step, line: (
                line | ({"learning_rate": 2e-4 - 3e-6 * step} if step < 50 else {"learning_rate": 2e-4})
            )
        ),
    ),
    Case(
        name="NaN in Trainer's state",
        expects="LW501",
        files={"checkpoint-60/trainer_state.json": trainer_state(bend=at(20, loss=NAN))},
    ),
    Case(
        name="zero gradient in Trainer's state",
        expects="LW506",
        files={"checkpoint-60/trainer_state.json": trainer_state(bend=at(0, grad_norm=0.0))},
    ),
)

ADAPTERS = (
    stored("LW601", "never trained", pairs(change=_zero_b)),
    stored("LW602", "NaN in B", pairs(change=_nan)),
    Case(
        name="lost in bf16",
        expects="LW603",
        base="base",
        look_at=("adapter",),
        files=adapter(pairs(change=_small))
        | {
            "base/model.safetensors": safetensors(
                {
                    f"model.layers.{i}.self_attn.{n}.weight": np.random.default_rng(i)
                    .standard_normal((64, 64))
                    .astype(np.float32)
                    for i in range(4)
                    for n in ("q_proj", "v_proj")
                }
            )
        },
    ),
    stored("LW604", "two of sixteen directions", pairs(16, change=_thin), r=16, lora_alpha=16),
    stored("LW605", "one layer carries it", pairs(change=_loud)),
    stored(
        "LW606",
        "embeddings saved",
        pairs() | {"base_model.model.model.embed_tokens.weight": np.ones((200, 64), np.float32)},
    ),
    stored("LW607", "half a pair", {k: v for k, v in pairs().items() if "layers.3.self_attn.v_proj.lora_B" not in k}),
    stored("LW607", "no prefix", {k.removeprefix("base_model.model."): v for k, v in pairs().items()}),
    stored(
        "LW607",
        "torch.compile's wrapper",
        {k.replace("model.model.", "model._orig_mod.model."): v for k, v in pairs().items()},
    ),
    stored("LW607", "targets of another adapter", target_modules=["gate_proj"]),
    stored("LW608", "r is not the tensors'", r=8, lora_alpha=16),
    stored("LW609", "alpha_pattern for vLLM", alpha_pattern={"q_proj": 16}),
    stored("LW609", "DoRA for vLLM", use_dora=True),
    stored("LW610", "rsLoRA for llama.cpp", use_rslora=True),
    stored("LW612", "rank_pattern for SGLang", rank_pattern={"q_proj": 4}),
    stored("LW611", "no base named", base_model_name_or_path=None),
    Case(
        name="torn tensors",
        expects="LW001",
        files=adapter() | {"adapter/adapter_model.safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{}"},
        look_at=("adapter",),
    ),
)

FAULTS = (*SCALING, *NUMBERS, *RANKS, *TEMPLATE, *ROWS, *TRAINING, *RUNS, *ADAPTERS)
