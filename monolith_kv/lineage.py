"""The history of a store as a list of epochs: which deltas belong to one and the same past.

A store's deltas are numbered without a hole, 1, 2, 3, ..., but the past may fork: a crash loses the
last ones, a replica is promoted, a snapshot is restored. Whenever that may have happened a new
epoch begins, after the last sequence that is known to be kept, with a number one higher and a
random identity. Two histories agree up to a sequence when their epochs up to there are the same.
"""

import os
from dataclasses import dataclass
from typing import Any

from monolith_kv.errors import FormatVersionError

IDENTITY_BITS = 63  # Fits a signed 64-bit integer, whatever reads the JSON.


@dataclass(frozen=True)
class Epoch:
    """One stretch of a history.

    Parameters
    ----------
    number : int
        1, 2, 3, ...
    identity : int
        Random, 63 bits: tells apart two epochs of one number.
    after : int
        Its first delta is `after` + 1.

    Examples
    --------
    >>> Epoch(1, 42, 0).after
    0
    """

    number: int
    identity: int
    after: int


@dataclass(frozen=True)
class Lineage:
    """All epochs of one history, oldest first; an empty one belongs to a store without identity.

    Parameters
    ----------
    epochs : tuple of Epoch
        Numbers rise by one from 1; `after` never falls.

    Examples
    --------
    >>> lineage = Lineage().begin(after=0).begin(after=10)
    >>> lineage.epoch, lineage.at(10).number, lineage.at(11).number
    (2, 1, 2)
    """

    epochs: tuple[Epoch, ...] = ()

    def __post_init__(self) -> None:
        after = 0
        for number, epoch in enumerate(self.epochs, start=1):
            if epoch.number != number or epoch.after < after:
                raise ValueError(
                    f"epoch {number} must have number {number} and begin after {after} or later, "
                    f"got {epoch}"
                )
            after = epoch.after

    @property
    def epoch(self) -> int:
        """The number of the last epoch; 0 when there is none yet."""
        return self.epochs[-1].number if self.epochs else 0

    def begin(self, after: int) -> "Lineage":
        """Return this history with a new epoch at its end.

        Parameters
        ----------
        after : int
            The last sequence that is kept.

        Examples
        --------
        >>> Lineage().begin(after=0).epoch
        1
        """
        identity = int.from_bytes(os.urandom(8), "little") >> (64 - IDENTITY_BITS)
        epoch = Epoch(self.epoch + 1, identity, after)
        return Lineage((*self.epochs, epoch))

    def at(self, sequence: int) -> Epoch:
        """Return the epoch in which delta `sequence` was written.

        Parameters
        ----------
        sequence : int
            From 1.

        Raises
        ------
        ValueError
            No epoch had begun before it.
        """
        for epoch in reversed(self.epochs):
            if epoch.after < sequence:
                return epoch
        raise ValueError(f"sequence must be above 0 and of a known epoch, got {sequence}")

    def truncated(self, sequence: int) -> "Lineage":
        """Return the epochs that had begun before delta `sequence` was written.

        Parameters
        ----------
        sequence : int
            From 1.
        """
        return Lineage(tuple(epoch for epoch in self.epochs if epoch.after < sequence))

    def covers(self, other: "Lineage", sequence: int) -> bool:
        """Tell whether delta `sequence` is one and the same in both histories.

        Parameters
        ----------
        other : Lineage
            The other history, of the same store.
        sequence : int
            From 0; 0, the empty store, is common to all.

        Examples
        --------
        >>> lineage = Lineage().begin(after=0)
        >>> lineage.covers(lineage.begin(after=5), 5), lineage.covers(lineage.begin(after=5), 6)
        (True, False)
        """
        return self.truncated(sequence) == other.truncated(sequence)

    def extends(self, other: "Lineage", applied: int) -> bool:
        """Tell whether this history goes on from another that ended at sequence `applied`.

        Parameters
        ----------
        other : Lineage
            The history that a replica holds.
        applied : int
            The last sequence of it.

        Returns
        -------
        bool
            Its epochs are the first ones of this history, and none of the further ones began
            before `applied`: nothing that the replica holds was given up.

        Examples
        --------
        >>> lineage = Lineage().begin(after=0)
        >>> lineage.begin(after=5).extends(lineage, 5), lineage.begin(after=5).extends(lineage, 6)
        (True, False)
        """
        count = len(other.epochs)
        further = self.epochs[count:]
        return self.epochs[:count] == other.epochs and all(e.after >= applied for e in further)

    def to_json(self) -> list[list[int]]:
        """Return the epochs as a JSON array of [number, identity, after]."""
        return [[e.number, e.identity, e.after] for e in self.epochs]

    @classmethod
    def from_json(cls, data: list[Any]) -> "Lineage":
        """Return the lineage that `to_json` wrote.

        Parameters
        ----------
        data : list
            A JSON array.

        Raises
        ------
        FormatVersionError
            It is not what this version writes.

        Examples
        --------
        >>> lineage = Lineage().begin(after=0)
        >>> Lineage.from_json(lineage.to_json()) == lineage
        True
        """
        try:
            epochs = tuple(Epoch(*(_whole(part) for part in entry)) for entry in data)
            return cls(epochs)
        except (TypeError, ValueError) as error:
            raise FormatVersionError(f"lineage {data!r} cannot be read: {error}") from error


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"expected a whole number of 63 bits, got {value!r}")
    return value
