"""Adapters on disk: PEFT's two files, where each adapter came from, and its model card.

    weights = load_adapter(folder)     in torch, to train or answer with
    stored = read_adapter(folder)      as the file holds it, in numpy, read when asked: no torch is loaded

Names are loaded when first used: work on files alone needs no torch.
"""

from typing import TYPE_CHECKING

from lorawise.base.lazy import loaded_when_used

if TYPE_CHECKING:
    from lorawise.store.peft_format import read_adapter as read_adapter
    from lorawise.store.peft_format import read_history as read_history
    from lorawise.store.peft_format import write_adapter as write_adapter
    from lorawise.store.provenance import Provenance as Provenance
    from lorawise.store.provenance import stored_digest as stored_digest
    from lorawise.store.torch_form import adapter_digest as adapter_digest
    from lorawise.store.torch_form import load_adapter as load_adapter
    from lorawise.store.torch_form import read_provenance as read_provenance
    from lorawise.store.torch_form import save_adapter as save_adapter

_HOMES = {
    "Provenance": "provenance",
    "adapter_digest": "torch_form",
    "load_adapter": "torch_form",
    "read_adapter": "peft_format",
    "read_history": "peft_format",
    "read_provenance": "torch_form",
    "save_adapter": "torch_form",
    "stored_digest": "provenance",
    "write_adapter": "peft_format",
}

__all__ = [*_HOMES]  # noqa: PLE0604

__getattr__, __dir__ = loaded_when_used("lorawise.store", _HOMES)
