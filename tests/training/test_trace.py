"""The trace is the real thing: its stand-ins are what they stand for, and fakes count as real tensors do."""

import peft
import pytest
import torch
from tests.planning.shapes import config_of
from tests.tiny import tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

from lorawise.base.errors import ConfigError, ModelError
from lorawise.lora.config import LoraConfig
from lorawise.planning.memory import Stack, Workload
from lorawise.training.trace import fakes, stock, trace
from lorawise.training.trace.ledger import Ledger
from lorawise.training.trace.ours import OurStep

ALL = LoraConfig(r=8)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["speed", "frugal"])
def test_the_stand_in_for_pefts_layer_takes_the_same_bytes(mode: str, dropout: float) -> None:
    """PEFT's own model on fakes, its dropout as CUDA does it, against ours with `StockLora`: every instant's peak."""
    workload = Workload(tokens=512, rows=2, packed=False)
    stand_in = trace(
        config_of("llama"), ALL, workload=workload, mode=mode, trainer="hf", stack=Stack(dropout=dropout), device="cpu"
    )
    config = peft.LoraConfig(r=8, target_modules="all-linear", lora_dropout=dropout, task_type="CAUSAL_LM")
    ledger = Ledger(workspaces=fakes.workspaces())
    settings = config_of("llama")
    settings.use_cache = False
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    base.requires_grad_(False)
    model = peft.get_peft_model(base, config, low_cpu_mem_usage=True).base_model.model
    with fakes.fake_mode(), ledger, fakes.cuda_kernels(), pytest.MonkeyPatch.context() as patch:
        materialise(model)
        ledger.settle()
        patch.setattr(nn.Dropout, "forward", lambda self, x: stock._dropped(x, self.p))
        patch.setattr(type(model), "requires_grad_", lambda self, _: self)  # PEFT has chosen what trains
        stock.StockStep(model=model, config=None, workload=workload, mode=mode, stack=Stack()).run(ledger)
    assert abs(ledger.peak.bytes - stand_in.memory.allocated) <= 1e-3 * stand_in.memory.allocated


def materialise(model: nn.Module) -> None:
    """Tensors of the current mode in place of the model's own."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                value = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(value, requires_grad=parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def test_a_fake_run_counts_what_a_real_one_counts() -> None:
    """Our trainer's step on real CPU tensors and on fakes, by the same ledger, both with the CPU's kernels."""
    workload = Workload(tokens=192, length=96)
    peaks = {}
    for kind in ("real", "fake"):
        ledger = Ledger()
        mode = fakes.fake_mode()
        model = tiny_model("llama", hidden_size=64, num_hidden_layers=3)
        step = OurStep(model=model, configs=[ALL, ALL], workload=workload, mode="frugal")
        step.prepare()
        if kind == "fake":
            with mode:
                materialise(model)
            with mode, ledger:
                step.run(ledger)
        else:
            with ledger:
                step.run(ledger)
        peaks[kind] = ledger.peak.bytes
    assert abs(peaks["real"] / peaks["fake"] - 1) < 0.02


def test_the_ledger_counts_as_torchs_own_profiler_does() -> None:
    """Allocations of a real forward and backward on the CPU, by torch.profiler's memory events."""
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256))
    x = torch.randn(64, 256)

    def step() -> None:
        model(x).square().sum().backward()
        model.zero_grad(set_to_none=True)

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    ledger = Ledger()
    for tensor in (x, *model.parameters()):
        ledger.enter(tensor, "before")
    before = ledger.live
    with ledger:
        step()
    assert peak * 0.98 <= ledger.peak.bytes - before <= peak * 1.05


def test_a_storage_is_counted_once_until_its_last_tensor_is_gone() -> None:
    ledger = Ledger()
    with ledger, ledger.during("here", phase="now"):
        whole = torch.zeros(1000)
        view = whole.view(10, 100)
        assert ledger.live == 4096
        del whole
        assert ledger.live == 4096
        del view
        assert ledger.live == 0
    assert ledger.peaks["now"].by_label == {"here": 4096}
    assert sum(size for _, size in ledger.events) == 0


def test_an_eight_billion_model_is_traced_without_its_memory() -> None:
    config = config_of(
        "llama",
        vocab_size=128256,
        num_hidden_layers=4,
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    traced = trace(config, LoraConfig(r=16), workload=Workload(tokens=2048), mode="frugal").memory
    assert traced.allocated > 3 * 2**30
    assert traced.reserved >= traced.allocated
    assert sum(line.bytes for line in traced.by_cause) == traced.allocated


def test_attention_on_cuda_never_holds_the_square_without_a_mask() -> None:
    config = config_of("llama", num_hidden_layers=1)
    ledger = Ledger()
    with fakes.fake_mode(), ledger, fakes.cuda_kernels():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        ledger.settle()
        ids = torch.zeros((1, 4096), dtype=torch.int64)
        model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    assert max(size for _, size in ledger.events) < 4096**2


def test_what_cannot_be_traced_is_refused() -> None:
    workload = Workload(tokens=64)
    with pytest.raises(ConfigError, match="full"):
        trace(config_of("llama"), None, method="full", workload=workload)
    with pytest.raises(ConfigError, match="slots"):
        trace(config_of("llama"), ALL, workload=workload, trainer="hf", slots=2)
    with pytest.raises(ConfigError, match="dtype"):
        trace(config_of("llama"), ALL, workload=workload, dtype="float12")
    with pytest.raises(ModelError, match=r"config\.json"):
        trace("/nowhere/at/all", ALL, workload=workload)
    with pytest.raises(ModelError, match="no model"):
        trace({"model_type": "nosuch"}, ALL, workload=workload)
