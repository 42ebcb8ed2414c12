"""ggml's types of tensors: their sizes, which can be read and written here, and which one an adapted tensor becomes.

type                          read    written
F32, F16, BF16, Q8_0          yes     yes
Q5_1, Q5_0, Q4_1, Q4_0        yes     yes, but four or five bits round a small update away
K- and IQ-types               yes     no: the `gguf` package only reads them
"""

import math
from typing import Any

import numpy as np

from lorawise.base.errors import ModelError
from lorawise.base.gguf import GGUFHeader, GGUFTensor
from lorawise.store.peft_config import listing

INTO = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0"}
_WIDE = ("F32", "F16", "BF16", "Q8_0")
WRITABLE = (*_WIDE, "Q5_1", "Q5_0", "Q4_1", "Q4_0")


def refuse_unknown_types(header: GGUFHeader) -> None:
    """`ModelError` for types that the installed `gguf` does not know, and rows that are no whole blocks of theirs."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    known = {int(kind): blocks for kind, (blocks, _) in GGML_QUANT_SIZES.items() if kind in GGMLQuantizationType}
    strange = [
        name
        for name, held in header.tensors.items()
        if held.type not in known or not held.shape or held.shape[0] % known[held.type]
    ]
    if strange:
        raise ModelError(
            f"{header.path}: {listing(strange)} of no type or shape that is known here",
            cure="pip install -U gguf, if a newer one knows it; or fetch the file again",
        )


def size_of(tensor: GGUFTensor) -> int:
    """Bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    elements, width = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)]
    return math.prod(tensor.shape) // elements * width


def can_be_read(kind: Any) -> bool:
    """Whether the `gguf` package has numbers for it, tried on one block of zeros: it does not tell otherwise."""
    from gguf import GGML_QUANT_SIZES, dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def type_for(kind: str, width: int, dtype: str) -> str:
    """The type that a tensor of `kind` becomes; Q8_0 holds rows of whole blocks of 32."""
    if dtype == "auto" and kind not in _WIDE:
        return "F16" if width % 32 else "Q8_0"
    return kind if dtype in ("auto", "keep") else INTO[dtype]
