"""Law 12. What is reported as trained changes, what is reported as frozen does not (layers of the house: `lora`)."""

import pytest
import torch
from tests.laws.plain_loop import Rates, slot_losses, token_ids, train
from tests.tiny import FAMILIES, tiny_model

from lorawise.lora import LoraConfig, inject


@pytest.mark.parametrize("family", FAMILIES)
def test_every_b_moves_at_step_one_and_every_a_at_step_two(family: str) -> None:
    model = tiny_model(family)
    adapters = inject(model, [LoraConfig(r=2), LoraConfig(r=3, seed=1)])
    base = {name: p.clone() for name, p in model.named_parameters() if ".lora_" not in name}
    start = {entry.name: entry.parameter.detach().clone() for entry in adapters.bank_parameters()}
    train(model, adapters, 1, [Rates(), Rates()])
    for entry in adapters.bank_parameters():
        moved = [not torch.equal(entry.parameter[i], start[entry.name][i]) for i in range(2)]
        assert moved == [entry.kind == "B"] * 2, entry.name
    train(model, adapters, 1, [Rates(), Rates()])
    assert all(not torch.equal(entry.parameter, start[entry.name]) for entry in adapters.bank_parameters())
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) and not now[name].requires_grad for name, value in base.items())


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_whole_modules_and_biases_that_are_reported_as_trained_move(family: str) -> None:
    model = tiny_model(family)
    adapters = inject(model, LoraConfig(r=2, modules_to_save=("lm_head",), bias="all"))
    base = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    reported = dict(adapters.trainable())
    assert {id(p) for p in reported.values()} == {id(p) for p in model.parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(reported.values(), lr=0.1)
    start = {name: p.detach().clone() for name, p in reported.items()}
    for step in range(2):
        optimizer.zero_grad()
        slot_losses(model, token_ids(seed=step), 1).sum().backward()
        optimizer.step()
    idle = [name for name, p in reported.items() if torch.equal(p, start[name])]
    assert idle == []
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in base.items())


def test_activation_checkpointing_over_a_frozen_base_brings_every_gradient() -> None:
    model = tiny_model("llama").train()
    adapters = inject(model, LoraConfig(r=2))
    slot_losses(model, token_ids(), 1).sum().backward()
    plain = {name: p.grad for name, p in adapters.trainable()}
    for _, p in adapters.trainable():
        p.grad = None
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    slot_losses(model, token_ids(), 1).sum().backward()
    assert all(torch.equal(p.grad, plain[name]) for name, p in adapters.trainable())
