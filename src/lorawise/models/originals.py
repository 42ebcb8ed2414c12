"""A packed base computing for a while with the weights it was packed from: what packing lost, on any rows.

The weights are read from the model's files one matrix at a time, when a product needs it, and are gone after it: the
whole model is never in memory, however large it is. One pass over some rows reads the files once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from lorawise.base.safetensors import SafetensorsFile
from lorawise.facts.folder import weight_files
from lorawise.lora.packed import PackedLinear
from lorawise.lora.wrapping import base_modules
from lorawise.models.files import ModelFiles, stored_name


class Originals:
    """The stored weight of every packed layer. `unknown`: layers whose weight is stored under no such name or shape."""

    def __init__(self, model: nn.Module, files: ModelFiles) -> None:
        shards = [SafetensorsFile.open(path) for path in weight_files(files.folder)]
        homes = {name: shard for shard in shards for name in shard}
        self._readers: list[tuple[PackedLinear, Callable[[], Tensor]]] = []
        self.unknown: list[str] = []
        for name, layer in base_modules(model):
            if isinstance(layer, PackedLinear):
                stored = stored_name(f"{name}.weight", homes)
                shape = {layer.in_features, layer.out_features}
                if stored is None or set(homes[stored].tensors[stored].shape) != shape:
                    self.unknown.append(name)
                else:
                    self._readers.append((layer, partial(_read, layer, homes[stored], stored)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, every packed layer multiplies by its stored weight, rounded to the compute dtype."""
        try:
            for layer, reader in self._readers:
                layer.original = reader
            yield
        finally:
            for layer, _ in self._readers:
                layer.original = None


def _read(layer: PackedLinear, shard: SafetensorsFile, name: str) -> Tensor:
    """(out, in); a weight stored the other way round (GPT-2's) is told by what it became when it was packed."""
    stored = torch.from_numpy(shard.read(name)).to(layer.weight.device, layer.compute_dtype)
    if layer.in_features != layer.out_features:
        return stored if stored.shape[0] == layer.out_features else stored.mT
    packed = layer._unpacked()
    return min((stored, stored.mT), key=lambda weight: float((weight - packed).norm()))
