"""One arm of `benchmarks.moe` in a process of its own: build the model, adapt its experts, time the steps."""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lorawise import LoraConfig
from lorawise.base.peak import peak_memory
from lorawise.lora import inject
from lorawise.store import save_adapter

VOCABULARY = 512
TARGETS = r".*self_attn\.[qkvo]_proj|.*\.experts"


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    shape = job["shape"]
    model = build(shape)
    tuned, trained = {"lorawise": with_lorawise, "peft": with_peft}[job["arm"]](model, shape, Path(job["adapter"]))
    own = {p.untyped_storage().data_ptr() for p in tuned.parameters()}
    ids = torch.randint(0, VOCABULARY, (shape["rows"], shape["length"]), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    report: dict[str, Any] = {"seconds": [], "losses": [], "gradient_norms": []}
    before = peak_memory()
    for step in range(shape["steps"] + 1):  # the first warms up
        started = time.process_time()
        loss, norm = one_step(tuned, ids, optimizer, trained)
        if step:
            report["seconds"].append(time.process_time() - started)
        report["losses"].append(loss)
        report["gradient_norms"].append(norm)
    report["peak"] = peak_memory() - before
    report["kept"] = kept_bytes(tuned, ids, own)
    Path(job["report"]).write_text(json.dumps(report))


def build(shape: dict[str, Any]) -> nn.Module:
    config = transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape["hidden"],
        intermediate_size=shape["inner"],
        moe_intermediate_size=shape["inner"],
        num_experts=shape["experts"],
        num_experts_per_tok=shape["chosen"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=shape["hidden"] // 8,
    )
    torch.manual_seed(0)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.train()


def with_lorawise(model: nn.Module, shape: dict[str, Any], adapter: Path) -> tuple[nn.Module, list[nn.Parameter]]:
    adapters = inject(model, LoraConfig(r=shape["r"], scaling=2.0, target_modules=TARGETS))
    if not adapter.exists():
        save_adapter(adapter, adapters.weights("default"), base="random")
    return model, [parameter for _, parameter in adapters.trainable()]


def with_peft(model: nn.Module, shape: dict[str, Any], adapter: Path) -> tuple[nn.Module, list[nn.Parameter]]:
    import peft

    warnings.simplefilter("ignore")
    tuned = peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=True).train()
    return tuned, [parameter for parameter in tuned.parameters() if parameter.requires_grad]


def one_step(
    model: nn.Module, ids: Tensor, optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]
) -> tuple[float, float]:
    optimizer.zero_grad()
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    optimizer.step()
    return loss.item(), norm.item()


def kept_bytes(model: nn.Module, ids: Tensor, own: set[int]) -> int:
    """Bytes that autograd keeps between forward and backward, each storage once, the model's parameters left out."""
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), value  # held, so that no address is used twice
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        loss = model(input_ids=ids, labels=ids).loss
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


if __name__ == "__main__":
    main()
