"""Peaks that others measured and published, with what is known of how they were run.

Bytes are torch's `max_memory_allocated` in GiB; `reserved` torch's own where it was published. `stack` is what differs
from a plain stack of today, each with its evidence:

    foreach        `adamw_torch` of that version
    shifted_loss   transformers before 4.50 copied the shifted logits
    upcast="norms" (fms, baseline) the published memory at rest has 16-bit embeddings, the growth with the batch is that
                   of fp32 hidden states
    upcast="all"   (RTX) the published memory after attaching the adapter has fp32 embeddings
    held_outputs   (RTX) the published memory after the first forward holds the logits, and the reserved memory of the
                   LoRA row one more segment of their size: a loop that keeps `outputs` until the next step's are there
"""

from dataclasses import dataclass, field, replace
from typing import Any

from lorawise.lora.config import LoraConfig
from lorawise.planning.memory import Stack, Workload
from lorawise.planning.memory.model import Method, Mode

FMS = "foundation-model-stack/fms-acceleration a100_80gb.csv @876e2ed: A100; torch 2.4.1, transformers 4.48.1"
RTX = "DaoyuanLi2816/can-i-finetune-this @053ce9e (RTX 4080, torch 2.6.0, transformers 5.8.1, peft 0.19.1, bnb 0.49.2)"

MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "max_position_embeddings": 32768,
}
QWEN_05 = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}
QWEN_15 = QWEN_05 | {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
}
LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
ARCHITECTURES = {"mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
NAMES = {"mistral": "mistralai/Mistral-7B-v0.1", "llama": "meta-llama/Llama-3.1-8B-Instruct"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration; `measured` and `reserved` in GiB, None where nothing was published."""

    name: str
    model: dict[str, Any]
    config: LoraConfig | None
    method: Method
    batch: int
    length: int
    mode: Mode = "frugal"
    stack: Stack = field(default_factory=Stack)
    measured: float | None = None
    reserved: float | None = None
    source: str = ""

    @property
    def workload(self) -> Workload:
        return Workload(tokens=self.batch * self.length, rows=self.batch, length=self.length, packed=False)

    @property
    def card(self) -> float:
        """GiB of the card it ran on: some estimators add a share of it."""
        return 16.0 if self.source == RTX else 80.0

    @property
    def model_name(self) -> str:
        size = self.model["hidden_size"]
        return NAMES.get(self.model["model_type"], f"Qwen/Qwen2.5-{'0.5' if size == 896 else '1.5'}B-Instruct")


ATTENTION = LoraConfig(r=16, target_modules="attention")
_OLD = Stack(optimizer="foreach", shifted_loss=True)
_DROPPED = replace(_OLD, dropout=0.1)
_MIXED = replace(_DROPPED, autocast=True)
_PAGED = Stack(optimizer="paged-8bit", held_outputs=True)
_PREPARED = replace(_PAGED, upcast="all")


def _fms(name: str, method: Method, batch: int, measured: float, stack: Stack) -> Row:
    config = None if method == "full" else ATTENTION
    return Row(
        name=f"Mistral-7B {name} {batch}×4096",
        model=MISTRAL,
        config=config,
        method=method,
        batch=batch,
        length=4096,
        stack=stack,
        measured=measured,
        source=FMS,
    )


def _rtx(
    size: str, method: Method, batch: int, length: int, measured: tuple[float, float], mode: Mode = "frugal"
) -> Row:
    return Row(
        name=f"Qwen2.5-{size}B {method} {batch}×{length}" + (", all kept" if mode == "speed" else ""),
        model=QWEN_05 if size == "0.5" else QWEN_15,
        config=ATTENTION,
        method=method,
        batch=batch,
        length=length,
        mode=mode,
        stack=_PAGED if method == "lora" else _PREPARED,
        measured=measured[0],
        reserved=measured[1],
        source=RTX,
    )


STRICT: tuple[Row, ...] = (
    _fms("full", "full", 4, 67.4602, _OLD),
    _fms("full", "full", 8, 67.4606, _OLD),
    _fms("LoRA", "lora", 4, 24.8706, _DROPPED),
    _fms("LoRA", "lora", 8, 36.0821, _DROPPED),
    _fms("QLoRA, baseline", "qlora", 4, 19.2498, replace(_MIXED, upcast="norms")),
    _fms("QLoRA, baseline", "qlora", 8, 34.4614, replace(_MIXED, upcast="norms")),
    _fms("QLoRA, accelerated", "qlora", 4, 15.2493, _DROPPED),
    _fms("QLoRA, accelerated", "qlora", 8, 26.4609, _DROPPED),
    _rtx("0.5", "lora", 1, 1024, (3.0324, 3.7949)),
    _rtx("0.5", "qlora", 1, 1024, (3.1158, 3.3027)),
    _rtx("0.5", "qlora", 1, 2048, (5.5220, 6.2812)),
    _rtx("1.5", "qlora", 1, 512, (2.7943, 2.9062)),
    _rtx("1.5", "qlora", 1, 1024, (4.0413, 4.3574)),
    _rtx("1.5", "qlora", 1, 1024, (9.3413, 9.5527), "speed"),
    _rtx("1.5", "qlora", 2, 1024, (6.5311, 6.8809)),
    _rtx("1.5", "qlora", 1, 2048, (6.5324, 7.0977)),
    _rtx("1.5", "qlora", 1, 4096, (11.5068, 13.5566)),
)
