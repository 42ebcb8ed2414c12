"""Many adapters over one frozen layer, in one product.

y = base(x) + sᵢ · Bᵢ·Aᵢ·x for the rows of slot i.
Shapes: x (n·rows, …, in), A (n, r, in), B (n, out, r). Short ranks are padded with zeros, and the padding stays zero:
its part of u and of du is zero, so is its gradient. A slot that does not adapt this layer has rank 0 here.
Where a layer holds a stack of matrices (fused experts), A and B have its size between n and the rest.
A and B are fp32 masters (fp64 over an fp64 base), computed in the base's dtype.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from lorawise.base.errors import AdapterError
from lorawise.lora.config import LoraConfig
from lorawise.lora.dropout import Masks, kept_share
from lorawise.lora.inits import INITS, generator_for
from lorawise.lora.packed import PackedLinear
from lorawise.lora.product import Scale, Weight, add_lora, lora_linear
from lorawise.lora.routing import Routing
from lorawise.lora.wrapping import Wrapper, master_dtype, set_values, unwrapped

Slot = tuple[Tensor, Tensor]  # A (r, in), B (out, r)
_PLAIN_WEIGHTS = (nn.Parameter, FakeTensor)  # neither sharded nor quantised; fake ones have no values, and are traced


class BankLayer(Wrapper):
    """n ≥ 0 slots over one frozen layer. Abstract: one final class a kind of layer.

    in_width, out_width  of the layer, so that A is (n, r, in_width) and B (n, out_width, r)
    stack                () for one matrix; (experts,) for fused experts: A is then (n, experts, r, in_width)
    ranks, scaling       of each slot at this layer; rank 0 where the slot leaves it alone
    """

    stored_in_out: bool  # whether the base keeps its weight as (in, out)
    parameter: str = "weight"  # the base's, that is adapted
    lora_A: nn.Parameter  # noqa: N815 - the field's names
    lora_B: nn.Parameter  # noqa: N815

    def __init__(self, base_layer: nn.Module, name: str, routing: Routing) -> None:
        super().__init__(base_layer, name, routing)
        self.in_width, self.out_width = self.widths(unwrapped(base_layer), name)
        self.stack = self.stacked(unwrapped(base_layer))
        self.ranks: tuple[int, ...] = ()
        self.scaling: tuple[float, ...] = ()
        self._scale_key: object = None
        self._scale: Tensor | None = None
        like = _master_like(unwrapped(base_layer))
        self.lora_A = nn.Parameter(like.new_empty(0, *self.stack, 0, self.in_width), requires_grad=False)
        self.lora_B = nn.Parameter(like.new_empty(0, *self.stack, self.out_width, 0), requires_grad=False)

    @staticmethod
    def widths(base: nn.Module, name: str) -> tuple[int, int]:
        """(in, out) of what is called `name` in a base layer of this kind."""
        raise NotImplementedError

    @staticmethod
    def stacked(base: nn.Module) -> tuple[int, ...]:
        """How many matrices a base layer of this kind holds under one name, as a shape."""
        return ()

    @classmethod
    def fresh(cls, base: nn.Module, name: str, config: LoraConfig) -> Slot:
        """A new slot for the base module called `name`: A and B drawn from (seed, name), as masters on its device."""
        like = _master_like(base)
        stack, rank, (in_width, out_width) = cls.stacked(base), config.rank_of(name), cls.widths(base, name)
        if like.is_meta:
            return like.new_empty(*stack, rank, in_width), like.new_empty(*stack, out_width, rank)
        A, B = cls.drawn(rank * math.prod(stack), in_width, out_width, config, generator_for(config.seed, name))
        return A.to(like).view(*stack, rank, in_width), B.to(like).view(*stack, out_width, rank)

    @staticmethod
    def drawn(rank: int, in_width: int, out_width: int, config: LoraConfig, generator: torch.Generator) -> Slot:
        """How this kind of layer starts: A by `config.init`, B at zero. `rank` is that of the whole stack."""
        return INITS[config.init](rank, in_width, generator), torch.zeros(out_width, rank)

    def fill(self, slots: Sequence[Slot | None]) -> None:
        """Hold exactly these slots (None: rank 0), padded to the longest rank; scaling follows the routing's configs.

        The parameters stay the same objects, and the same memory while their shape does not change; an optimizer that
        already holds state for another shape refuses loudly.
        """
        self.ranks = tuple(0 if slot is None else slot[0].shape[-2] for slot in slots)
        self.scaling = tuple(
            0.0 if slot is None else config.scaling_of(self.name)
            for slot, config in zip(slots, self.routing.configs, strict=True)
        )
        longest = max(self.ranks, default=0)
        A = self.lora_A.new_zeros(len(slots), *self.stack, longest, self.in_width, requires_grad=False)
        B = self.lora_B.new_zeros(len(slots), *self.stack, self.out_width, longest, requires_grad=False)
        for i, slot in enumerate(slots):
            if slot is not None:
                A[i, ..., : self.ranks[i], :].copy_(slot[0])
                B[i, ..., : self.ranks[i]].copy_(slot[1])
        set_values(self.lora_A, A)
        set_values(self.lora_B, B)

    def slot(self, i: int) -> Slot | None:
        """Slot i without its padding, detached views; None where it leaves this layer alone."""
        rank = self.ranks[i]
        if rank == 0:
            return None
        return self.lora_A.detach()[i, ..., :rank, :], self.lora_B.detach()[i, ..., :rank]

    def delta_weight(self, mix: Sequence[tuple[int, float]]) -> Tensor | None:
        """Σ weight · factor · s · B·A, shaped as the base's weight, in the master's dtype; None: none is here."""
        delta: Tensor | None = None
        for i, weight in mix:
            slot = self.slot(i)
            if slot is not None:
                part = (slot[1] @ slot[0]).mul_(weight * self.scaling[i] * self.routing.factors[i])
                delta = part if delta is None else delta.add_(part)
        return delta if delta is None or not self.stored_in_out else delta.mT

    def active(self, keep: tuple[float, ...] = ()) -> tuple[Tensor, Tensor, Scale] | None:
        """A (m, r, in), B (m, out, r) and scale for the current route; m = 1 unless the bank routes. None: base alone.

        `keep`: the probabilities of the dropout masks, one an adapter, whose inverse is part of the scale.
        """
        routing = self.routing
        if routing.merged is not None or not any(self.ranks):
            return None
        sole = routing.sole()
        if sole is not None:
            rank = self.ranks[sole]
            if rank == 0:
                return None
            scale = self.scaling[sole] * routing.factors[sole] / (keep[0] if keep else 1.0)
            if len(self.ranks) == 1:
                return self.lora_A, self.lora_B, scale
            return self.lora_A[sole : sole + 1, ..., :rank, :], self.lora_B[sole : sole + 1, ..., :rank], scale
        if routing.route.mode == "bank":
            return self.lora_A, self.lora_B, self._scales(keep or (1.0,) * routing.n)
        return self._stacked()

    def _stacked(self) -> tuple[Tensor, Tensor, Scale] | None:
        """One adapter of rank Σ rᵢ that is exactly the weighted sum of the deltas."""
        routing = self.routing
        here = [(i, weight) for i, weight in routing.route.mix if self.ranks[i]]
        if not here:
            return None
        A = torch.cat([self.lora_A[i, ..., : self.ranks[i], :] for i, _ in here], dim=-2)
        B = torch.cat(
            [self.lora_B[i, ..., : self.ranks[i]] * (w * self.scaling[i] * routing.factors[i]) for i, w in here], dim=-1
        )
        return A[None], B[None], 1.0

    def _scales(self, keep: tuple[float, ...]) -> Tensor:
        """(n, 1, 1) on the layer's device, rebuilt only when a scaling, a factor or a dropout changed."""
        values = tuple(s * f / k for s, f, k in zip(self.scaling, self.routing.factors, keep, strict=True))
        key = (values, self.lora_A.device)
        if self._scale is None or self._scale_key != key:
            self._scale = self.lora_A.new_tensor(values).view(-1, 1, 1)
            self._scale_key = key
        return self._scale

    def _check_rows(self, x: Tensor, m: int) -> None:
        if m > 1 and x.shape[0] % m:
            raise AdapterError(
                f"{self.name} got {x.shape[0]} rows for {m} slots",
                expected="the same number of rows for every slot, slot after slot along the first dimension",
                cure="repeat the rows for each slot, or choose one adapter: adapters.use(name)",
            )

    def extra_repr(self) -> str:
        return f"n={len(self.ranks)}, ranks={list(self.ranks)}, scaling={[round(s, 6) for s in self.scaling]}"


class LinearBank(BankLayer):
    """Over `nn.Linear` and what derives from it (packed layers, bitsandbytes' own); inputs of any rank."""

    stored_in_out = False

    @staticmethod
    def widths(base: nn.Module, name: str) -> tuple[int, int]:
        assert isinstance(base, nn.Linear)
        return base.in_features, base.out_features

    def forward(self, x: Tensor) -> Tensor:
        masks = self._masks() if self.training else None
        active = self.active(masks.keep if masks else ())
        if active is None:
            y: Tensor = self.base_layer(x)
            return y
        A, B, s = active
        self._check_rows(x, A.shape[0])
        weight = self._plain_weight(x)
        if weight is not None:
            return lora_linear(self.base_layer, weight, x, A, B, s, masks)
        return add_lora(self.base_layer(x), x, A, B, s, masks)

    def _masks(self) -> Masks | None:
        """Of the slots that the route trains; a weighted stack, being run time only, has no dropout."""
        routing = self.routing
        sole = routing.sole()
        if routing.merged is not None or (sole is None and routing.route.mode != "bank"):
            return None
        slots = range(routing.n) if sole is None else (sole,)
        keep = tuple(kept_share(routing.configs[i].dropout) for i in slots)
        if min(keep) == 1.0:
            return None
        if routing.draw is None:
            raise AdapterError(
                "dropout is on, but no mask was drawn",
                expected="one draw for every forward and backward of a training step",
                cure="call adapters.draw(step, micro) before the forward pass",
            )
        return Masks(seeds=tuple(routing.dropout_seed(i, self.name) for i in slots), keep=keep)

    def _plain_weight(self, x: Tensor) -> Weight | None:
        """(out, in) of a layer that does x·Wᵀ + b and nothing else; None when it must be left to its own gradient."""
        base = self.base_layer
        if isinstance(base, PackedLinear):
            return base if x.dtype == base.compute_dtype and _undisturbed(base, base.bias, x) else None
        if type(base) is not nn.Linear:
            return None
        return base.weight if _plain(base, base.weight, base.bias, x) else None


class Conv1DBank(LinearBank):
    """Over GPT-2's `Conv1D`, a linear layer whose weight is stored (in, out)."""

    stored_in_out = True

    @staticmethod
    def widths(base: nn.Module, name: str) -> tuple[int, int]:
        rows, columns = base.get_parameter("weight").shape
        return rows, columns

    def _plain_weight(self, x: Tensor) -> Weight | None:
        base = self.base_layer
        if isinstance(base, Wrapper):
            return None
        weight, bias = base.get_parameter("weight"), base.get_parameter("bias")
        return weight.mT if _plain(base, weight, bias, x) else None


class EmbeddingBank(BankLayer):
    """Over `nn.Embedding`: y = base(ids) + e·s·B·A[:, ids], with A (n, r, vocabulary), B (n, width, r).

    e is what the embedding's class multiplies its rows by (Gemma: √width), else 1. As in PEFT, A starts at zero and B
    at N(0, 1), there is no dropout, and the padding row gets no gradient.
    """

    stored_in_out = True

    @staticmethod
    def widths(base: nn.Module, name: str) -> tuple[int, int]:
        assert isinstance(base, nn.Embedding)
        return base.num_embeddings, base.embedding_dim

    @staticmethod
    def drawn(rank: int, in_width: int, out_width: int, config: LoraConfig, generator: torch.Generator) -> Slot:
        return torch.zeros(rank, in_width), torch.empty(out_width, rank).normal_(generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.base_layer(ids)
        active = self.active()
        if active is None:
            return y
        A, B, s = active
        m = A.shape[0]
        self._check_rows(ids, m)
        flat = ids.reshape(m, -1)
        offset = torch.arange(m, device=ids.device)[:, None] * self.in_width
        u = F.embedding(flat + offset, A.mT.reshape(m * self.in_width, -1))
        base = unwrapped(self.base_layer)
        assert isinstance(base, nn.Embedding)
        if base.padding_idx is not None:
            u = torch.where((flat == base.padding_idx)[..., None], u.detach(), u)
        delta = torch.bmm(u.to(y.dtype), (B * s).to(y.dtype).mT).view(y.shape)
        scale = embedding_scale(base)
        return y + (delta if scale is None else delta * scale)


def embedding_scale(base: nn.Embedding) -> Tensor | float | None:
    """What a scaled embedding's class multiplies its rows by (Gemma 3, BART: `embed_scale`); None for a plain one."""
    if type(base).forward is nn.Embedding.forward:
        return None
    scale: Tensor | float = base.embed_scale  # type: ignore[assignment]
    return scale.to(base.weight.dtype) if isinstance(scale, Tensor) else scale


def _plain(base: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor) -> bool:
    """Whether x's gradient through `base` is dy·W: frozen, unhooked, undistributed, no autocast."""
    return (
        type(weight) in _PLAIN_WEIGHTS
        and not weight.requires_grad
        and x.dtype == weight.dtype
        and _undisturbed(base, bias, x)
    )


def _undisturbed(base: nn.Module, bias: Tensor | None, x: Tensor) -> bool:
    """Whether `base` does what its class does and nothing else."""
    return (
        (bias is None or not bias.requires_grad)
        and not torch.is_autocast_enabled(x.device.type)
        and "forward" not in vars(base)
        and not (base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks)
    )


def _master_like(base: nn.Module) -> Tensor:
    """An empty tensor with the dtype and device that the masters of this layer have."""
    reference = next(base.parameters())
    return reference.new_empty(0, dtype=master_dtype(reference.dtype))
