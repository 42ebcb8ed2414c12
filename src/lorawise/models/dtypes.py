"""Which number type a base model computes in, and why.

`auto` keeps the checkpoint's own type, except where the device cannot compute in it well:

    float16 on a CPU            bfloat16 if the CPU has fast bfloat16, else float32
    bfloat16 on a CPU without   float32: measured 4× faster than emulated bfloat16 on AVX2 (190 against 48 GFLOP/s of a
    fast bfloat16               512×576×1536 product on two cores); exact, since every bfloat16 is a float32
    bfloat16 on a GPU without   float16 (before NVIDIA's Ampere)

A base in nf4 or int8 is stored in few bits and computes in one of these: `compute`, chosen in the same way.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from lorawise.base.errors import ModelError, nearest
from lorawise.facts.folder import tensor_headers
from lorawise.runfile.schema import QUANTISED

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_ON_DISK = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float32"}


@dataclass(frozen=True, kw_only=True)
class DtypeChoice:
    """`name` is what `auto` became (or what was asked for); `reason` is a phrase for a person.

    compute  what products are computed in; `name` itself unless that is nf4 or int8
    """

    name: str
    compute: str = ""
    reason: str

    def __post_init__(self) -> None:
        if not self.compute:
            object.__setattr__(self, "compute", self.name)

    @property
    def dtype(self) -> torch.dtype:
        """That products are computed in."""
        return _DTYPES[self.compute]


def choose_dtype(
    folder: Path, wanted: str = "auto", device: str | torch.device = "cpu", *, compute: str = "auto"
) -> DtypeChoice:
    """What to hold the base in, and to compute in. Reads only the headers of `folder`, and only for `auto`."""
    if wanted in QUANTISED:
        return DtypeChoice(name=wanted, compute=choose_dtype(folder, compute, device).name, reason="as asked")
    if wanted in _DTYPES:
        return DtypeChoice(name=wanted, reason="as asked")
    if wanted != "auto":
        raise ModelError(f"base dtype '{wanted}' is not known", cure=nearest(wanted, ["auto", *_DTYPES, *QUANTISED]))
    stored, kind = checkpoint_dtype(folder), torch.device(device).type
    if kind == "cpu" and stored != "float32":
        if not cpu_has_fast_bfloat16():
            return DtypeChoice(name="float32", reason=f"checkpoint is {stored}, which this CPU only emulates")
        if stored == "float16":
            return DtypeChoice(name="bfloat16", reason="checkpoint is float16, which overflows and is slow on a CPU")
    if kind == "cuda" and stored == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return DtypeChoice(name="float16", reason="checkpoint is bfloat16, which this GPU only emulates")
    return DtypeChoice(name=stored, reason="the checkpoint's own")


def checkpoint_dtype(folder: Path) -> str:
    """The type most of the weights are stored in, by number of elements."""
    elements: Counter[str] = Counter()
    for tensor in tensor_headers(folder).values():
        elements[tensor.dtype] += tensor.size
    commonest = elements.most_common(1)[0][0] if elements else "F32"
    if commonest not in _ON_DISK:
        raise ModelError(
            f"the weights in {folder} are stored as {commonest}",
            expected="bfloat16, float16 or float32 weights: a quantised checkpoint cannot be a base yet",
            cure="take the model's unquantised repository",
        )
    return _ON_DISK[commonest]


def cpu_has_fast_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this CPU rather than emulating it (AVX-512 and later; some ARM)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
