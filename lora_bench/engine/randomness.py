"""Stateless randomness: every draw is a function of its key, never of what was drawn before.

Values come from Philox's raw bits (a stream that numpy promises not to change) through inverse distribution functions,
so that a frozen factor can be rebuilt from (seed, module, factor) on any machine, years later.
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
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "big")).random_raw(count)


def _unit(count: int, *key: str | int) -> Floats:
    """Uniform on the open interval (0, 1), 53 bits."""
    return ((_raw(count, *key) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(rows: int, cols: int, *key: str | int) -> Floats:
    """`[rows, cols]` from N(0, 1)."""
    values: Floats = ndtri(_unit(rows * cols, *key)).reshape(rows, cols)
    return values


def uniform(rows: int, cols: int, *key: str | int) -> Floats:
    """`[rows, cols]` from U(-1, 1)."""
    return (_unit(rows * cols, *key) * 2 - 1).reshape(rows, cols)


def orthonormal(rows: int, cols: int, *key: str | int) -> Floats:
    """`[rows, cols]` of random orthonormal rows or columns, whichever are fewer; no direction is preferred."""
    values = normal(max(rows, cols), min(rows, cols), *key)
    with _blas().limit(limits=1, user_api="blas"):  # matrices this small take threads many times as long as one
        tall, triangle = np.linalg.qr(values)
    tall = tall * np.where(np.diag(triangle) < 0, -1.0, 1.0)
    return tall if rows >= cols else tall.T


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def permutation(count: int, *key: str | int) -> NDArray[np.int64]:
    """A permutation of 0 … count-1."""
    return np.argsort(_raw(count, *key), kind="stable")


def seed_of(*key: str | int) -> int:
    """A 63-bit seed for a torch generator."""
    return int(_raw(1, *key)[0]) >> 1
