"""Adagrad in NumPy: what a store without an optimizer is trained with, and what all must equal."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LR = 0.05
ACCUMULATOR = 0.1


def summed(
    ids: NDArray[Any], gradients: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the distinct ids, ascending, and the sum of each one's gradients.

    Parameters
    ----------
    ids : ndarray of an integer type, shape (n,)
        With duplicates.
    gradients : ndarray of float32, shape (n, dim)
        One for each.
    """
    order = np.argsort(ids, kind="stable")
    ascending = ids[order]
    starts = np.flatnonzero(np.concatenate(([True], ascending[1:] != ascending[:-1])))
    return ascending[starts], np.add.reduceat(gradients[order], starts)


def adagrad_step(
    rows: NDArray[np.float32], accumulators: NDArray[np.float32], gradients: NDArray[np.float32]
) -> None:
    """Take one step on `rows` and `accumulators`, (n, dim) float32, in place."""
    accumulators += gradients * gradients
    rows -= np.float32(LR) * gradients / np.sqrt(accumulators)
