"""A decoder as the operations its memory depends on, read from the names of its matrices and norms.

layer   norm · q k v · (norms of q, k) · rotary · attention · output · (norm) · sum · norm · feed-forward · (norm) · sum
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from lorawise.facts.model import Matrix, ModelFacts
from lorawise.planning.memory.attention import Attention, attention
from lorawise.planning.memory.experts import ExpertPair, experts
from lorawise.planning.memory.operations import (
    Norm,
    Numbers,
    activation,
    added,
    copied,
    gated,
    gelu_in_steps,
    norm,
    parted,
    relu,
    rotary,
)
from lorawise.planning.memory.products import Product, product
from lorawise.planning.memory.tape import Buffer, Tape, Value

_LAYER_NORM = ("gpt2", "gpt_neox", "falcon", "opt", "phi", "stablelm", "starcoder2", "bloom", "mpt")
_CENTRED_NORM = ("cohere", "cohere2")  # written out in steps, which keep both x − mean and its fp32 source
_LIMITED_GATE = ("gpt_oss",)  # experts whose gate clamps gate and up
_PARTIAL_ROTARY = ("phi3", "gpt_neox", "phi", "stablelm")  # heads put together again by a copy, head by head
_PARALLEL = ("gpt_neox", "falcon", "cohere", "phi", "gptj")
_LEARNED_POSITIONS = ("gpt2", "opt", "bloom", "mpt")
_NORM_OF_QUERY = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")
_AFTER_ALONE = ("olmo2", "olmo3")  # no norm before attention and feed-forward, one after each

MakeProduct = Callable[[Matrix], Product]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer: its matrices by what they do, and the ends of its norms' names."""

    facts: ModelFacts
    matrices: tuple[Matrix, ...]
    norms: frozenset[str]

    def by_role(self, *roles: str) -> list[Matrix]:
        return [m for m in self.matrices if m.role in roles and m.kind != "experts"]

    @cached_property
    def kind(self) -> Norm:
        if self.facts.model_type in _CENTRED_NORM:
            return "centred"
        return "layer" if self.facts.model_type in _LAYER_NORM else "rms"

    @property
    def attention(self) -> Attention:
        return Attention(heads=self.facts.num_heads, key_heads=self.facts.num_kv_heads, head_dim=self.facts.head_dim)

    @property
    def before(self) -> bool:
        return self.facts.model_type not in _AFTER_ALONE

    @property
    def sandwich(self) -> bool:
        """A norm after attention and after the feed-forward too."""
        return "post_feedforward_layernorm" in self.norms or not self.before

    @property
    def normed_queries(self) -> bool:
        return any(name in self.norms for name in _NORM_OF_QUERY)

    @property
    def parallel(self) -> bool:
        config = self.facts.config
        return self.facts.model_type in _PARALLEL and bool(
            config.get("parallel_attn", config.get("use_parallel_residual", True))
        )


def layers_of(facts: ModelFacts) -> list[Layer]:
    matrices: dict[int, list[Matrix]] = {}
    for matrix in facts.decoder:
        matrices.setdefault(matrix.layer or 0, []).append(matrix)
    norms: dict[int, set[str]] = {}
    for parameter in facts.others:
        parts = parameter.name.split(".")
        index = next((int(part) for part in parts if part.isdigit()), None)
        if index is not None and len(parts) > 1:
            norms.setdefault(index, set()).add(parts[-2])
    return [
        Layer(facts=facts, matrices=tuple(found), norms=frozenset(norms.get(index, ())))
        for index, found in sorted(matrices.items())
    ]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward pass through layers, on a tape."""

    tape: Tape
    numbers: Numbers
    make: MakeProduct
    masked: bool = False
    score_bytes: int = 0  # of each score under a softcap, where attention makes them all
    gradients: list[Buffer] | None = None
    trained: bool = False

    def layer(self, layer: Layer, x: Value) -> Value:
        tape, facts = self.tape, layer.facts
        read = self._norm(layer, x) if layer.before else x
        with tape.during(cause="attention"):
            out = self._attention(layer, read)
        if layer.sandwich:
            out = self._norm(layer, out)
        if layer.parallel:
            if "post_attention_layernorm" in layer.norms:
                read = self._norm(layer, x)
            with tape.during(cause="feed-forward"):
                fed = self._feed_forward(layer, read)
            with tape.during(cause="hidden states"):
                return added(tape, added(tape, fed, out), x)
        del read
        with tape.during(cause="hidden states"):
            x = added(tape, x, out)
        del out
        read = self._norm(layer, x) if layer.before else x
        with tape.during(cause="feed-forward"):
            fed = self._feed_forward(layer, read)
        del read
        if layer.sandwich:
            fed = self._norm(layer, fed)
        del facts
        with tape.during(cause="hidden states"):
            return added(tape, x, fed)

    def _norm(self, layer: Layer, x: Value) -> Value:
        cells = self.numbers.tokens * layer.facts.hidden_size
        with self.tape.during(cause="norms"):
            return norm(self.tape, x, cells, self.numbers.tokens, layer.kind, trained=self.trained)

    def _product(self, x: Value, matrix: Matrix) -> Value:
        return product(self.tape, self.numbers, x, self.make(matrix), gradients=self.gradients)

    def _attention(self, layer: Layer, x: Value) -> Value:
        tape, facts, a = self.tape, layer.facts, layer.attention
        fused = layer.by_role("qkv")
        if fused:
            whole = self._product(x, fused[0])
            q, k, v = parted(tape, whole, (a.heads, a.key_heads, a.key_heads))
            del whole
        else:
            q, k, v = (self._product(x, layer.by_role(role)[0]) for role in "qkv")
        if layer.normed_queries:
            q, k = (self._head_norm(layer, y, heads) for y, heads in ((q, a.heads), (k, a.key_heads)))
        if facts.model_type not in _LEARNED_POSITIONS:
            q, k = rotary(tape, q), rotary(tape, k)
        capped = self.score_bytes if facts.config.get("attn_logit_softcapping") else 0
        out = attention(tape, self.numbers, q, k, v, replace(a, masked=self.masked, capped=capped))
        del q, k, v
        if facts.model_type in _PARTIAL_ROTARY:
            out = copied(tape, out)
        return self._product(out, layer.by_role("o")[0])

    def _head_norm(self, layer: Layer, x: Value, heads: int) -> Value:
        T, d = self.numbers.tokens, layer.attention.head_dim
        with self.tape.during(cause="norms"):
            groups = T if layer.facts.model_type in _AFTER_ALONE else T * heads
            return norm(self.tape, x, T * heads * d, groups, layer.kind, trained=self.trained)

    def _feed_forward(self, layer: Layer, x: Value) -> Value:
        tape, mlp = self.tape, layer.by_role("mlp")
        fused = {m.name.rpartition(".")[2]: self.make(m) for m in layer.matrices if m.kind == "experts"}
        if "gate_up_proj" in fused and "down_proj" in fused:
            pair = ExpertPair(
                first=fused["gate_up_proj"],
                second=fused["down_proj"],
                chosen=layer.facts.experts_per_token,
                limited=layer.facts.model_type in _LIMITED_GATE,
            )
            routed = experts(tape, self.numbers, x, pair, gradients=self.gradients)
            return routed if not mlp else added(tape, routed, self._dense(layer, x, mlp))
        return self._dense(layer, x, mlp) if mlp else x

    def _dense(self, layer: Layer, x: Value, mlp: list[Matrix]) -> Value:
        tape = self.tape
        named = {m.name.rpartition(".")[2]: m for m in mlp}
        down = mlp[-1]
        if "gate_proj" in named:
            gate = self._product(x, named["gate_proj"])
            up = self._product(x, named["up_proj"])
            inner = gated(tape, gate, up)
            down = named["down_proj"]
            del gate, up
        elif "gate_up_proj" in named:
            whole = self._product(x, named["gate_up_proj"])
            gate, up = parted(tape, whole, (1, 1))
            del whole
            inner = gated(tape, gate, up)
            down = named["down_proj"]
            del gate, up
        else:
            act = str(layer.facts.config.get("activation_function", layer.facts.config.get("hidden_act", "")))
            kind = {"relu": relu, "gelu_new": gelu_in_steps}.get(act, activation)
            inner = kind(tape, self._product(x, mlp[0]))
        del x
        return self._product(inner, down)
