"""A logistic regression with a factorization machine, its gradients by hand, in NumPy.

An event with rows (b_f, v_f) of its fields has the probability

    sigmoid(intercept + sum_f w_f b_f + sum_{f<g} <v_f, v_g>)

b (the bias, 1 wide) and v (the vector) are two slices of one record, so one index probe brings
both, each with its own optimizer. Intercept and w are dense: one of each for the whole model. A row
that is absent reads as zeros and adds nothing. Rendle, "Factorization machines", ICDM 2010.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import monolith_kv as mkv

__all__ = ["DenseWeights", "FactorizationMachine"]

Floats = NDArray[np.float32]

_NAMES = ("intercept", "field_weight", "accumulator")
_EARLIER = "earlier."
_POSITION = "position"


@dataclass
class DenseWeights:
    """What the model has once and not by fid, with its Adagrad state.

    Parameters
    ----------
    intercept : ndarray of float32, shape (1,)
        The log-odds of an event of which no fid is known.
    field_weight : ndarray of float32, shape (fields,)
        What the bias of each field counts.
    accumulator : ndarray of float32, shape (1 + fields,)
        Sums of squared gradients.
    position : int
        Where in the stream these weights stand.
    earlier : DenseWeights, optional
        Those that were published before these.

    Notes
    -----
    Dense weights are durable when they are published, rows when they are sealed. Between the two a
    crash may fall, so each publication carries the one before it: `at(position)` then finds those
    that belong to the rows.

    Examples
    --------
    >>> weights = DenseWeights.start(fields=2)
    >>> weights.step(np.ones(3, np.float32), lr=0.1)
    >>> DenseWeights.at(weights.arrays(position=64), 64).position
    64
    """

    intercept: Floats
    field_weight: Floats
    accumulator: Floats
    position: int = 0
    earlier: "DenseWeights | None" = field(default=None, repr=False)

    @classmethod
    def start(cls, fields: int) -> "DenseWeights":
        """Return the weights of a model that has seen nothing.

        Parameters
        ----------
        fields : int
            Fids of one event.
        """
        return cls(
            np.zeros(1, np.float32),
            np.ones(fields, np.float32),
            np.full(1 + fields, 0.1, np.float32),
        )

    @classmethod
    def at(cls, arrays: Mapping[str, NDArray[Any]], position: int) -> "DenseWeights":
        """Return those of the published weights that belong to rows sealed at `position`.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            As made by `arrays`; the store's `dense`.
        position : int
            Of the store's cursor.

        Raises
        ------
        ValueError
            Neither generation stands there: the weights are not this stream's.
        """
        found = []
        for prefix in ("", _EARLIER):
            if prefix + _POSITION in arrays:
                found.append(int(arrays[prefix + _POSITION][0]))
                if found[-1] == position:
                    parts = [np.array(arrays[prefix + name], np.float32) for name in _NAMES]
                    return cls(parts[0], parts[1], parts[2], position)
        raise ValueError(
            f"dense weights must stand at position {position} of the rows, found {found}; "
            "train from a snapshot, or from the start"
        )

    def arrays(self, position: int) -> dict[str, NDArray[Any]]:
        """Return the arrays to publish with the rows that are sealed at `position`.

        Parameters
        ----------
        position : int
            Of the cursor given to that seal.
        """
        self.position = position
        arrays = self._named("")
        if self.earlier is not None:
            arrays |= self.earlier._named(_EARLIER)
        self.earlier = DenseWeights(
            self.intercept.copy(), self.field_weight.copy(), self.accumulator.copy(), position
        )
        return arrays

    def step(self, gradient: Floats, lr: float) -> None:
        """Take one Adagrad step.

        Parameters
        ----------
        gradient : ndarray of float32, shape (1 + fields,)
            Of the intercept, then of the field weights.
        lr : float
            Learning rate.
        """
        self.accumulator += gradient * gradient
        step = np.float32(lr) * gradient / np.sqrt(self.accumulator)
        self.intercept -= step[:1]
        self.field_weight -= step[1:]

    def _named(self, prefix: str) -> dict[str, NDArray[Any]]:
        named: dict[str, NDArray[Any]] = {prefix + _POSITION: np.asarray([self.position], np.int64)}
        return named | {prefix + name: np.array(getattr(self, name)) for name in _NAMES}


@dataclass(frozen=True)
class FactorizationMachine:
    """The model's shape and rates; its weights are rows of a table and `DenseWeights`.

    Parameters
    ----------
    fields : int
        Fids of one event.
    dim : int
        Width of the vectors.
    lr_bias, lr_vector, lr_dense : float
        Learning rates of Adagrad.
    seed : int
        Of the vectors' initial values.

    Examples
    --------
    >>> model = FactorizationMachine(fields=2, dim=4)
    >>> [part.name for part in model.slices()], model.row_dim
    (['bias', 'vector'], 5)
    """

    fields: int
    dim: int = 8
    lr_bias: float = 0.2
    lr_vector: float = 0.1
    lr_dense: float = 0.01
    seed: int = 0

    @property
    def row_dim(self) -> int:
        """Width of a record's embedding: bias and vector."""
        return 1 + self.dim

    def slices(self) -> list[mkv.Slice]:
        """Return the two parts of a record, for `create_table`."""
        return [
            mkv.Slice("bias", 1, mkv.Adagrad(lr=self.lr_bias), mkv.Zeros()),
            mkv.Slice(
                "vector",
                self.dim,
                mkv.Adagrad(lr=self.lr_vector),
                mkv.Normal(std=0.05, seed=self.seed),
            ),
        ]

    @staticmethod
    def score(rows: Floats, dense: Mapping[str, NDArray[Any]]) -> Floats:
        """Return the probability of each event.

        Parameters
        ----------
        rows : ndarray of float32, shape (n, fields, row_dim)
            Of the events' fids; zeros where a fid has none.
        dense : mapping of str to ndarray
            As published: "intercept" and "field_weight".

        Returns
        -------
        ndarray of float32, shape (n,)
        """
        probabilities, _ = _forward(rows, dense["intercept"], dense["field_weight"])
        return probabilities

    def gradients(
        self, rows: Floats, labels: Floats, weights: DenseWeights
    ) -> tuple[Floats, Floats, Floats]:
        """Return the gradients of the summed log loss, and the probabilities.

        Parameters
        ----------
        rows : ndarray of float32, shape (n, fields, row_dim)
            Of the events' fids.
        labels : ndarray of float32, shape (n,)
            0 or 1.
        weights : DenseWeights
            Not changed.

        Returns
        -------
        ndarray of float32, shape (n, fields, row_dim)
            By row.
        ndarray of float32, shape (1 + fields,)
            Of the intercept, then of the field weights.
        ndarray of float32, shape (n,)
            Probabilities before the step.
        """
        probabilities, total = _forward(rows, weights.intercept, weights.field_weight)
        error = probabilities - labels
        gradients = np.empty_like(rows)
        gradients[:, :, 0] = error[:, None] * weights.field_weight
        gradients[:, :, 1:] = error[:, None, None] * (total[:, None, :] - rows[:, :, 1:])
        dense = np.empty(1 + self.fields, np.float32)
        dense[0] = error.sum()
        dense[1:] = error @ rows[:, :, 0]
        return gradients, dense, probabilities


def _forward(rows: Floats, intercept: Floats, field_weight: Floats) -> tuple[Floats, Floats]:
    """Probabilities (n,) and sums of vectors over the fields (n, dim)."""
    vectors = rows[:, :, 1:]
    total = vectors.sum(axis=1)
    # sum_{f<g} <v_f, v_g> in time linear in the fields (Rendle 2010, lemma 3.1).
    pairs = 0.5 * ((total * total).sum(axis=1) - np.einsum("nfd,nfd->n", vectors, vectors))
    log_odds = intercept + rows[:, :, 0] @ field_weight + pairs
    # Beyond +-30 the float32 probability is 0 or 1 anyway, and exp would overflow.
    return 1.0 / (1.0 + np.exp(-np.clip(log_odds, -30.0, 30.0))), total
