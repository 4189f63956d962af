"""Stateless randomness: every draw is a function of its key, never of what was drawn before.

Values come from the raw bits of Philox, a stream that numpy promises not to change, through inverse distribution
functions. So a frozen factor can be rebuilt from (seed, module, factor) on any machine, years later.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from threadpoolctl import ThreadpoolController

Floats = NDArray[np.float64]


def _raw(count: int, *key: str | int) -> NDArray[np.uint64]:
    """`count` random 64-bit words of a key."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "big")).random_raw(count)


def _unit(count: int, *key: str | int) -> Floats:
    """Uniform on the open interval (0, 1): the middles of 2⁵³ equal steps, as many as a float64 can tell apart."""
    return ((_raw(count, *key) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(rows: int, cols: int, *key: str | int) -> Floats:
    """`[rows, cols]` from N(0, 1)."""
    values: Floats = ndtri(_unit(rows * cols, *key)).reshape(rows, cols)
    return values


def uniform(rows: int, cols: int, *key: str | int) -> Floats:
    """`[rows, cols]` from U(-1, 1)."""
    return (_unit(rows * cols, *key) * 2 - 1).reshape(rows, cols)


def orthonormal(rows: int, cols: int, *key: str | int) -> Floats:
    """`[rows, cols]` with orthonormal rows or columns, whichever are fewer; all directions are equally likely."""
    values = normal(max(rows, cols), min(rows, cols), *key)
    with _blas().limit(limits=1, user_api="blas"):  # on matrices this small, threads take many times as long as one
        q, r = np.linalg.qr(values)
    # LAPACK chooses the signs. With those of a positive diagonal of R the distribution is uniform.
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return q if rows >= cols else q.T


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def permutation(count: int, *key: str | int) -> NDArray[np.int64]:
    """A permutation of 0 … count - 1."""
    return np.argsort(_raw(count, *key), kind="stable")


def seed_of(*key: str | int) -> int:
    """A 63-bit seed for a torch generator."""
    return int(_raw(1, *key)[0]) >> 1
