"""One arm in its own process: `python -m benchmarks.runtime.arms ARM SHAPE`; a JSON document on stdout.

Two adapters, r 16 and r 8 on every linear layer, are resident over a bf16 model. Each act is timed by itself, and one
token's forward after it in processor time, since what an act puts off is paid there. New memory is counted by the
tensors that torch's operators return: all that the act makes, and the most that one layer makes to have its factors
ready, which it lets go before the next layer's.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.merge.model import SHAPES, Shape

ACT_REPEATS, FORWARD_REPEATS = 50, 5
WEIGHTS = {"a": 0.7, "b": 0.3}
Act = Callable[[], object]


class NewBytes(TorchDispatchMode):
    """Bytes of the storages that operators make, each counted once while it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.total += tensor.untyped_storage().nbytes()
        return result


def model_of(shape: Shape) -> PreTrainedModel:
    """Every weight the same small number: what is timed does not depend on them."""
    config = AutoConfig.for_model(**shape.config())
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(1e-3)
    return model


def ours(model: PreTrainedModel, shape: Shape) -> tuple[dict[str, Act], list[Act]]:
    from lorawise.lora import AdapterWeights, LoraConfig, attach

    def weights(r: int) -> AdapterWeights:
        names = tuple(module for module, _, _ in shape.linears())
        layers = {m: (torch.full((r, width), 1e-2), torch.full((out, r), 1e-2)) for m, out, width in shape.linears()}
        return AdapterWeights(config=LoraConfig(r=r, target_modules=names), layers=layers)

    adapters = attach(model, {"a": weights(16), "b": weights(8)})

    ready = [layer.active for layer in adapters.layers.values()]

    acts: dict[str, Act] = {
        "base": lambda: adapters.use(None),
        "swap": lambda: adapters.use("b"),
        "swap back": lambda: adapters.use("a"),
        "scale": lambda: adapters.set_scale("a", 0.5),
        "stack": lambda: adapters.stack(WEIGHTS),
    }
    return acts, ready


def peft(model: PreTrainedModel, shape: Shape) -> tuple[dict[str, Act], list[Act]]:
    from peft import LoraConfig, get_peft_model

    targets = sorted({module.rpartition(".")[2] for module, _, _ in shape.linears()})
    wrapped = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets), adapter_name="a").eval()
    wrapped.add_adapter("b", LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    layers = [module for module in wrapped.modules() if hasattr(module, "lora_A") and hasattr(module, "set_scale")]

    def base() -> None:
        wrapped.base_model.disable_adapter_layers()

    def use(name: str) -> None:
        wrapped.base_model.enable_adapter_layers()
        wrapped.set_adapter(name)

    def stack() -> None:
        if "sum" in wrapped.peft_config:
            wrapped.delete_adapter("sum")
        wrapped.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "sum", combination_type="cat")
        wrapped.set_adapter("sum")

    acts: dict[str, Act] = {
        "base": base,
        "swap": lambda: use("b"),
        "swap back": lambda: use("a"),
        "scale": lambda: [layer.set_scale("a", 0.5) for layer in layers],
        "stack": stack,
    }
    return acts, []


def main(arm: str, shape_name: str) -> None:
    shape = SHAPES[shape_name]
    model = model_of(shape)
    acts, ready = {"ours": ours, "peft": peft}[arm](model, shape)
    ids = torch.ones(1, 1, dtype=torch.long)
    report: dict[str, Any] = {"adapter_bytes": sum(4 * 16 * (out + width) for _, out, width in shape.linears())}
    with torch.no_grad():
        for name, act in acts.items():
            repeats = ACT_REPEATS if not (arm == "peft" and name == "stack") else 3
            seconds = [timed(act) for _ in range(repeats)]
            made = new_bytes(act)
            forward = [processor(lambda: model(ids, use_cache=False)) for _ in range(FORWARD_REPEATS)]
            report[name] = {
                "seconds": statistics.median(seconds),
                "worst": max(seconds[1:]),
                "new_bytes": made,
                "prepared_bytes": max((new_bytes(layer) for layer in ready), default=0),
                "forward_seconds": statistics.median(forward[1:]),
            }
    print(json.dumps(report))


def new_bytes(act: Act) -> int:
    with NewBytes() as made:
        act()
    return made.total


def timed(act: Act) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def processor(act: Act) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started


if __name__ == "__main__":
    main(*sys.argv[1:])
