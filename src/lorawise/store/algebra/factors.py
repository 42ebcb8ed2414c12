"""One module's update as two thin factors, and what can be known of it without ever making it dense.

    ΔW = B·A   A (r, in), B (out, r), float64, the scaling folded into B

B = Q_b·R_b and Aᵀ = Q_a·R_a, so ΔW = Q_b·(R_b·R_aᵀ)·Q_aᵀ: its singular values are those of the small core (r, r). A
dense SVD of the same update costs min(in, out)² · max(in, out); this costs r² · (in + out). A sum of updates is again
of this form, the factors side by side, so distances and errors need nothing dense either.

Fused experts are one module with a stack of updates, A (E, r, in), B (E, out, r): as if they were the blocks of one
block-diagonal matrix. Norms, products and distances are those of that matrix; a rank is that of every expert.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorawise.lora.weights import StoredAdapter

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """ΔW = B·A of one module."""

    A: Array  # (r, in), of experts (E, r, in)
    B: Array  # (out, r), of experts (E, out, r)

    @classmethod
    def of(cls, adapter: StoredAdapter, module: str) -> "Factors":
        """As the adapter computes it, its scaling included."""
        a, b = adapter.layers[module]
        return cls(A=a.double(), B=adapter.config.scaling_of(module) * b.double())

    @property
    def rank(self) -> int:
        return int(self.A.shape[-2])

    def times(self, weight: float) -> "Factors":
        return Factors(A=self.A, B=weight * self.B)

    def dense(self) -> Array:
        """ΔW (out, in), of experts (E, out, in)."""
        return np.asarray(self.B @ self.A, dtype=np.float64)

    def norm(self) -> float:
        """‖ΔW‖, Frobenius."""
        return float(np.linalg.norm(core(self)[1]))

    def singular_values(self) -> Array:
        """Descending, as many as the factors can carry: min(r, in, out). Of experts the k-th is √Σₑ σₑₖ²: what rank k
        adds to the energy of all."""
        values = np.asarray(np.linalg.svd(core(self)[1], compute_uv=False), dtype=np.float64)
        return values if values.ndim == 1 else np.sqrt(np.sum(values**2, axis=0))

    def each(self) -> Iterator["Factors"]:
        """The experts' one by one; of any other module itself."""
        if self.A.ndim == 2:
            yield self
            return
        for a, b in zip(self.A, self.B, strict=True):
            yield Factors(A=a, B=b)


@dataclass(frozen=True, kw_only=True, eq=False)
class Svd:
    """ΔW = U·diag(S)·Vt, S descending; U (out, k), Vt (k, in), of experts each with E in front."""

    U: Array
    S: Array
    Vt: Array

    def factors(self, rank: int) -> Factors:
        """The nearest update of that rank; each singular value's root on either side, so that A and B are of a size."""
        root = np.sqrt(self.S[..., :rank])
        return Factors(A=root[..., None] * self.Vt[..., :rank, :], B=self.U[..., :rank] * root[..., None, :])


def total(parts: Sequence[Factors]) -> Factors:
    """The sum of several updates, exactly: the factors side by side."""
    A = np.concatenate([part.A for part in parts], axis=-2)
    return Factors(A=A, B=np.concatenate([part.B for part in parts], axis=-1))


def core(factors: Factors) -> tuple[Array, Array, Array]:
    """(Q_b, R_b·R_aᵀ, Q_a)."""
    q_b, r_b = np.linalg.qr(factors.B)
    q_a, r_a = np.linalg.qr(turned(factors.A))
    return q_b, r_b @ turned(r_a), q_a


def svd(factors: Factors) -> Svd:
    q_b, small, q_a = core(factors)
    u, s, vt = np.linalg.svd(small, full_matrices=False)
    return Svd(U=q_b @ u, S=s, Vt=vt @ turned(q_a))


def turned(matrices: Array) -> Array:
    """Each matrix of a stack transposed."""
    return np.swapaxes(matrices, -1, -2)


def inner(one: Factors, other: Factors) -> float:
    """⟨ΔW₁, ΔW₂⟩ = Σᵢⱼ, the numerator of their cosine."""
    return float(np.sum((turned(one.B) @ other.B) * (one.A @ turned(other.A))))


def distance(one: Factors, other: Factors) -> float:
    """‖ΔW₁ − ΔW₂‖, to rounding of the larger of them."""
    return total([one, other.times(-1.0)]).norm()


def effective_rank(singular_values: Array, energy: float) -> int:
    """How many singular values hold that share of ‖ΔW‖²; 0 for an update that is zero."""
    squares = np.square(singular_values)
    if not squares.sum():
        return 0
    held = np.cumsum(squares) / squares.sum()
    return int(np.searchsorted(held, energy * (1 - 1e-12)) + 1)
