"""The closed form against the trace, which runs the real step: over methods, trainers, modes, losses and families."""

from typing import Any

import pytest
from tests.planning.shapes import config_of, facts_of

from lorawise.base.errors import ConfigError
from lorawise.lora.config import LoraConfig
from lorawise.planning.memory import Stack, Workload, predict
from lorawise.training.trace import trace

LLAMA = ("llama", "LlamaForCausalLM")
PACKED = Workload(tokens=3072, length=1024)
PADDED = Workload(tokens=3072, rows=3, length=1024, packed=False)
SMALL_BATCH = Workload(tokens=256, packed=False)
ALL, QV = LoraConfig(r=16), LoraConfig(r=8, target_modules="qv")
PREPARED = Stack(upcast="all", held_outputs=True, optimizer="paged-8bit")

CASES: dict[str, dict[str, Any]] = {
    "ours, every activation kept": {"workload": PACKED, "mode": "speed"},
    "ours, every second layer": {"workload": PACKED, "mode": "balanced"},
    "ours, none kept": {"workload": PACKED, "mode": "frugal"},
    "ours, a few tokens": {"workload": Workload(tokens=64), "mode": "frugal"},
    "ours, q and v of three slots": {"workload": PACKED, "config": QV, "slots": 3},
    "ours, padded": {"workload": PADDED},
    "ours, uneven rows": {"workload": Workload(tokens=3072, rows=3, length=1024, packed=False, filler=True)},
    "ours, 4-bit": {"workload": PACKED, "method": "qlora", "mode": "frugal"},
    "ours, 4-bit, every activation kept": {"workload": PACKED, "method": "qlora"},
    "ours, 4-bit, q and v of two slots": {"workload": PACKED, "method": "qlora", "config": QV, "slots": 2},
    "stock, every activation kept": {"workload": PADDED, "trainer": "hf"},
    "stock, none kept, accumulated": {
        "workload": Workload(tokens=3072, rows=3, length=1024, packed=False, accumulate=True),
        "mode": "frugal",
        "trainer": "hf",
    },
    "stock, dropout and an old loss": {
        "workload": PADDED,
        "trainer": "hf",
        "config": QV,
        "stack": Stack(dropout=0.1, shifted_loss=True),
    },
    "stock, outputs held": {"workload": PADDED, "trainer": "hf", "stack": Stack(held_outputs=True)},
    "stock, autocast": {"workload": PADDED, "trainer": "hf", "stack": Stack(autocast=True)},
    "stock, 4-bit, prepared": {"workload": PADDED, "method": "qlora", "trainer": "hf", "stack": PREPARED},
    "stock, 4-bit, prepared, autocast": {
        "workload": PADDED,
        "method": "qlora",
        "trainer": "hf",
        "stack": Stack(upcast="all", autocast=True),
    },
    "stock, 4-bit, fp32 norms, autocast": {
        "workload": PADDED,
        "method": "qlora",
        "trainer": "hf",
        "stack": Stack(upcast="norms", autocast=True),
    },
    "full": {"workload": PADDED, "method": "full", "trainer": "hf", "config": None},
    "full, a few tokens, foreach": {
        "workload": SMALL_BATCH,
        "method": "full",
        "trainer": "hf",
        "config": None,
        "mode": "frugal",
        "stack": Stack(optimizer="foreach"),
    },
}


def errors(family: str, architecture: str, case: dict[str, Any], **own: Any) -> tuple[float, float]:
    """Relative error of allocated and of reserved."""
    settings = {"config": ALL, **case}
    config = settings.pop("config")
    model = config_of(family, **own)
    predicted = predict(facts_of(model, architecture), config, **settings)
    traced = trace(model, config, **settings).memory
    return predicted.allocated / traced.allocated - 1, predicted.reserved / traced.reserved - 1


@pytest.mark.parametrize("name", CASES)
def test_a_llama_is_within_one_percent_of_its_trace(name: str) -> None:
    allocated, reserved = errors(*LLAMA, CASES[name])
    assert abs(allocated) <= 0.01
    assert abs(reserved) <= 0.10


FAMILIES = {
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 64}),
    "gemma3_text": ("Gemma3ForCausalLM", {"head_dim": 64}),
    "phi3": ("Phi3ForCausalLM", {}),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "granite": ("GraniteForCausalLM", {}),
    "smollm3": ("SmolLM3ForCausalLM", {}),
    "cohere": ("CohereForCausalLM", {}),
}


@pytest.mark.parametrize("trainer", ["lorawise", "hf"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_dense_families_are_within_one_percent_too(family: str, trainer: str) -> None:
    architecture, own = FAMILIES[family]
    allocated, _ = errors(family, architecture, {"workload": PADDED, "trainer": trainer}, **own)
    assert abs(allocated) <= 0.01


OLDER = {
    "gpt2": (
        "GPT2LMHeadModel",
        {"num_key_value_heads": 8, "n_inner": 1536, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", {"num_key_value_heads": 8}),
    "opt": ("OPTForCausalLM", {"ffn_dim": 1536, "word_embed_proj_dim": 512, "dropout": 0.0, "num_key_value_heads": 8}),
    "falcon": ("FalconForCausalLM", {"new_decoder_architecture": False, "multi_query": True}),
    "gemma2": ("Gemma2ForCausalLM", {"head_dim": 64, "query_pre_attn_scalar": 64}),
}


@pytest.mark.parametrize("trainer", ["lorawise", "hf"])
@pytest.mark.parametrize("family", OLDER)
def test_older_layouts_and_softcaps_are_within_three_percent(family: str, trainer: str) -> None:
    architecture, own = OLDER[family]
    allocated, _ = errors(family, architecture, {"workload": PADDED, "trainer": trainer}, **own)
    assert abs(allocated) <= 0.03


WHOLE = {
    "the embedding": {"modules_to_save": ("embed_tokens",)},
    "the head": {"modules_to_save": ("lm_head",)},
    "both": {"modules_to_save": ("lm_head", "embed_tokens")},
    "the last norm": {"modules_to_save": ("norm",)},
    "the down projections": {"target_modules": "qv", "modules_to_save": ("down_proj",)},
    "biases": {"bias": "all"},
}


@pytest.mark.parametrize("case", [{"workload": PACKED}, {"workload": Workload(tokens=256), "mode": "frugal"}])
@pytest.mark.parametrize("what", WHOLE)
def test_what_is_trained_in_full_beside_the_adapter_is_counted(what: str, case: dict[str, Any]) -> None:
    """Each takes from 4 to 56 % of the whole here."""
    config = LoraConfig(r=8, **WHOLE[what])  # type: ignore[arg-type]
    allocated, reserved = errors("qwen2", "Qwen2ForCausalLM", {"config": config, **case})
    assert abs(allocated) <= 0.005
    if case["workload"] is PACKED:  # a smaller step is a handful of segments
        assert abs(reserved) <= 0.10


def test_a_stock_trace_refuses_what_it_would_leave_out() -> None:
    config = LoraConfig(r=8, modules_to_save=("lm_head",))
    with pytest.raises(ConfigError, match="modules_to_save"):
        trace(config_of("llama"), config, workload=PADDED, trainer="hf")


@pytest.mark.parametrize("mode", ["speed", "frugal"])
@pytest.mark.parametrize("length", [64, 1024])
def test_packed_rows_under_a_softcap_are_within_one_percent(length: int, mode: str) -> None:
    """Gemma 2 caps its scores, which are made block by block, and its logits, whose tanh is kept."""
    own = {"head_dim": 64, "query_pre_attn_scalar": 64}
    case = {"workload": Workload(tokens=2048, length=length), "mode": mode}
    allocated, _ = errors("gemma2", "Gemma2ForCausalLM", case, **own)
    assert abs(allocated) <= 0.01


EXPERTS = {
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512, "head_dim": 64},
    ),
}


@pytest.mark.parametrize("trainer", ["lorawise", "hf"])
@pytest.mark.parametrize("family", EXPERTS)
def test_experts_are_within_three_percent(family: str, trainer: str) -> None:
    architecture, own = EXPERTS[family]
    case = {"config": LoraConfig(r=16, target_modules="attention"), "workload": PADDED, "trainer": trainer}
    allocated, _ = errors(family, architecture, case, **own)
    assert abs(allocated) <= 0.03


@pytest.mark.parametrize("mode", ["speed", "frugal"])
@pytest.mark.parametrize("targets", ["attention", "mlp", "all-linear"])
@pytest.mark.parametrize("family", EXPERTS)
def test_adapted_experts_are_within_one_percent(family: str, targets: str, mode: str) -> None:
    """Every token's row once for each expert it is sent to, however routers spread them."""
    architecture, own = EXPERTS[family]
    workload = Workload(tokens=16_384, length=512)
    case = {"config": LoraConfig(r=8, target_modules=targets), "workload": workload, "mode": mode}
    allocated, _ = errors(family, architecture, case, **own)
    assert abs(allocated) <= 0.01


def test_what_a_gate_that_clamps_keeps_is_counted() -> None:
    """gpt-oss keeps six widths a row where others keep three, in each of eight layers."""
    own = {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 64, "num_hidden_layers": 8}
    workload = Workload(tokens=8192, length=512)
    case = {"config": LoraConfig(r=8, target_modules="attention"), "workload": workload, "mode": "speed"}
    allocated, _ = errors("gpt_oss", "GptOssForCausalLM", case, **own)
    assert abs(allocated) <= 0.02


def test_adapted_experts_of_the_stock_stack_are_refused() -> None:
    architecture, own = EXPERTS["mixtral"]
    facts = facts_of(config_of("mixtral", **own), architecture)
    with pytest.raises(ConfigError, match="target_parameters"):
        predict(facts, LoraConfig(r=8), trainer="hf", workload=PADDED)


def test_what_the_middle_layers_keep_is_counted_without_a_walk() -> None:
    """Twenty layers, of which the closed form walks eight."""
    full = {"method": "full", "config": None, "trainer": "hf", "workload": PADDED}
    ours = [{"workload": PACKED, "mode": mode} for mode in ("speed", "balanced", "frugal")]
    for case in (*ours, full, {**full, "workload": SMALL_BATCH, "mode": "frugal"}):
        allocated, _ = errors(*LLAMA, case, num_hidden_layers=20, intermediate_size=1024, vocab_size=500)
        assert abs(allocated) <= 0.01
