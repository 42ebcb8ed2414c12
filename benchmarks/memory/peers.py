"""Other estimators, asked through their own code for the same configuration. GiB, or why there is no number.

None of them is a dependency of lorawise: `pip install --no-deps canifinetune ftuneai fitscout`, where they are wanted.
`hf-mem` reads a hub repository's header and tells weights and KV cache alone; it cannot be asked offline.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.memory.rows import Row

GIB = 2**30
GB = 1e9


def accelerate(row: Row) -> float:
    """`accelerate estimate-memory`: its own functions on a meta model; LoRA is not a thing it knows."""
    import torch
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(row.model)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    total, _ = calculate_maximum_sizes(model)
    return float(max(estimate_training_usage(total, "float16").values())) / GIB


def canifinetune(row: Row) -> float:
    from canifinetune.estimator.memory import EstimateRequest, estimate

    keys = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
    )
    spec: dict[str, Any] = {key: row.model[key] for key in keys}
    spec["tie_word_embeddings"] = bool(row.model.get("tie_word_embeddings", False))
    spec["family"] = row.model["model_type"]
    found = estimate(
        EstimateRequest(
            model_id=row.model_name,
            override=spec,
            use_network=False,
            local_files_only=True,
            method=row.method,
            gpu_vram_gb=row.card,
            seq_len=row.length,
            micro_batch_size=row.batch,
            lora_rank=row.config.r if row.config else 16,
            lora_target_scope="attention"
            if row.config is None or row.config.target_modules != "all-linear"
            else "all_linear",
            gradient_checkpointing=row.mode == "frugal",
            optimizer="paged_adamw_8bit" if row.stack.optimizer == "paged-8bit" else "adamw_torch",
            quantization="nf4_double_quant" if row.method == "qlora" else "none",
        )
    )
    return float(found.memory.total_estimated_gb - found.memory.safety_margin_gb)


def ftuneai(row: Row) -> float:
    from ftuneai import Estimator

    names = {"mistral": "mistralai/Mistral-7B-v0.3", "llama": "meta-llama/Llama-3.1-8B"}
    model = names.get(row.model["model_type"])
    if model is None:
        raise LookupError(f"it does not know {row.model_name}")
    return float(
        Estimator(
            model=model,
            method=row.method,
            quantization="4bit" if row.method == "qlora" else "none",
            batch_size=row.batch,
            seq_length=row.length,
            gradient_checkpointing=row.mode == "frugal",
            lora_rank=row.config.r if row.config else 16,
            lora_target="attention_all"
            if row.config is None or row.config.target_modules != "all-linear"
            else "all_linear",
            flash_attention=True,
        )
        .estimate_memory()
        .total_gb
    )


def fitscout(row: Row) -> float:
    from fitscout.memory.estimator import estimate_memory
    from fitscout.model.profile import ModelProfile

    from benchmarks.memory.facts import facts_of

    facts = facts_of(row.model)
    profile = ModelProfile(
        params=facts.parameters,
        num_layers=facts.num_layers,
        hidden_size=facts.hidden_size,
        num_attention_heads=facts.num_heads,
        num_kv_heads=facts.num_kv_heads,
        intermediate_size=facts.intermediate_size,
        vocab_size=facts.vocab_size,
        tie_word_embeddings=facts.tied,
    )
    found = estimate_memory(
        profile,
        method=row.method,
        micro_batch=row.batch,
        seq_len=row.length,
        grad_ckpt=row.mode == "frugal",
        opt_8bit=row.stack.optimizer == "paged-8bit",
        lora_rank=row.config.r if row.config else 16,
    )
    return float(found.total_gb)


PEERS: dict[str, Callable[[Row], float]] = {
    "accelerate": accelerate,
    "canifinetune": canifinetune,
    "ftuneai": ftuneai,
    "fitscout": fitscout,
}


def asked(name: str, row: Row) -> float | str:
    """One estimator's answer, or why there is none."""
    try:
        return PEERS[name](row)
    except ImportError as problem:
        return f"not installed ({problem.name})"
    except (LookupError, ValueError, TypeError, AttributeError) as problem:
        return f"{type(problem).__name__}: {problem}"


def peer_versions() -> dict[str, str]:
    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
