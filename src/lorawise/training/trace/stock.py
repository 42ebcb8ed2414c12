"""One optimizer step of stock transformers with PEFT's adapters and torch's AdamW, traced.

lorawise does not import PEFT. Its LoRA layer, as far as memory goes, is `StockLora` below; tests trace the real one
beside it and want the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorawise.lora.config import LoraConfig
from lorawise.lora.targets import target_modules
from lorawise.planning.memory.model import Mode, Stack, Upcast, Workload
from lorawise.training.trace.fakes import Nf4Linear
from lorawise.training.trace.ledger import Ledger
from lorawise.training.trace.parts import ADAPTERS, BACKWARD, OPTIMIZER, labelled_by_part

EVERY = {"speed": 0, "balanced": 2, "frugal": 1}


class StockLora(nn.Module):
    """y = base(x) + s·B(A(drop(x.float()))), in fp32 and cast back: PEFT 0.21's `lora.Linear.forward` with one adapter.

    Kept for backward: x in fp32 (a copy for every adapted layer), A's output, and with dropout a mask and a copy.
    """

    def __init__(self, base_layer: nn.Module, r: int, dropout: float) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.dropout = dropout
        in_width, out_width = _widths(base_layer)
        self.lora_A = nn.Linear(in_width, r, bias=False, dtype=torch.float32)
        self.lora_B = nn.Linear(r, out_width, bias=False, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        kept = result.dtype
        x = x.to(self.lora_A.weight.dtype)
        if self.dropout:
            x = _dropped(x, self.dropout)
        result = result + self.lora_B(self.lora_A(x)) * 2.0
        return result.to(kept)


def _dropped(x: Tensor, p: float) -> Tensor:
    """As CUDA does it: a mask of one byte a value (the CPU's keeps it in x's type)."""
    y: Tensor = torch.ops.aten.native_dropout(x, p, True)[0]
    return y


def _widths(base: nn.Module) -> tuple[int, int]:
    if isinstance(base, nn.Linear):
        return base.in_features, base.out_features
    rows, columns = base.get_parameter("weight").shape
    return rows, columns


@dataclass(frozen=True, kw_only=True)
class StockStep:
    """`config` None: full fine-tuning."""

    model: PreTrainedModel
    config: LoraConfig | None
    workload: Workload
    mode: Mode
    stack: Stack

    def run(self, ledger: Ledger) -> None:
        model, stack = self.model, self.stack
        with ledger.during(ADAPTERS, phase="adapters in place"):
            if self.config is None:
                model.requires_grad_(True)
            else:
                _adapt(model, self.config, stack.dropout)
        if EVERY[self.mode]:
            model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=EVERY[self.mode])
        if stack.shifted_loss:
            model.loss_function = _shifted_loss
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        with ledger.during(OPTIMIZER, phase="optimizer step"):
            optimizer = _optimizer(trained, stack)
            _step_once(trained, optimizer)
        held: list[Any] = []
        for _ in range(2 if stack.held_outputs else 1):  # the second step finds the outputs of the first
            for _ in range(2 if self.workload.accumulate else 1):
                with labelled_by_part(model, ledger), ledger.during(BACKWARD, phase="forward and backward"):
                    self._micro(held)
            for parameter in trained:
                parameter.grad = None
        del optimizer  # its moments were there until now

    def _micro(self, held: list[Any]) -> None:
        shape = (self.workload.rows, self.workload.length)
        ids = torch.zeros(shape, dtype=torch.int64)
        mask = torch.ones_like(ids)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.stack.autocast):
            outputs = self.model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False)
        loss = outputs.loss
        held[:] = [outputs] if self.stack.held_outputs else []
        del outputs
        loss.backward()


def _shifted_loss(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
    """transformers' loss of a causal model until 4.49: it copied the logits without the last position."""
    wide = logits.float()  # held until the loss is there, as it was
    picked, targets = wide[..., :-1, :].contiguous(), labels[..., 1:].contiguous()
    return F.cross_entropy(picked.view(-1, vocab_size), targets.view(-1))


def _adapt(model: PreTrainedModel, config: LoraConfig, dropout: float) -> None:
    for name in target_modules(model, config):
        parent, _, leaf = name.rpartition(".")
        base = model.get_submodule(name)
        setattr(model.get_submodule(parent), leaf, StockLora(base, config.rank_of(name), dropout))


def upcast(model: PreTrainedModel, which: Upcast) -> None:
    """16-bit parameters to fp32: all, as `prepare_model_for_kbit_training` does (4-bit weights stay), or the norms'."""
    for name, module in model.named_modules():
        if which == "none" or isinstance(module, Nf4Linear) or (which == "norms" and "norm" not in name):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()


def _step_once(trained: Sequence[nn.Parameter], optimizer: Any) -> None:
    """The moments come with the first step; every later one finds them there."""
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    for parameter in trained:
        parameter.grad = None


def _optimizer(trained: Sequence[nn.Parameter], stack: Stack) -> Any:
    if stack.optimizer == "paged-8bit":
        return _Paged(trained)
    return torch.optim.AdamW(trained, lr=1e-4, fused=stack.optimizer == "fused", foreach=stack.optimizer == "foreach")


class _Paged:
    """bitsandbytes' PagedAdamW8bit: tensors of 100,000 elements or more keep their moments in managed memory, which
    torch does not count; smaller ones a byte a moment and an fp32 for each 256."""

    PAGED_FROM = 100_000

    def __init__(self, trained: Sequence[nn.Parameter]) -> None:
        self.trained = list(trained)
        self.states: list[Tensor] = []

    def step(self) -> None:
        for parameter in self.trained:
            size = parameter.numel()
            for _ in range(2):
                if size < self.PAGED_FROM:
                    self.states.append(torch.empty(size, dtype=torch.uint8))
                self.states.append(torch.empty(-(-size // 256)))
