"""Law 9 on fused experts: PEFT given our adapter, and we given PEFT's, compute the same logits (fp32, 1e-4), six
families; law 3 beside it: what is saved is what is loaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file, save_file
from tests.laws.plain_loop import rouse
from tests.peft_oracle import peft_injected, peft_loaded, peft_saved
from tests.tiny_experts import EXPERT_FAMILIES, tiny_mixture
from torch import Tensor, nn

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError
from lorawise.lora import adapters_of, attach, inject
from lorawise.lora.wrapping import base_modules
from lorawise.store import load_adapter, save_adapter

IDS = torch.randint(4, 64, (2, 10), generator=torch.Generator().manual_seed(0))
THE_SAME: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
DOWN_2 = {r"experts\.down_proj": 2}
OURS = {
    "attention and experts": {"target_modules": r".*self_attn\..*_proj\w*|.*\.experts"},
    "experts": {"target_modules": ("experts",)},
    "one projection": {"target_modules": ("experts.down_proj",)},
    "the other, of one layer": {"target_modules": ("gate_up_proj",), "layers": (1,)},
    "a rank for experts": {"target_modules": r".*self_attn\.o_proj|.*\.experts", "expert_r": 2},
    "a rank for experts and one of them, rsLoRA": {
        "target_modules": ("experts",), "rslora": True, "expert_r": 2, "rank_pattern": {"down_proj": 4},
    },
    "own rank": {"target_modules": ("experts",), "rank_pattern": DOWN_2},
    "own rank and alpha, rsLoRA": {
        "target_modules": ("experts",), "rslora": True, "rank_pattern": DOWN_2, "alpha_pattern": {"gate_up_proj": 5.0},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _peft_warns_of_patterns_on_parameters(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """PEFT 0.21 says of every pattern that means a parameter that it matched no module, and applies it all the same."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*_pattern keys did not match any targeted module")
        yield


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def scalings(wrapped: peft.PeftModel) -> dict[str, float]:
    """Place → scaling of everything PEFT adapted."""
    found = {}
    for name, module in wrapped.get_base_model().named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            parameter = f".{module.parameter_name}" if isinstance(module, ParamWrapper) else ""
            found[name.replace(".base_layer", "") + parameter] = module.scaling["default"]
    return found


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize("case", OURS)
@pytest.mark.parametrize("named", [True, False], ids=["suffixes", "full names"])
def test_peft_computes_what_we_trained_on_experts(family: str, case: str, named: bool, tmp_path: Path) -> None:
    ours = tiny_mixture(family)
    base = logits(ours)
    adapters = inject(ours, LoraConfig(r=3, scaling=1.5, **OURS[case]))  # type: ignore[arg-type]
    rouse(adapters, std=0.3)
    expected = logits(ours)
    assert (expected - base).abs().max() > 1e-2
    names = [name for name, _ in base_modules(ours)] if named else ()
    save_adapter(tmp_path / "ours", adapters.weights("default"), base="b", modules=names)
    theirs = peft_loaded(tiny_mixture(family), tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), expected, **THE_SAME)
    assert scalings(theirs) == pytest.approx({name: layer.scaling[0] for name, layer in adapters.layers.items()})

    again = load_adapter(tmp_path / "ours")
    saved = adapters.weights("default")
    assert again.config == saved.config
    assert again.kinds == saved.kinds
    for name, pair in saved.layers.items():
        assert all(torch.equal(one, other) for one, other in zip(again.layers[name], pair, strict=True))
    own = tiny_mixture(family)
    attach(own, {"again": again})
    assert torch.equal(logits(own), expected)


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@pytest.mark.parametrize(
    "fields",
    [
        {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "target_modules": ["q_proj", "o_proj"]},
        {"target_parameters": ["down_proj", "gate_up_proj"], "target_modules": []},
        {"target_parameters": ["mlp.experts.gate_up_proj"], "target_modules": []},
        {
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "target_modules": [],
            "rank_pattern": DOWN_2, "alpha_pattern": {"gate_up_proj": 5}, "use_rslora": True,
        },
    ],
    ids=["with attention", "bare names", "one", "patterns"],
)  # fmt: skip
def test_we_compute_what_peft_trained_on_experts(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    if family == "granitemoe":
        fields = {**fields, "target_parameters": [t.removeprefix("mlp.") for t in fields["target_parameters"]]}
    fields = {
        **fields,
        "target_modules": [n for n in fields["target_modules"] if family != "deepseek_v3" or n[0] == "o"],
    }
    theirs = peft_injected(tiny_mixture(family), r=3, lora_alpha=4, **fields)
    expected = logits(theirs)
    ours = tiny_mixture(family)
    attach(ours, {"theirs": load_adapter(peft_saved(theirs, tmp_path / "theirs"))})
    torch.testing.assert_close(logits(ours), expected, **THE_SAME)
    found = {name: layer.scaling[0] for name, layer in adapters_of(ours).layers.items()}
    assert found == pytest.approx(scalings(theirs))


def _as_old_peft_wrote(folder: Path, version: str | None, *, keep: str = "") -> None:
    """The same adapter as PEFT up to 0.18 saved it: A and B of experts turned round; `keep` drops the other pairs."""
    tensors = load_file(folder / "adapter_model.safetensors")
    turned = {}
    for key, a in tensors.items():
        if "experts" in key and "lora_A" in key:
            other = key.replace("lora_A", "lora_B")
            count, b = len(a) // 3, tensors[other]
            stack_a = a.reshape(count, 3, -1)
            stack_b = b.reshape(-1, 3, count).permute(2, 0, 1)
            turned[key] = stack_b.mT.reshape(count * 3, -1).contiguous()
            turned[other] = stack_a.mT.permute(1, 2, 0).reshape(-1, 3 * count).contiguous()
    save_file(turned, folder / "adapter_model.safetensors")
    fields = json.loads((folder / "adapter_config.json").read_text())
    fields["peft_version"] = version
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    (folder / "provenance.json").unlink()


@pytest.mark.parametrize("inner", [24, 16, 32], ids=["plain", "hidden = 2 inner", "hidden = inner"])
@pytest.mark.parametrize("version", ["0.18.1", "0.19.0", None])
def test_experts_that_old_peft_turned_round_are_told_by_their_shapes(
    inner: int, version: str | None, tmp_path: Path
) -> None:
    ours = tiny_mixture("mixtral", intermediate_size=inner)
    adapters = inject(ours, LoraConfig(r=3, target_modules=("experts",)))
    rouse(adapters, std=0.3)
    save_adapter(tmp_path / "a", adapters.weights("default"), base="b")
    _as_old_peft_wrote(tmp_path / "a", version)
    again = load_adapter(tmp_path / "a")
    for name, pair in adapters.weights("default").layers.items():
        assert all(torch.equal(one, other) for one, other in zip(again.layers[name], pair, strict=True))


@pytest.mark.parametrize(("version", "reads"), [("0.19.0", True), ("0.18.1", False), (None, False)])
def test_one_projection_that_old_peft_wrote_is_told_by_its_version_or_refused(
    version: str | None, reads: bool, tmp_path: Path
) -> None:
    ours = tiny_mixture("mixtral", intermediate_size=16)
    adapters = inject(ours, LoraConfig(r=3, target_modules=("gate_up_proj",)))
    rouse(adapters, std=0.3)
    save_adapter(tmp_path / "a", adapters.weights("default"), base="b")
    _as_old_peft_wrote(tmp_path / "a", version)
    if not reads:
        with pytest.raises(AdapterError, match=r"(?s)mlp\.experts.*of the experts alone.*merge"):
            load_adapter(tmp_path / "a")
        return
    again = load_adapter(tmp_path / "a")
    for name, pair in adapters.weights("default").layers.items():
        assert all(torch.equal(one, other) for one, other in zip(again.layers[name], pair, strict=True))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target_parameters": ["mlp.gate.weight"]}, "mlp.gate.weight, which is no projection of fused experts"),
        ({"target_parameters": ["experts.down_proj"]}, "tensors for 2 parameters, target_parameters names down_proj"),
        ({"target_parameters": ["expert.down_proj"]}, "neither target_modules nor target_parameters names it"),
        ({"target_parameters": None}, "experts.base_layer has A .* its rank is 3"),
        ({"target_parameters": "experts.down_proj"}, "target_parameters is .*, not names"),
        ({"r": 7}, "by the config its rank is 7"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_the_experts_tensors_is_refused(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    ours = tiny_mixture("mixtral")
    adapters = inject(ours, LoraConfig(r=3, target_modules=("experts",)))
    save_adapter(tmp_path / "a", adapters.weights("default"), base="b")
    (tmp_path / "a" / "provenance.json").unlink()
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=f"(?s){says}"):
        load_adapter(tmp_path / "a")
