"""The largest singular values and vectors of a dense matrix.

Up to `WHOLE` on its shorter side a matrix is decomposed whole; beyond, by a random range finder with power iterations
(Halko, Martinsson and Tropp 2011, algorithm 4.4), since a whole SVD at 4,096 wide takes most of a minute.
"""

import numpy as np

from lorawise.store.algebra.factors import Array, Svd

WHOLE = 1_024
_MORE = 16  # columns beyond the rank asked for
_ITERATIONS = 4


def largest(matrix: Array, rank: int, *, seed: int) -> Svd:
    """At least `rank` singular values, descending; `seed` starts the search where the matrix is large."""
    if min(matrix.shape) <= max(WHOLE, 2 * rank):
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        return Svd(U=u, S=s, Vt=vt)
    start = np.random.default_rng(seed).standard_normal((matrix.shape[1], rank + _MORE))
    basis = np.linalg.qr(matrix @ start)[0]
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])[0]
    u, s, vt = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return Svd(U=basis @ u, S=s, Vt=vt)
