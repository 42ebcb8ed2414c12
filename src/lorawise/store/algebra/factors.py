"""One module's update as two thin factors, and what can be known of it without ever making it dense.

    ΔW = B·A   A (r, in), B (out, r), float64, the scaling folded into B

B = Q_b·R_b and Aᵀ = Q_a·R_a, so ΔW = Q_b·(R_b·R_aᵀ)·Q_aᵀ: its singular values are those of the small core (r, r). A
dense SVD of the same update costs min(in, out)² · max(in, out); this costs r² · (in + out). A sum of updates is again
of this form, the factors side by side, so distances and errors need nothing dense either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorawise.base.errors import AdapterError
from lorawise.lora.weights import StoredAdapter

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """ΔW = B·A of one module."""

    A: Array  # (r, in)
    B: Array  # (out, r)

    @classmethod
    def of(cls, adapter: StoredAdapter, module: str) -> "Factors":
        """As the adapter computes it, its scaling included."""
        a, b = adapter.layers[module]
        if adapter.kinds.get(module) == "experts":
            raise AdapterError(
                f"{module} is a stack of {a.shape[0]} experts",
                expected="linear layers and embeddings; arithmetic on experts is not there yet",
                cure="use the adapter in the model: lorawise.load, or PEFT",
            )
        return cls(A=a.double(), B=adapter.config.scaling_of(module) * b.double())

    @property
    def rank(self) -> int:
        return len(self.A)

    def times(self, weight: float) -> "Factors":
        return Factors(A=self.A, B=weight * self.B)

    def dense(self) -> Array:
        """ΔW (out, in)."""
        return np.asarray(self.B @ self.A, dtype=np.float64)

    def norm(self) -> float:
        """‖ΔW‖, Frobenius."""
        return float(np.linalg.norm(core(self)[1]))

    def singular_values(self) -> Array:
        """Descending, as many as the factors can carry: min(r, in, out)."""
        return np.asarray(np.linalg.svd(core(self)[1], compute_uv=False), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Svd:
    """ΔW = U·diag(S)·Vt, S descending; U (out, k), Vt (k, in)."""

    U: Array
    S: Array
    Vt: Array

    def factors(self, rank: int) -> Factors:
        """The nearest update of that rank; each singular value's root on either side, so that A and B are of a size."""
        root = np.sqrt(self.S[:rank])
        return Factors(A=root[:, None] * self.Vt[:rank], B=self.U[:, :rank] * root)


def total(parts: Sequence[Factors]) -> Factors:
    """The sum of several updates, exactly: the factors side by side."""
    return Factors(A=np.concatenate([part.A for part in parts]), B=np.concatenate([p.B for p in parts], axis=1))


def core(factors: Factors) -> tuple[Array, Array, Array]:
    """(Q_b, R_b·R_aᵀ, Q_a)."""
    q_b, r_b = np.linalg.qr(factors.B)
    q_a, r_a = np.linalg.qr(factors.A.T)
    return q_b, r_b @ r_a.T, q_a


def svd(factors: Factors) -> Svd:
    q_b, small, q_a = core(factors)
    u, s, vt = np.linalg.svd(small, full_matrices=False)
    return Svd(U=q_b @ u, S=s, Vt=vt @ q_a.T)


def inner(one: Factors, other: Factors) -> float:
    """⟨ΔW₁, ΔW₂⟩ = Σᵢⱼ, the numerator of their cosine."""
    return float(np.sum((one.B.T @ other.B) * (one.A @ other.A.T)))


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
