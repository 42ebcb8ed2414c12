"""Adapters on disk: PEFT's two files, where each adapter came from, and its model card."""

from lorawise.store.peft_format import load_adapter, read_provenance, save_adapter
from lorawise.store.provenance import Provenance, adapter_digest

__all__ = ["Provenance", "adapter_digest", "load_adapter", "read_provenance", "save_adapter"]
