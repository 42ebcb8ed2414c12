"""A model's own head, fed with hidden states: exact where logits are scaled, capped or biased.

The head is the model's own forward with its decoder replaced by a stand-in that returns the hidden states it is given.
The replacement happens in a copy of the outer module objects alone (their `__dict__` and table of submodules; every
parameter, buffer and inner module is shared), so the model itself is never touched and nothing needs restoring.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from lorawise.base.errors import ModelError
from lorawise.lora.bank import BankLayer
from lorawise.lora.wrapping import layers_of


class Head:
    """hidden (rows, t, width) → logits (rows, t, vocabulary), by the model's own code.

    `output` is the type the decoder returns: whatever else the model reads from it is then there, and empty.
    """

    def __init__(self, model: PreTrainedModel, output: type[ModelOutput]) -> None:
        self._stand_in = _StandIn(output)
        self._view = _with_submodule(model, decoder_path(model).split("."), self._stand_in)

    def __call__(self, hidden: Tensor) -> Tensor:
        self._stand_in.hidden = hidden
        logits: Tensor = self._view(use_cache=False).logits
        self._stand_in.hidden = None
        return logits

    def trained_parameters(self) -> list[nn.Parameter]:
        """Of the head alone: an adapter on it, or a head trained in full."""
        return [p for p in self._view.parameters() if p.requires_grad]

    def draws_masks(self) -> bool:
        """Whether an adapter on the head has dropout."""
        banks = layers_of(self._view, BankLayer).values()
        return any(
            config.dropout and rank
            for bank in banks
            for config, rank in zip(bank.routing.configs, bank.ranks, strict=True)
        )


class _StandIn(nn.Module):
    def __init__(self, output: type[ModelOutput]) -> None:
        super().__init__()
        self.output = output
        self.hidden: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> ModelOutput:
        return self.output(last_hidden_state=self.hidden)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The submodule whose hidden states the head reads."""
    return model.get_submodule(decoder_path(model))


def decoder_path(model: PreTrainedModel) -> str:
    """Its name: `model`, `transformer`, `model.decoder`."""
    decoder: object = model.get_decoder()  # type: ignore[no-untyped-call]
    names = [name for name, module in model.named_modules() if module is decoder and name]
    if names:
        return str(names[0])
    raise ModelError(
        f"{type(model).__name__} has no decoder apart from its head",
        expected="a decoder-only model with a head, for causal language or sequence classification",
    )


def _with_submodule(module: nn.Module, path: list[str], stand_in: nn.Module) -> nn.Module:
    """A view of `module`, sharing everything, in which the submodule at `path` is `stand_in`."""
    name, *rest = path
    view = object.__new__(type(module))
    vars(view).update(vars(module))
    vars(view).pop("forward", None)  # a wrapper's own forward is bound to the module this is a view of
    inner = _with_submodule(module.get_submodule(name), rest, stand_in) if rest else stand_in
    vars(view)["_modules"] = {**module._modules, name: inner}
    return view
