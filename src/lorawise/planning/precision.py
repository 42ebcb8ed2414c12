"""Which plain type a base is computed in, once its `base.dtype` is decided: what activations and plain weights take.

    bfloat16, float16, float32   themselves
    nf4, int8                    16 bits where the device multiplies them: weights are dequantised into that
    auto                         the checkpoint's own; on a processor bfloat16 where it is fast, else float32

`models/dtypes.py` decides the same when the run starts, by asking torch.
"""

from lorawise.facts.device import DeviceFacts
from lorawise.facts.machine import multiplies_bfloat16
from lorawise.facts.model import ModelFacts
from lorawise.runfile.schema import QUANTISED

PLAIN = ("bfloat16", "float16", "float32")


def computed_in(dtype: str, model: ModelFacts, device: DeviceFacts) -> str:
    """One of PLAIN."""
    if dtype in PLAIN:
        return dtype
    if device.kind == "cpu":
        return "float32" if model.dtype == "float32" or not multiplies_bfloat16() else "bfloat16"
    if dtype in QUANTISED or model.dtype not in PLAIN:
        return "bfloat16" if "bfloat16" in device.formats else "float16"
    return model.dtype
