"""The parts that families are built from: attention, feed-forward, norms, each as the parameters it holds in memory."""

from collections.abc import Iterator
from typing import Literal

from lorawise.facts.config import Dimensions
from lorawise.facts.model import Kind, Matrix, Parameter

Part = Matrix | Parameter


def linear(name: str, inputs: int, outputs: int, *, bias: bool = False, kind: Kind = "linear") -> Matrix:
    return Matrix(name=name, in_features=inputs, out_features=outputs, bias=bias, kind=kind)


def embedding(name: str, rows: int, width: int) -> Matrix:
    return Matrix(name=name, in_features=rows, out_features=width, kind="embedding")


def norm(name: str, width: int, *, bias: bool = False) -> Iterator[Part]:
    yield Parameter(name=f"{name}.weight", shape=(width,))
    if bias:
        yield Parameter(name=f"{name}.bias", shape=(width,))


def norms(at: str, names: tuple[str, ...], width: int, *, bias: bool = False) -> Iterator[Part]:
    for name in names:
        yield from norm(f"{at}.{name}", width, bias=bias)


def split_attention(
    at: str,
    d: Dimensions,
    *,
    bias: bool = False,
    output_bias: bool | None = None,
    output: str = "o_proj",
    order: str = "qkv",
    width: int | None = None,
) -> Iterator[Part]:
    """Query, key and value apart. `order` is the model's own; `output_bias` as `bias` when None; `width` of the
    output's input where it is not that of the queries."""
    sizes = {"q": d.q, "k": d.kv, "v": d.kv}
    for letter in order:
        yield linear(f"{at}.{letter}_proj", d.hidden, sizes[letter], bias=bias)
    yield linear(f"{at}.{output}", width or d.q, d.hidden, bias=bias if output_bias is None else output_bias)


def query_key_norms(at: str, d: Dimensions, over: Literal["head", "all"]) -> Iterator[Part]:
    """RMS norms of queries and keys, of one head's width or of all heads' together."""
    yield from norm(f"{at}.q_norm", d.head_dim if over == "head" else d.q)
    yield from norm(f"{at}.k_norm", d.head_dim if over == "head" else d.kv)


def gated_mlp(at: str, hidden: int, inner: int, *, bias: bool = False) -> Iterator[Part]:
    """SwiGLU and its kin: down(act(gate(x)) · up(x))."""
    yield linear(f"{at}.gate_proj", hidden, inner, bias=bias)
    yield linear(f"{at}.up_proj", hidden, inner, bias=bias)
    yield linear(f"{at}.down_proj", inner, hidden, bias=bias)


def plain_mlp(at: str, names: tuple[str, str], hidden: int, inner: int, *, bias: bool) -> Iterator[Part]:
    """Two layers around one activation."""
    yield linear(f"{at}.{names[0]}", hidden, inner, bias=bias)
    yield linear(f"{at}.{names[1]}", inner, hidden, bias=bias)


def fused_experts(at: str, experts: int, hidden: int, inner: int, *, bias: bool = False) -> Iterator[Part]:
    """All experts of a layer as two 3-D parameters: gate and up together, and down."""
    for name, inputs, outputs in (("gate_up_proj", hidden, 2 * inner), ("down_proj", inner, hidden)):
        yield Matrix(
            name=f"{at}.{name}", in_features=inputs, out_features=outputs, kind="experts", experts=experts, bias=bias
        )
