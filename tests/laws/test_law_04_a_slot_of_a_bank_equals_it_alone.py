"""Law 4. n settings trained side by side end where each ends alone; a slot that diverges touches no other."""

import pytest
import torch
from tests.laws.plain_loop import Rates, train
from tests.tiny import tiny_model

from lorawise.lora import LoraConfig, inject

SETTINGS = [
    LoraConfig(r=4, scaling=2.0),
    LoraConfig(r=1, scaling=4.0, target_modules="qv", dropout=0.1, seed=1),
    LoraConfig(r=7, scaling=0.5, target_modules="mlp", init="gaussian", rslora=True, seed=2),
]
RATES = [Rates(), Rates(A=3e-3, B=3e-3), Rates(A=1e-3, B=8e-3)]


def _model(dtype: torch.dtype) -> torch.nn.Module:
    return tiny_model("llama", dtype=dtype, num_hidden_layers=1).train()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_a_slot_of_a_bank_has_the_losses_it_has_alone_over_200_steps(dtype: torch.dtype, tolerance: float) -> None:
    model = _model(dtype)
    together = train(model, inject(model, SETTINGS), 200, RATES)
    assert (together[0] - together[-1]).abs().min() > 1e-3  # they did train
    for i, (setting, rates) in enumerate(zip(SETTINGS, RATES, strict=True)):
        model = _model(dtype)
        alone = train(model, inject(model, setting), 200, [rates])
        torch.testing.assert_close(together[:, i], alone[:, 0], rtol=0, atol=tolerance)


def test_beside_a_slot_of_nan_the_others_stay_the_same_to_the_bit() -> None:
    ends = []
    for spoiled in (False, True):
        model = _model(torch.float32)
        adapters = inject(model, SETTINGS)
        if spoiled:
            with torch.no_grad():
                for layer in adapters.layers.values():
                    layer.lora_B[1] = float("nan")
        losses = train(model, adapters, 10, RATES)
        ends.append((losses, adapters.weights("0"), adapters.weights("2")))
    (losses, *kept), (spoiled_losses, *beside) = ends
    assert spoiled_losses[:, 1].isnan().all()
    assert torch.equal(losses[:, [0, 2]], spoiled_losses[:, [0, 2]])
    for one, other in zip(kept, beside, strict=True):
        for name in one.layers:
            assert all(torch.equal(x, y) for x, y in zip(one.layers[name], other.layers[name], strict=True))
