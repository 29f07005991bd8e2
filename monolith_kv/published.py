"""What a store publishes or reports, as plain frozen values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Delta:
    """One sealed, immutable, checksummed file of changed rows, with their optimizer state.

    Parameters
    ----------
    path : str
        The file.
    epoch : int
        The epoch it was sealed in.
    sequence : int
        1, 2, 3, ... without a hole, across epochs.
    rows : int
        Records in it.
    removals : int
        Ids that are removed by it.
    bytes : int
        Size of the file.
    sealed_at : float
        Seconds since the epoch, by the store's clock.

    Examples
    --------
    >>> Delta("s/deltas/1.delta", 1, 1, rows=10, removals=0, bytes=900, sealed_at=0.0).rows
    10
    """

    path: str
    epoch: int
    sequence: int
    rows: int
    removals: int
    bytes: int
    sealed_at: float


@dataclass(frozen=True)
class Snapshot:
    """One full, self-contained, checksummed checkpoint.

    Parameters
    ----------
    path : str
        The file.
    sequence : int
        The delta sequence it includes.
    rows : int
        Records in it, over all tables.
    bytes : int
        Size of the file.
    created_at : float
        Seconds since the epoch, by the store's clock.

    Examples
    --------
    >>> Snapshot("s/snapshots/1.snapshot", 1, rows=10, bytes=900, created_at=0.0).sequence
    1
    """

    path: str
    sequence: int
    rows: int
    bytes: int
    created_at: float


@dataclass(frozen=True)
class Compaction:
    """What one call of `Store.compact` did.

    Parameters
    ----------
    expired : int
        Records removed.
    bytes_freed : int
        Memory and disk given back.
    finished : bool
        False when the budget ran out first.

    Examples
    --------
    >>> Compaction(expired=0, bytes_freed=0, finished=True).finished
    True
    """

    expired: int
    bytes_freed: int
    finished: bool
