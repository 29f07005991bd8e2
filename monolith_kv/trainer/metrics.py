"""Area under the ROC curve, of a whole or as a stream goes on."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ProgressiveAuc", "auc"]


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the probability that a positive has a higher score than a negative, ties by half.

    Parameters
    ----------
    labels : array_like, shape (n,)
        Positive where > 0.5.
    scores : array_like of float, shape (n,)
        Finite.

    Returns
    -------
    float
        nan where there are no positives or no negatives.

    Examples
    --------
    >>> auc([0, 1, 1, 0], [0.1, 0.9, 0.4, 0.4])
    0.875
    """
    positive = np.asarray(labels) > 0.5
    _, inverse, counts = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    hits = np.bincount(inverse, weights=positive, minlength=len(counts)).astype(np.float64)
    return _area(hits, counts.astype(np.float64) - hits)


class ProgressiveAuc:
    """AUC of all predictions so far, in constant memory, off by less than one bin's width.

    Parameters
    ----------
    bins : int
        Probabilities are counted in this many equal bins of 0..1; ties inside one count by half.

    Examples
    --------
    >>> metric = ProgressiveAuc()
    >>> metric.update([0, 1], [0.2, 0.8])
    >>> metric.value, metric.count
    (1.0, 2)
    """

    def __init__(self, bins: int = 1 << 14) -> None:
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins}")
        self._positives = np.zeros(bins)
        self._negatives = np.zeros(bins)

    def update(self, labels: ArrayLike, probabilities: ArrayLike) -> None:
        """Count predictions that were made before their labels were known.

        Parameters
        ----------
        labels : array_like, shape (n,)
            Positive where > 0.5.
        probabilities : array_like, shape (n,)
            0 to 1.
        """
        positive = np.asarray(labels) > 0.5
        bins = len(self._positives)
        places = np.clip(np.asarray(probabilities) * bins, 0, bins - 1).astype(np.int64)
        np.add.at(self._positives, places[positive], 1)
        np.add.at(self._negatives, places[~positive], 1)

    @property
    def count(self) -> int:
        """Predictions so far."""
        return int(self._positives.sum() + self._negatives.sum())

    @property
    def value(self) -> float:
        """The AUC; nan while there are no positives or no negatives."""
        return _area(self._positives, self._negatives)


def _area(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """AUC of counts by rising score."""
    pairs = float(positives.sum() * negatives.sum())
    if pairs == 0.0:
        return float("nan")
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + 0.5 * negatives)).sum()) / pairs
