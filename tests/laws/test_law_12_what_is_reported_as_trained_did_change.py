"""Law 12: what is reported as trained did change (B at the first step, A from the second), and the rest did not."""

import pytest
import torch
from tests.tiny import FAMILIES
from tests.workbench import tiny_run

from lorawise.models.files import resolve_model
from lorawise.training.inputs import read_inputs
from lorawise.training.preflight import Seen, preflight, still_layers
from lorawise.training.setup import Prepared, prepare


def prepared(tmp_path, **values) -> Prepared:
    run = tiny_run(tmp_path, **values)
    files = resolve_model(run.model)
    return prepare(run, files, read_inputs(run, files))


def frozen(ready: Prepared) -> dict[str, torch.Tensor]:
    trained = {id(parameter) for _, parameter in ready.adapters.trainable()}
    return {n: p.detach().clone() for n, p in ready.model.named_parameters() if id(p) not in trained}


@pytest.mark.parametrize("family", FAMILIES)
def test_after_one_step_every_b_moved_no_a_did_and_nothing_frozen(family, tmp_path):
    ready = prepared(tmp_path, family=family, train__warmup=0)
    before = {n: p.detach().clone() for n, p in ready.adapters.trainable()}
    base = frozen(ready)
    ready.trainer.step(0)
    for name, parameter in ready.adapters.trainable():
        assert parameter.equal(before[name]) == name.endswith("lora_A"), name
    for name, value in frozen(ready).items():
        assert value.equal(base[name]), name
    ready.trainer.step(1)
    for name, parameter in ready.adapters.trainable():
        assert not parameter.equal(before[name]), name


def test_a_layer_cut_off_from_the_loss_is_named(tmp_path):
    ready = prepared(tmp_path)
    name, layer = next(iter(ready.adapters.layers.items()))
    layer.register_forward_hook(lambda module, inputs, output: output.detach())
    ready.trainer.optimizer.zero_grad()
    ready.trainer.accumulate(0, ready.trainer.plan.step(0))
    assert still_layers(ready.trainer) == [name]


def test_preflight_leaves_the_state_as_it_was(tmp_path):
    ready = prepared(tmp_path, lora__dropout=0.1)
    optimizer = ready.trainer.optimizer
    before = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    counters, random = optimizer.counters(), torch.random.get_rng_state()
    report = preflight(
        Seen(
            trainer=ready.trainer,
            train=ready.inputs.train,
            validation=ready.inputs.validation,
            evaluation=ready.evaluator.batches,
            tokenizer=ready.inputs.tokenizer,
            first_step=0,
            epochs=1.0,
        )
    )
    assert report.passed, report.checks
    assert "".join(piece.text for piece in report.row).startswith("<|im_start|>user")
    assert next(piece.text for piece in report.row if piece.trained).endswith("!<|im_end|>")
    assert all(before[name].equal(tensor) for name, tensor in optimizer.tensors().items())
    assert not any(gradient.any() for _, gradient in optimizer.gradients())
    assert optimizer.counters() == counters
    assert torch.random.get_rng_state().equal(random)
    assert not ready.model.training
