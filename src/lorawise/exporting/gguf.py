"""GGUF: the adapter as llama.cpp loads it beside a model (`--lora`), or the model with the adapter in it.

    y = W·x + (alpha / r) · B·(A·x)    blk.N.attn_q.weight.lora_a = A (r, in), .lora_b = B (out, r), r the rows of A

llama.cpp reads one adapter.lora.alpha for all tensors and divides it by each one's own rank. So the alpha written is
the commonest scaling × rank, and where a module's differs (rsLoRA with several ranks, patterns) the rest goes into its
B. Rows of B lie as those of the weight do (`facts.gguf_tensors`). float32 unless asked otherwise: ggml multiplies in
the type of the matrix, and a 16-bit A or B would round the activations too.
Source: llama.cpp, src/llama-adapter.h (get_scale) and llama-adapter.cpp.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import ConfigError, nearest
from lorawise.base.files import atomic_folder
from lorawise.base.tensors import NUMPY, StoredTensor, as_bits
from lorawise.exporting.exporters import EXPORTERS, Exported, Options
from lorawise.exporting.gguf_merged import to_merged_gguf
from lorawise.exporting.gguf_places import base_facts, places_of
from lorawise.exporting.measure import error_of
from lorawise.facts.gguf_tensors import Place
from lorawise.lora.weights import StoredAdapter
from lorawise.store.algebra.factors import Factors
from lorawise.store.algebra.result import Source
from lorawise.store.peft_keys import finite

ADAPTER = "adapter.gguf"
_DTYPES = {"auto": "F32", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@EXPORTERS.register("gguf")
def to_gguf(source: Source, folder: Path, options: Options) -> Exported:
    """`AdapterError` for what llama.cpp cannot compute, `ModelError` for a family whose names are not known here."""
    if options.merged:
        return to_merged_gguf(source, folder, options)
    if options.dtype not in _DTYPES:
        cure = f"{nearest(options.dtype, [*_DTYPES])}; others are for --merged"
        raise ConfigError(f"'{options.dtype}' is no dtype of a GGUF adapter", cure=cure)
    architecture, places = places_of(source, base_facts(source, options.model))
    adapter, dtype = source.adapter, _DTYPES[options.dtype]
    alpha = _alpha(adapter)
    folds = _folds(adapter, alpha)
    with atomic_folder(folder) as scratch:
        _write(scratch / ADAPTER, source, architecture, alpha, _tensors(adapter, places, folds, dtype))
    return Exported(
        path=folder,
        error=error_of(adapter, _reader(folder / ADAPTER, places)),
        rank=max(_rank(adapter, module) for module in adapter.layers),
        scale=1.0,
        files=(ADAPTER,),
        rounded=any(np.frexp(fold)[0] != 0.5 for fold in folds.values()),
        flags=(f"--lora {folder / ADAPTER}",),
    )


def _rank(adapter: StoredAdapter, module: str) -> int:
    return adapter.layers[module][0].shape[0]


def _alpha(adapter: StoredAdapter) -> float:
    """The commonest scaling × rank, as the float32 that the file holds; never 0, which llama.cpp takes for none."""
    told = Counter(float(np.float32(adapter.config.scaling_of(m) * _rank(adapter, m))) for m in adapter.layers)
    alpha = max(told, key=lambda value: (told[value], value))
    return alpha if 0 < alpha < math.inf else 1.0


def _folds(adapter: StoredAdapter, alpha: float) -> dict[str, float]:
    """Module → what goes into B beside alpha / r; 1 where only alpha's own rounding is left of it."""
    found = {module: adapter.config.scaling_of(module) * _rank(adapter, module) / alpha for module in adapter.layers}
    return {module: 1.0 if math.isclose(fold, 1.0, rel_tol=2**-23) else fold for module, fold in found.items()}


def _tensors(
    adapter: StoredAdapter, places: Mapping[str, Place], folds: Mapping[str, float], dtype: str
) -> dict[str, StoredTensor]:
    """In the order of the file, each computed when it is written."""
    tensors = {}
    for module, (a, b) in adapter.layers.items():
        place = places[module]
        tensors[f"{place.tensor}.lora_a"] = _made(a, lambda values: values, dtype, f"{module}.lora_A")
        tensors[f"{place.tensor}.lora_b"] = _made(b, _placed(place, folds[module]), dtype, f"{module}.lora_B")
    return tensors


def _placed(place: Place, fold: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    return lambda values: fold * place.rows(values)


def _made(half: StoredTensor, change: Callable[[NDArray[Any]], NDArray[Any]], dtype: str, name: str) -> StoredTensor:
    made = StoredTensor(dtype=dtype, shape=half.shape, bits=lambda: as_bits(change(half.double()), dtype))
    return finite(made, f"{name} in {dtype}", cure="use --dtype float32, whose range is wider")


def _write(path: Path, source: Source, architecture: str, alpha: float, tensors: Mapping[str, StoredTensor]) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, Keys

    writer = GGUFWriter(path, architecture)
    try:
        writer.add_type("adapter")
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_name(source.folder.resolve().name)
        writer.add_string("lorawise.adapter_digest", source.digest)
        for name, tensor in tensors.items():
            kind = GGMLQuantizationType[tensor.dtype]
            writer.add_tensor_info(name, tensor.shape, NUMPY[tensor.dtype], tensor.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        (file,) = writer.fout
        for tensor in tensors.values():  # not `write_tensor_data`, whose error on a full disk does not say so
            writer.write_padding(file, file.tell())
            file.write(tensor.bits().data)
        writer.write_padding(file, file.tell())
    finally:
        writer.close()


def _reader(path: Path, places: Mapping[str, Place]) -> Callable[[str], Factors]:
    """A module's update as llama.cpp computes it from the file, its rows put back in the model's order."""
    from gguf import GGUFReader, dequantize

    file = GGUFReader(path)
    (alpha,) = file.fields["adapter.lora.alpha"].parts[file.fields["adapter.lora.alpha"].data[0]]
    held = {tensor.name: tensor for tensor in file.tensors}

    def half(name: str) -> NDArray[np.float64]:
        return np.asarray(dequantize(held[name].data, held[name].tensor_type), dtype=np.float64)

    def read(module: str) -> Factors:
        place = places[module]
        a, b = half(f"{place.tensor}.lora_a"), half(f"{place.tensor}.lora_b")
        return Factors(A=a, B=float(alpha) / len(a) * place.restored(b))

    return read
